"""Imitate the teacher where it sees an object."""

from __future__ import annotations

from torch import Tensor

from distill.outputs.cellwise import CellwiseLoss


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
    """

    def box_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 4 * self.distance(student, teacher).mean(-1)  # (2 sigmoid - 2 sigmoid)^2

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.sigmoid() - teacher.sigmoid()).square()
