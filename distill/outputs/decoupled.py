"""Class, box and objectness, each with a distance of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distill.options import not_negative, share
from distill.outputs.base import Sides
from distill.outputs.cellwise import CellwiseLoss
from distill.outputs.terms import box_mismatch, cross_entropy, iou_kind, softmax_divergence
from distill.outputs.view import AnchorCells
from distill.temperature import Temperature
from utils.errors import UserError

SMALLEST = 1e-8  # a power below 1 has no finite slope at 0, where both agree


class DecoupledHead(CellwiseLoss):
    """Softmax KL of classes, overlap of decoded boxes, and focal cross-entropy of objectness, each with its own weight.

    - Classes: KL divergence of the softmaxes, softened by a temperature and multiplied by its square. It sums over
      classes where the detection loss takes a mean, and so is divided by their number.
    - Boxes: 1 - overlap with the teacher's box; as the classes, as much as the teacher believes in an object there.
    - Objectness: cross-entropy with the teacher's probability, times |p_S - p_T|^gamma, so that the many cells on which
      both agree do not count, and it vanishes where they do; positives count alpha, negatives 1 - alpha, and what lies
      between in proportion.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; Zheng et al.,
    "Distance-IoU Loss", AAAI 2020, arXiv:1911.08287; Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017,
    arXiv:1708.02002, for soft targets as in Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388.

    Args:
        classes, box, objectness: factors of the three parts, besides their gains; 0 leaves a part out.
        temperature: of the classes. A number or a schedule, see `distill.temperature`.
        iou: iou, giou, diou or ciou.
        gamma, alpha: of the focal cross-entropy.
        nms: see `CellwiseLoss`.
    """

    default_weight = 0.4

    def __init__(
        self,
        sides: Sides,
        classes: float = 1.0,
        box: float = 0.5,
        objectness: float = 0.3,
        temperature: Any = 3.0,
        iou: str = "ciou",
        gamma: float = 2.0,
        alpha: float = 0.25,
        nms: bool = False,
    ) -> None:
        super().__init__(sides, nms)
        where = "output loss 'decoupled'"
        self.temperature = Temperature(where, temperature)
        self.iou = iou_kind(f"{where}: iou", iou)
        self.gamma = not_negative(f"{where}: gamma", gamma)
        self.alpha = share(f"{where}: alpha", alpha)
        classes = not_negative(f"{where}: classes", classes)
        box = not_negative(f"{where}: box", box)
        objectness = not_negative(f"{where}: objectness", objectness)
        if not classes and not box and not objectness:
            raise UserError(f"{where}: classes, box and objectness are all 0, which leaves nothing to compare")
        gains = self.gains
        self.gains = gains._replace(box=gains.box * box, obj=gains.obj * objectness, cls=gains.cls * classes)

    def box_distance(self, student: AnchorCells, teacher: AnchorCells) -> Tensor:
        return box_mismatch(student.boxes(), teacher.boxes(), self.iou)

    def objectness_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        target = teacher.sigmoid()
        balance = self.alpha * target + (1 - self.alpha) * (1 - target)
        miss = (student.sigmoid() - target).abs().clamp(min=SMALLEST)
        return balance * miss**self.gamma * cross_entropy(student, teacher)

    def class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return softmax_divergence(student, teacher, self.temperature) / student.shape[-1]
