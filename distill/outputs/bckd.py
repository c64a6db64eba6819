"""The scores that NMS sees, and the boxes where they differ."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.options import not_negative
from distill.outputs.base import Sides
from distill.outputs.cellwise import CellsLoss
from distill.outputs.terms import box_mismatch, iou_kind
from utils.errors import UserError
from utils.types import Batch, Prediction


class BridgingProtocol(CellsLoss):
    """Cross-entropy of each class score with the teacher's, and overlap of boxes, weighed by how far scores differ.

    A score is p = sigmoid(objectness) * sigmoid(class), of heads without anchors that of the class alone, so background
    needs no weight of its own: there both scores are small, and so is their difference. With d = |p_T - p_S| as a mere
    factor,

    - classes: sum over cells and classes of d^beta * cross-entropy(p_S, p_T), over the number of classes, of which the
      detection loss takes a mean, too;
    - boxes: sum over cells of max over classes of d, times 1 - overlap of the decoded boxes;

    each over what the teacher believes in: its highest score, summed over cells, and at least 1. The paper divides by
    the number of positive samples of an assigner, which has no part in this. Times the gains of the detection loss.

    Left out are cells where both sides' objectness (of heads without: highest score) is below 0.01, nearly all: d is
    below 0.01 there, and the pull of a class, d times the difference, below 0.0001.

    Where class lists differ, see `CellsLoss`. With anchors, the score of a student or a teacher of one class is its
    objectness. Beside a head without anchors, the strongest of a cell's anchors speaks (`AnchorCells.strongest`).

    Source: Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection",
    ICCV 2023, arXiv:2308.14286.

    Args:
        beta: power of d; 0 is plain cross-entropy, in the cells that are not left out.
        classes, box: factors of the two parts, besides their gains; 0 leaves a part out.
        iou: iou, giou, diou or ciou.
    """

    default_weight = 0.2  # as it was measured (docs/results.md)

    def __init__(
        self,
        sides: Sides,
        beta: float = 1.0,
        classes: float = 1.0,
        box: float = 4.0,
        iou: str = "giou",
    ) -> None:
        super().__init__(sides)
        where = "output loss 'bckd'"
        self.beta = not_negative(f"{where}: beta", beta)
        self.iou = iou_kind(f"{where}: iou", iou)
        classes = not_negative(f"{where}: classes", classes)
        box = not_negative(f"{where}: box", box)
        if not classes and not box:
            raise UserError(f"{where}: classes and box are both 0, which leaves nothing to compare")
        gains = self.gains
        self.gains = gains._replace(box=gains.box * box, cls=gains.cls * classes)

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of any two heads -> scalar."""
        own, other, trust = self.common(student, taught)
        mine, theirs = self.scores(own, other)  # (M, K) logits
        target = theirs.sigmoid()
        apart = (target - mine.detach().sigmoid()).abs()
        entropy = apart**self.beta * F.binary_cross_entropy_with_logits(mine, target, reduction="none")
        classes = (entropy.mean(-1) * trust).sum()
        boxes = (apart.amax(-1) * box_mismatch(own.boxes(), other.boxes(), self.iou) * trust).sum()
        belief = (target.amax(-1) * trust).sum().clamp(min=1)
        return (self.gains.box * boxes + self.gains.cls * classes) / belief
