"""Labels softened by the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import positive, share
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from losses.anchor import overlap_map
from losses.matching import Matcher, Matches, decode
from losses.terms import bbox_iou
from utils.types import Batch, Prediction


class SoftLabels(CellsLoss):
    """Cross-entropy with alpha * teacher + (1 - alpha) * ground truth as the target, of objectness and classes.

    - Objectness, a mean over all cells: the teacher's probability, mixed with what the detection loss wants, the
      overlap of the predicted box with the target where one is matched, else 0.
    - Classes, a mean over the cells that the detection loss matches: the teacher's probabilities, mixed with the class
      of the target.
    - Images without ground truth have the teacher alone: alpha is 1 there, and classes count in the cells in which it
      believes in an object, as much as it does.

    Times the gains of the detection loss and the number of levels, for which they are rescaled. Where the student
    agrees with the teacher this still pulls, towards the labels. Boxes are the detection loss's business, so is label
    smoothing.

    Where class lists differ, see `CellsLoss`; what the teacher does not teach is left to the detection loss.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; Reed et al.,
    "Training Deep Neural Networks on Noisy Labels with Bootstrapping", 2014, arXiv:1412.6596, for mixed targets.

    Args:
        alpha: the teacher's share of the targets.
        anchor_t: largest ratio of a target's side to an anchor's that still matches; where a recipe does not say,
            that of its detection loss.
    """

    default_weight = 0.5

    def __init__(
        self,
        sides: Sides,
        alpha: float = 0.5,
        anchor_t: float = 4.0,
    ) -> None:
        super().__init__(sides)
        self.alpha = share("output loss 'soft_labels': alpha", alpha)
        self.match = Matcher(positive("output loss 'soft_labels': anchor_t", anchor_t))

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        totals, cells = [], 0
        for own, other in self.level_pairs:
            level = student.levels[own]
            totals.append(self._level(level, taught.levels[other].detach(), self.anchors(own), batch))
            cells += level[..., 4].numel()
        objectness, classes, weight = torch.stack(totals).sum(0)
        terms = self.gains.obj * objectness / max(1, cells) + self.gains.cls * classes / weight.clamp(min=1)
        return len(totals) * terms

    def _level(self, student: Tensor, teacher: Tensor, anchors: Tensor, batch: Batch) -> Tensor:
        """Sums over one level: objectness, classes, and the weights of these."""
        belief = teacher[..., 4].float().sigmoid()  # (B, A, H, W)
        sees = belief > BACKGROUND
        heard = self.heard(teacher, sees)
        trust = self.trust(belief, heard)
        matches = self.match(student.shape, anchors, batch)

        labelled = batch.labelled[:, None, None, None]
        teachers_share = torch.where(labelled, self.alpha, 1.0)
        truth = overlap_map(_overlap(student, anchors, matches), matches, belief.shape)
        target = teachers_share * belief + (1 - teachers_share) * truth
        objectness = F.binary_cross_entropy_with_logits(student[..., 4].float(), target, reduction="none")

        alone = (sees & heard & ~labelled).flatten().nonzero()[:, 0]  # cells of the teacher alone
        cells = torch.cat((matches.cells(belief.shape), alone))  # (M,)
        weight = torch.cat((trust.flatten()[cells[: len(cells) - len(alone)]], belief.flatten()[alone]))
        label = torch.cat((matches.label, torch.full_like(alone, -1)))
        classes = self._classes(student.flatten(0, 3)[cells].float(), teacher.flatten(0, 3)[cells].float(), label)
        return torch.stack([(objectness * trust).sum(), (classes * weight).sum(), weight.sum()])

    def _classes(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        """Rows (M, 5 + C) and (M, 5 + C'), (M,) classes, -1 for unknown -> (M,), a mean over the classes of both."""
        if not self.has_classes:
            return student.new_zeros(len(student))
        mine, theirs = self.classes(student, teacher)
        truth = (label[:, None] == self.student_classes).float()
        teachers_share = torch.where(label < 0, 1.0, self.alpha)[:, None]
        target = teachers_share * theirs.sigmoid() + (1 - teachers_share) * truth
        return F.binary_cross_entropy_with_logits(mine, target, reduction="none").mean(-1)


@torch.no_grad()
def _overlap(student: Tensor, anchors: Tensor, matches: Matches) -> Tensor:
    """(M,) overlaps of the predicted boxes with the targets, as the detection loss takes them."""
    rows = student[matches.image, matches.anchor, matches.row, matches.column, :4].float()
    return bbox_iou(decode(rows, anchors[matches.anchor]), matches.boxes, kind="ciou")
