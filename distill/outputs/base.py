"""What every output loss is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import nn

from distill.levels import by_stride
from utils.errors import UserError

if TYPE_CHECKING:
    from distill.classes import ClassMap
    from losses.anchor import Gains


class Sides(NamedTuple):
    """What an output loss stands between, and what the detection loss weighs its terms by."""

    student: nn.Module  # head
    teacher: nn.Module  # head
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

    needs: ClassVar[tuple[str, ...]] = ()  # of "objectness"
    default_weight: ClassVar[float] = 1.0  # where a recipe gives none

    def __init__(self, sides: Sides) -> None:
        super().__init__()
        self.class_map = sides.classes
        self.gains = sides.gains
        # (student, teacher) level
        self.level_pairs = by_stride(head_strides(sides.student), head_strides(sides.teacher))
        if "objectness" in self.needs:
            self._require_objectness(sides)

    @property
    def where(self) -> str:
        """What errors start with: the method by the name that a user gives it."""
        from distill.outputs import OUTPUTS  # not above: the table imports every method, and so this file

        return next((f"output loss '{name}'" for name, made in OUTPUTS.items() if made is type(self)), "output loss")

    def _require_objectness(self, sides: Sides) -> None:
        for who, head in (("student", sides.student), ("teacher", sides.teacher)):
            if not hasattr(head, "anchors"):  # of our heads, those with anchors are those with objectness
                raise UserError(
                    f"{self.where} needs objectness, which the {who}'s head ({type(head).__name__}) does not "
                    "have; choose another output loss, or use features only (outputs: {})"
                )


def head_strides(head: Any) -> list[int]:
    """Strides of a head's levels, in pixels."""
    return [round(stride) for stride in head.strides.tolist()]
