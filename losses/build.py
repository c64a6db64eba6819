"""Which detection loss a model is trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from losses import LOSSES

if TYPE_CHECKING:
    from losses.anchor import AnchorLoss
    from losses.tal import TaskAlignedLoss
    from utils.hyp import Hyp


def build_criterion(head: Any, hyp: Hyp, image_size: tuple[int, int]) -> AnchorLoss | TaskAlignedLoss:
    """The loss for this head, on the CPU; for a head with anchors the one that the recipe says.

    Args:
        head: an `AnchorHead` (`losses/anchor.py`) or an `AnchorFreeHead` (`losses/tal.py`).
        image_size: height and width of training, pixels.
    """
    if not hasattr(head, "anchors"):
        return LOSSES["tal"](head, hyp, image_size)
    return LOSSES["ota" if hyp.loss_ota else "anchor"](head, hyp, image_size)
