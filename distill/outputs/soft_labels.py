"""Labels softened by the teacher."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import positive, share
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.positives import task_aligned
from distill.outputs.view import AnchorCells, Cells, has_anchors
from losses.anchor import overlap_map
from losses.matching import Matcher, Matches
from losses.terms import bbox_iou
from utils.types import Batch, Prediction

_Truth = Callable[
    [Cells], tuple[Tensor, Tensor]
]  # a level -> (B, 1, H, W) wanted scores and their classes, -1 for none


class SoftLabels(CellsLoss):
    """Cross-entropy with alpha * teacher + (1 - alpha) * ground truth as the target, of objectness and classes.

    Where both heads have objectness:

    - Objectness, a mean over all cells: the teacher's probability, mixed with what the detection loss wants, the
      overlap of the predicted box with the target where one is matched, else 0.
    - Classes, a mean over the cells that the detection loss matches: the teacher's probabilities, mixed with the class
      of the target.
    - Images without ground truth have the teacher alone: alpha is 1 there, and classes count in the cells in which it
      believes in an object, as much as it does.

    Where one of them has none, scores: the teacher's, mixed with what the detection loss wants of the student's.

    - Of a student without anchors that is the score that the task-aligned assignment demands of a cell's class, else 0;
      of one with anchors, whose cell's strongest speaks, the overlap of its box with the target that is matched with
      any anchor of the cell, else 0.
    - The sum over cells, a mean over classes, over the sum of the cells' highest targets, and at least 1. Cells are
      left out to which neither side gives a score of 0.01 and the assignment nothing.
    - Images without ground truth have the teacher alone.

    Times the gains of the detection loss. Where the student agrees with the teacher this still pulls, towards the
    labels. Boxes are the detection loss's business, so is label smoothing.

    Where class lists differ, see `CellsLoss`; what the teacher does not teach is left to the detection loss.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; Reed et al.,
    "Training Deep Neural Networks on Noisy Labels with Bootstrapping", 2014, arXiv:1412.6596, for mixed targets.

    Args:
        alpha: the teacher's share of the targets.
        anchor_t: of a student with anchors: largest ratio of a target's side to an anchor's that still matches.
        tal_topk, tal_alpha, tal_beta, small_objects: of one without: see `losses.assignment.TaskAlignedAssigner`. Where
            a recipe does not say, all these are those of its detection loss.
    """

    default_weight = 0.5

    def __init__(
        self,
        sides: Sides,
        alpha: float = 0.5,
        anchor_t: float = 4.0,
        tal_topk: int = 10,
        tal_alpha: float = 0.5,
        tal_beta: float = 6.0,
        small_objects: bool = False,
    ) -> None:
        super().__init__(sides)
        where = "output loss 'soft_labels'"
        self.alpha = share(f"{where}: alpha", alpha)
        self.match = Matcher(positive(f"{where}: anchor_t", anchor_t))
        self.assigner = task_aligned(where, tal_topk, tal_alpha, tal_beta, small_objects)

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of any two heads -> scalar."""
        if not self.both_have_anchors:
            return self._of_scores(student, taught, batch)
        totals, cells = [], 0
        for (own, _), (mine, theirs) in zip(self.level_pairs, self.views(student, taught), strict=True):
            totals.append(self._level(cast(AnchorCells, mine), cast(AnchorCells, theirs), self._anchors(own), batch))
            cells += mine.shape.numel()
        objectness, classes, weight = torch.stack(totals).sum(0)
        return self.gains.obj * objectness / max(1, cells) + self.gains.cls * classes / weight.clamp(min=1)

    def _anchors(self, level: int) -> Tensor:
        """(A, 2) width, height in cells, of the student's; read at every call, since they may be fitted to the data."""
        anchors: Tensor = self._heads[0].anchors[level]
        return anchors.float()

    # -- two heads with objectness -------------------------------------------------------------------------------------

    def _level(self, student: AnchorCells, teacher: AnchorCells, anchors: Tensor, batch: Batch) -> Tensor:
        """Sums over one level: objectness, classes, and the weights of these."""
        belief = teacher.belief()  # (B, A, H, W)
        sees = belief > BACKGROUND
        heard = self.heard(teacher, sees)
        trust = self.trust(belief, heard)
        matches = self.match(student.shape, anchors, batch)

        labelled = batch.labelled[:, None, None, None]
        teachers_share = torch.where(labelled, self.alpha, 1.0)
        truth = overlap_map(_overlap(student, matches), matches, belief.shape)
        target = teachers_share * belief + (1 - teachers_share) * truth
        objectness = F.binary_cross_entropy_with_logits(student.objectness(), target, reduction="none")

        alone = (sees & heard & ~labelled).nonzero(as_tuple=True)  # cells of the teacher alone
        matched = matches.image, matches.anchor, matches.row, matches.column
        cells = tuple(torch.cat(pair) for pair in zip(matched, alone, strict=True))  # (M,) each
        weight = torch.cat((trust[matched], belief[alone]))
        label = torch.cat((matches.label, torch.full_like(alone[0], -1)))
        classes = self._classes(student.at(cells), teacher.at(cells), label)
        return torch.stack([(objectness * trust).sum(), (classes * weight).sum(), weight.sum()])

    def _classes(self, student: Cells, teacher: Cells, label: Tensor) -> Tensor:
        """Of M cells, (M,) classes, -1 for unknown -> (M,), a mean over the classes of both."""
        if not self.has_classes:
            return student.rows.new_zeros(len(label))
        mine, theirs = self.classes(student, teacher)
        truth = (label[:, None] == self.student_classes).float()
        teachers_share = torch.where(label < 0, 1.0, self.alpha)[:, None]
        target = teachers_share * theirs.sigmoid() + (1 - teachers_share) * truth
        return F.binary_cross_entropy_with_logits(mine, target, reduction="none").mean(-1)

    # -- scores --------------------------------------------------------------------------------------------------------

    def _of_scores(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        truths = self._truths(student, batch)
        total = torch.stack(
            [
                self._level_of_scores(mine, theirs, truth, batch)
                for (mine, theirs), truth in zip(self.views(student, taught), truths, strict=True)
            ]
        ).sum(0)
        return self.gains.cls * total[0] / total[1].clamp(min=1)

    def _level_of_scores(self, student: Cells, teacher: Cells, truth: _Truth, batch: Batch) -> Tensor:
        """Sums over one level: of cross-entropies, and of the highest targets."""
        belief = teacher.belief()
        sees = belief > BACKGROUND
        heard = self.heard(teacher, sees)
        score, label = truth(student)  # (B, 1, H, W) each
        chosen = ((sees | (student.belief() > BACKGROUND) | (score > 0)) & heard).nonzero(as_tuple=True)
        mine, theirs = self.scores(student.at(chosen), teacher.at(chosen))
        wanted = score[chosen][:, None] * (label[chosen][:, None] == self.student_classes)
        teachers_share = torch.where(batch.labelled, self.alpha, 1.0)[chosen[0]][:, None]
        target = teachers_share * theirs.sigmoid() + (1 - teachers_share) * wanted
        entropy = F.binary_cross_entropy_with_logits(mine, target, reduction="none").mean(-1)
        trust = self.trust(belief, heard)[chosen]
        return torch.stack([(entropy * trust).sum(), (target.amax(-1) * trust).sum()])

    def _truths(self, student: Prediction, batch: Batch) -> list[_Truth]:
        """What the detection loss wants of the cells of each common level."""
        head = self._heads[0]
        if has_anchors(head):
            return [
                functools.partial(self._matched, anchors=self._anchors(own), batch=batch) for own, _ in self.level_pairs
            ]
        levels = [level.detach() for level in student.levels]
        assigned = self.assigner.on_levels(levels, head.strides, head.num_classes, batch).on_levels(levels)
        classes = torch.cat((batch.targets[:, 1].long(), batch.targets.new_full((1,), -1, dtype=torch.long)))
        parts = [assigned[own] for own, _ in self.level_pairs]
        return [functools.partial(_given, part.score[:, None], classes[part.target][:, None]) for part in parts]

    @torch.no_grad()
    def _matched(self, student: Cells, anchors: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Overlap of the strongest's box with the target that its cell is matched with, and the target's class, -1."""
        matches = self.match(torch.Size((len(student.rows), len(anchors), *student.shape[2:])), anchors, batch)
        matches = matches._replace(anchor=torch.zeros_like(matches.anchor))
        overlap = overlap_map(_overlap(cast(AnchorCells, student), matches), matches, student.shape)
        # as the overlaps, the last one's class counts; 0 is no class
        return overlap, overlap_map((matches.label + 1).float(), matches, student.shape).long() - 1


def _given(score: Tensor, label: Tensor, student: Cells) -> tuple[Tensor, Tensor]:
    return score, label


@torch.no_grad()
def _overlap(student: AnchorCells, matches: Matches) -> Tensor:
    """(M,) overlaps of the predicted boxes with the targets, as the detection loss takes them."""
    cells = student.at((matches.image, matches.anchor, matches.row, matches.column))
    return bbox_iou(cells.boxes(), matches.boxes, kind="ciou")
