"""Imitate the teacher where it sees an object."""

from __future__ import annotations

from torch import Tensor

from distill.options import flag
from distill.outputs.base import Sides
from distill.outputs.cellwise import CellwiseLoss
from distill.outputs.view import AnchorCells


class ObjectnessScaled(CellwiseLoss):
    """Squared error of objectness in every cell; of box and classes scaled by the teacher's objectness.

    A detector's teacher is right about few cells and has an opinion on all. Scaled by its objectness, boxes and
    classes of background teach nothing.

    Compared is what the head means, not its raw numbers, as in the paper, whose detector has squared errors of its own:
    objectness and classes as probabilities, since of two logits -8 and -12 both say "nothing" and their difference of
    4, in nearly every cell, would drown the objects; boxes as offset of the centre in cells and as square root of the
    size over the anchor's, both of which are 2 * sigmoid up to a constant, so that no exponential or square lets a few
    big boxes decide.

    Source: Mehta and Ozturk, "Object detection at 200 Frames Per Second", 2018, arXiv:1805.06361.

    Args:
        nms: see `CellwiseLoss`.
        scale_objectness: scale objectness, too, as the first recipes for YOLOv3 did: "nothing here" teaches nothing.
    """

    default_weight = 0.6

    def __init__(
        self,
        sides: Sides,
        nms: bool = False,
        scale_objectness: bool = False,
    ) -> None:
        super().__init__(sides, nms)
        self.scale_objectness = flag("output loss 'objectness_scaled': scale_objectness", scale_objectness)

    def box_distance(self, student: AnchorCells, teacher: AnchorCells) -> Tensor:
        return 4 * squared(student.rows[:, :4], teacher.rows[:, :4]).mean(-1)  # (2 sigmoid - 2 sigmoid)^2

    def objectness_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        distance = squared(student, teacher)
        return distance * teacher.sigmoid() if self.scale_objectness else distance

    def class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return squared(student, teacher).mean(-1)


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the probabilities of logits."""
    return (student.sigmoid() - teacher.sigmoid()).square()
