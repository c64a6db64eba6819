"""What the two kinds of detectors are trained with where nobody says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.hyp import Hyp
    from utils.metrics import Metric


@dataclass(frozen=True)
class Family:
    """Models whose users expect the same."""

    kind: str  # of their heads, as messages say it
    recipe: str  # in hyp/
    optimizer: str
    close_mosaic: int  # epochs at the end without mosaics
    box: float  # gain of the box term
    metric: Metric  # how the mAP is counted with which these models are published


ANCHORS = Family("with anchors", "scratch-low", "SGD", 0, 0.05, "yolov5")  # YOLOv3, v5, v7
ANCHOR_FREE = Family("without anchors", "v8", "auto", 10, 7.5, "ultralytics")  # YOLOv8 and later, v3u, v5u

# The gain of the box term stands before a mean over matches with the one kind, and before a mean weighted by scores
# with the other: published ones are 0.02 to 0.05, and 5.6 to 7.5. So the number tells for which kind a recipe is.
LEAST_WITHOUT_ANCHORS = 1.0
GAINS = ("box", "cls", "obj", "dfl")


def for_family(hyp: Hyp, family: Family) -> Hyp:
    """The recipe with numbers of this family where it has none. The second time nothing changes.

    A recipe for the other kind of heads keeps everything but its gains, which mean something else there, and its
    anchors, if there are none: so every recipe goes with every model.
    """
    values: dict[str, Any] = {
        "optimizer": hyp.optimizer or family.optimizer,
        "close_mosaic": family.close_mosaic if hyp.close_mosaic is None else hyp.close_mosaic,
        "anchors": None if family is ANCHOR_FREE else hyp.anchors,
    }
    if has_foreign_gains(hyp, family):
        defaults = type(hyp)()
        hyp = replace(hyp, **{name: getattr(defaults, name) for name in GAINS})
    return replace(hyp, box=box_gain(hyp, family), **values)


def has_foreign_gains(hyp: Hyp, family: Family) -> bool:
    """Whether the recipe's gains are meant for the other kind of heads."""
    return hyp.box is not None and hyp.box > 0 and (hyp.box >= LEAST_WITHOUT_ANCHORS) != (family is ANCHOR_FREE)


def box_gain(hyp: Hyp, family: Family) -> float:
    """The recipe's, or the family's where it has none."""
    return family.box if hyp.box is None else hyp.box
