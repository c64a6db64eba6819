"""The scores that NMS sees, and the boxes where they differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import not_negative
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.terms import box_mismatch, iou_kind, joint_logit
from utils.errors import UserError
from utils.types import Batch, Prediction


class BridgingProtocol(CellsLoss):
    """Cross-entropy of each class score with the teacher's, and overlap of boxes, weighed by how far scores differ.

    A score is p = sigmoid(objectness) * sigmoid(class), so classes carry objectness with them and background needs no
    weight of its own: there both scores are small, and so is their difference. With d = |p_T - p_S| as a mere factor,

    - classes: sum over cells and classes of d^beta * cross-entropy(p_S, p_T), over the number of classes, of which the
      detection loss takes a mean, too;
    - boxes: sum over cells of max over classes of d, times 1 - overlap of the decoded boxes;

    each over what the teacher believes in: its highest score, summed over cells, and at least 1. The paper divides by
    the number of positive samples of an assigner, which has no part in this. Times the gains of the detection loss and
    the number of levels, for which they are rescaled.

    Left out are cells where both sides' objectness is below 0.01, nearly all: d is below 0.01 there, and the pull of
    a class, d times the difference, below 0.0001.

    Where class lists differ, see `CellsLoss`. The score of a student or a teacher of one class is its objectness.

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
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        rows = [
            self._rows(student.levels[own], taught.levels[other].detach(), self.anchors(own))
            for own, other in self.level_pairs
        ]
        own, other, anchors, trust = (torch.cat(column) for column in zip(*rows, strict=True))
        mine, theirs = self._scores(own, other)  # (M, K) logits
        target = theirs.sigmoid()
        apart = (target - mine.detach().sigmoid()).abs()
        entropy = apart**self.beta * F.binary_cross_entropy_with_logits(mine, target, reduction="none")
        classes = (entropy.mean(-1) * trust).sum()
        boxes = (apart.amax(-1) * box_mismatch(own, other, anchors, self.iou) * trust).sum()
        belief = (target.amax(-1) * trust).sum().clamp(min=1)
        return len(rows) * (self.gains.box * boxes + self.gains.cls * classes) / belief

    def _rows(self, student: Tensor, teacher: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        """The cells of one level that matter: (M, 5 + C), (M, 5 + C'), (M, 2) anchors and (M,) trust, in float32."""
        belief = teacher[..., 4].float().sigmoid()  # (B, A, H, W)
        sees = belief > BACKGROUND
        heard = self.heard(teacher, sees)
        matters = (sees | (student[..., 4].detach().float().sigmoid() > BACKGROUND)) & heard
        chosen = matters.nonzero(as_tuple=True)
        return student[chosen].float(), teacher[chosen].float(), anchors[chosen[1]], self.trust(belief, heard)[chosen]

    def _scores(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (M, 5 + C) and (M, 5 + C') -> logits of the scores, (M, K) twice."""
        mine, theirs = self.classes(student, teacher)
        own, other = student[:, 4:5], teacher[:, 4:5]
        return (
            joint_logit(own, mine) if self.has_classes else own.expand_as(mine),
            joint_logit(other, theirs) if self.class_map.num_teacher > 1 else other.expand_as(theirs),
        )
