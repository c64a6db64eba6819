"""What every output loss is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import nn

from distill.levels import by_stride
from distill.outputs.view import Cells, has_anchors, side_by_side
from utils.errors import UserError
from utils.types import Prediction

if TYPE_CHECKING:
    from distill.classes import ClassMap
    from distill.gains import Gains


class Sides(NamedTuple):
    """What an output loss stands between, and what the detection loss weighs its terms by."""

    student: Any  # head
    teacher: Any  # head
    classes: ClassMap
    gains: Gains


class OutputLoss(nn.Module):
    """Compares two predictions: `loss(student, taught, batch) -> scalar`; see the shelf's docstring for the contract.

    Levels are matched by stride; those that only one side has are left out. Where the anchors of the heads differ, what
    was taught has been translated into the student's before it comes here: a cell and its anchor are the same on both
    sides, the classes are not.

    Raises:
        UserError: the heads lack what the loss needs, or have no stride in common.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # words of `NEEDS`
    needs_maps: ClassVar[bool] = False  # whether it is called with `maps` besides: see the shelf's docstring
    default_weight: ClassVar[float] = 1.0  # where a recipe gives none

    def __init__(self, sides: Sides) -> None:
        super().__init__()
        self.class_map = sides.classes
        self.gains = sides.gains
        # nn.Module does not look into tuples: the heads stay the models' alone
        self._heads = (sides.student, sides.teacher)
        # (student, teacher) level
        self.level_pairs = by_stride(head_strides(sides.student), head_strides(sides.teacher))
        for need in self.needs:
            if complaint := NEEDS[need](sides):
                raise UserError(f"{self.where} needs {complaint}; {_instead(sides)}")

    @property
    def where(self) -> str:
        """What errors start with: the method by the name that a user gives it."""
        from distill.outputs import OUTPUTS  # not above: the table imports every method, and so this file

        return next((f"output loss '{name}'" for name, made in OUTPUTS.items() if made is type(self)), "output loss")

    @property
    def both_have_anchors(self) -> bool:
        """Whether predictions are compared anchor by anchor, objectness and classes apart."""
        return all(has_anchors(head) for head in self._heads)

    def views(self, student: Prediction, taught: Prediction) -> Iterator[tuple[Cells, Cells]]:
        """Levels of one stride side by side, on common cells (B, A, H, W); the teacher's without gradient.

        See `distill.outputs.view.side_by_side`.
        """
        return side_by_side(self._heads, self.level_pairs, student, taught)


def head_strides(head: Any) -> list[int]:
    """Strides of a head's levels, in pixels."""
    return [round(stride) for stride in head.strides.tolist()]


# -- what heads must have ----------------------------------------------------------------------------------------------


def _lacking(what: str, has: Callable[[Any], bool]) -> Callable[[Sides], str]:
    """A need that each head meets by itself: answers which does not, "" if both do."""

    def complaint(sides: Sides) -> str:
        for who, head in (("student", sides.student), ("teacher", sides.teacher)):
            if not has(head):
                return f"{what}, which the {who}'s head ({type(head).__name__}) does not have"
        return ""

    return complaint


def _unequal_bins(sides: Sides) -> str:
    if lacking := _lacking("distances as distributions (DFL)", lambda head: getattr(head, "reg_max", 1) > 1)(sides):
        return lacking
    own, other = (head.reg_max for head in sides[:2])
    return "" if own == other else f"as many DFL bins on both sides, and the student has {own}, the teacher {other}"


def _unequal_layout(sides: Sides) -> str:
    kinds = [None if has_anchors(head) else head.reg_max for head in sides[:2]]
    if kinds[0] == kinds[1]:
        return ""
    own, other = (
        f"{type(head).__name__} with " + ("anchors" if bins is None else f"reg_max {bins}")
        for head, bins in zip(sides[:2], kinds, strict=True)
    )
    return f"raw numbers that mean the same on both sides, and the student has a {own}, the teacher a {other}"


NEEDS: dict[str, Callable[[Sides], str]] = {
    "objectness": _lacking("objectness", has_anchors),
    "anchors": _lacking("anchors", has_anchors),
    "dfl": _unequal_bins,
    "towers": _lacking("towers of convolutions", lambda head: hasattr(head, "towers")),
    "layout": _unequal_layout,
}


def _instead(sides: Sides) -> str:
    """What a user may write instead of a method that does not fit these heads."""
    from distill.outputs import OUTPUTS

    fits = [name for name, made in OUTPUTS.items() if not any(NEEDS[need](sides) for need in made.needs)]
    return f"these would do: {', '.join(fits)}, or features only (outputs: {{}})"
