"""Which of all positions is the one that the teacher saw here?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, directions, pooled, rows
from distill.options import whole
from distill.temperature import Temperature

if TYPE_CHECKING:
    from distill.pairs import Lesson


class Contrastive(FeatureLoss):
    """InfoNCE between the embeddings of student and teacher, in units of what guessing costs.

    An embedding is a cell of the map, averaged and of length 1. The student's is to be more like the teacher's of the
    same image and cell (the positive) than like the teacher's of all other cells and images of the batch (the
    negatives): a cross-entropy over cosines / temperature, divided by the logarithm of the number of candidates, so
    that 1 is what a blank student pays in a batch of any size. BatchNorm before it takes off what all embeddings have
    in common, which would make every negative look alike. Each process of a distributed run draws its negatives from
    its own batch.

    It is a cross-entropy, not a distance: for equal maps it is not 0, because neighbours resemble each other, and the
    student is drawn on, away from them. The paper contrasts whole images against a memory of thousands; positions
    supply negatives in one batch.

    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699;
    van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, arXiv:1807.03748
    (InfoNCE).

    Args:
        temperature: what cosines are divided by.
        positions: cells an image, at most; memory grows as the square of batch times positions.
    """

    adapter = "conv_bn"
    default_weight = 0.05

    def __init__(self, temperature: Any = 0.1, positions: int = 64) -> None:
        super().__init__()
        self.temperature = Temperature("feature loss 'contrastive'", temperature)
        self.positions = whole("feature loss 'contrastive': positions", positions)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over the student's embeddings."""
        own, shown = self._embeddings(student), self._embeddings(teacher.detach())
        logits = self.temperature.soften(own @ shown.mT)
        candidates = torch.arange(len(own), device=own.device)
        return F.cross_entropy(logits, candidates) / math.log(max(2, len(own)))

    def _embeddings(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * positions, C)."""
        return directions(rows(pooled(x.float(), self.positions)).flatten(0, 1))
