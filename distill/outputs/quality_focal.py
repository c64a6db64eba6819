"""Imitate scores everywhere, boxes and their distributions where an object is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from distill.options import not_negative
from distill.outputs.base import NEEDS, Sides
from distill.outputs.cellwise import BACKGROUND
from distill.outputs.positives import Level, PositivesLoss, at, chosen, task_aligned
from distill.outputs.terms import box_mismatch, iou_kind, softmax_divergence
from distill.outputs.view import FreeCells
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch

log = logging.getLogger(__name__)

SMALLEST = 1e-8  # a power below 1 has no finite slope at 0, where both agree


class QualityFocalImitation(PositivesLoss):
    """Quality focal loss of scores, overlap of boxes and divergence of their distributions, as PP-YOLOE is distilled.

    - Classes, summed over cells: |p_S - p_T|^beta * cross-entropy(p_S, p_T) of each score, a mean over classes.
    - Boxes, summed over the cells that answer for an object (`PositivesLoss`): 1 - overlap with the teacher's.
    - Distributions, in the same cells: cross-entropy with the teacher's bins, less the teacher's entropy, which does
      not pull; a mean over the four sides. Where the heads have not equally many bins the part is left out, which the
      log says.

    Each over the number of cells that answer for an object, at least 1, times the gains of the detection loss: those
    of PP-YOLOE, 1, 2.5 and 0.5, are the gains of its detection loss, too.

    Left out are cells where both sides' highest score is below 0.01. Where class lists differ, see `CellsLoss`.

    Sources: the distillation of Xu et al., "PP-YOLOE", 2022, arXiv:2203.16250, in its later releases; Li et al.,
    "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388, for the quality focal loss.

    Args:
        beta: power of |p_S - p_T|.
        classes, box, dfl: factors of the three parts, besides their gains; 0 leaves a part out.
        iou: iou, giou, diou or ciou.
        tal_topk, tal_alpha, tal_beta, small_objects: see `losses.assignment.TaskAlignedAssigner`. Where a recipe does
            not say, those of its detection loss.
        threshold: see `PositivesLoss`.
    """

    default_weight = 1.0

    def __init__(
        self,
        sides: Sides,
        beta: float = 2.0,
        classes: float = 1.0,
        box: float = 1.0,
        dfl: float = 1.0,
        iou: str = "giou",
        tal_topk: int = 10,
        tal_alpha: float = 0.5,
        tal_beta: float = 6.0,
        small_objects: bool = False,
        threshold: float = 0.25,
    ) -> None:
        where = "output loss 'quality_focal'"
        super().__init__(sides, task_aligned(where, tal_topk, tal_alpha, tal_beta, small_objects), threshold)
        self.beta = not_negative(f"{where}: beta", beta)
        self.iou = iou_kind(f"{where}: iou", iou)
        self.as_they_are = Temperature(where, 1.0)
        factors = not_negative(f"{where}: classes", classes), not_negative(f"{where}: box", box)
        dfl = not_negative(f"{where}: dfl", dfl)
        if dfl and (complaint := NEEDS["dfl"](sides)):
            log.info("%s: distributions of boxes are left out; they need %s", where, complaint)
            dfl = 0.0
        if not any(factors) and not dfl:
            raise UserError(f"{where}: classes, box and dfl are all 0, which leaves nothing to compare")
        gains = self.gains
        self.gains = gains._replace(cls=gains.cls * factors[0], box=gains.box * factors[1])
        self.dfl = gains.dfl * dfl if dfl else 0.0

    def compare(self, levels: Sequence[Level], positives: Sequence[Tensor], batch: Batch) -> Tensor:
        trust = [self.trusted(other) for _, other in levels]
        seen = [(mine.belief() > BACKGROUND) | (other.belief() > BACKGROUND) for mine, other in levels]
        mine, theirs = self.scores(*chosen(levels, seen))
        classes = quality_focal(mine, theirs.sigmoid(), self.beta).mean(-1)
        own, other = chosen(levels, positives)
        boxes = self.gains.box * box_mismatch(own.boxes(), other.boxes(), self.iou)
        if self.dfl:
            bins = cast(FreeCells, own).bins(), cast(FreeCells, other).bins()
            boxes = boxes + self.dfl * softmax_divergence(*bins, self.as_they_are).mean(-1)
        weight = at(trust, positives)
        total = self.gains.cls * (classes * at(trust, seen)).sum() + (boxes * weight).sum()
        return total / weight.sum().clamp(min=1)


def quality_focal(logits: Tensor, target: Tensor, beta: float) -> Tensor:
    """|p - target|^beta * cross-entropy of each logit, p its sigmoid, with a target in [0, 1]; elementwise."""
    miss = (logits.sigmoid() - target).abs().clamp(min=SMALLEST)
    return miss**beta * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
