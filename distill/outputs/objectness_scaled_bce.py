"""Imitate the teacher where it sees an object, with the distances that YOLOv3 itself is trained with."""

from __future__ import annotations

from torch import Tensor

from distill.outputs.cellwise import CellwiseLoss
from distill.outputs.terms import cross_entropy
from distill.outputs.view import AnchorCells


class ObjectnessScaledBCE(CellwiseLoss):
    """Cross-entropy of objectness in every cell; of box and classes scaled by the teacher's objectness.

    As `ObjectnessScaled`, but centre, objectness and classes are compared by binary cross-entropy with the teacher's
    probability as the target, and sizes by their absolute difference: on the square root scale of the head, over the
    anchor's, on which a size is 2 * sigmoid. Cross-entropy still pulls where the student is saturated on the wrong
    side, which a squared error of probabilities hardly does. Where both agree it is the teacher's entropy, not 0, and
    does not pull.

    Source: Mehta and Ozturk, "Object detection at 200 Frames Per Second", 2018, arXiv:1805.06361; the distances are
    those of Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, arXiv:1804.02767.

    Args:
        nms: see `CellwiseLoss`.
    """

    default_weight = 0.3

    def box_distance(self, student: AnchorCells, teacher: AnchorCells) -> Tensor:
        """A mean over x, y, w, h."""
        centre = cross_entropy(student.rows[:, :2], teacher.rows[:, :2]).sum(-1)
        size = 2 * (student.rows[:, 2:4].sigmoid() - teacher.rows[:, 2:4].sigmoid()).abs().sum(-1)
        return (centre + size) / 4

    def objectness_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cross_entropy(student, teacher)

    def class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cross_entropy(student, teacher).mean(-1)
