"""The student's map shall be the teacher's where the teacher sees an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows
from distill.features.masks import score_map

if TYPE_CHECKING:
    from distill.pairs import Lesson

# of the teacher's score, below it a position has no weight: such positions are nearly all, and thousands of them would
# together outweigh a few objects
BACKGROUND = 0.01


class ScoreWeighted(FeatureLoss):
    """Squared difference of the raw maps, weighted by the teacher's highest class score at each position.

    The scores are those of its head at this stride, the highest over classes and anchors (objectness included), so
    labels are not needed and any two class lists fit. A mean weighted by the scores; where the teacher sees next to
    nothing the weights do not add up to 1, and the mean stays small instead of inflating noise.

    Source: Zhixing et al., "Distilling Object Detectors with Feature Richness", NeurIPS 2021, arXiv:2111.00674.
    """

    adapter = "conv"
    needs_prediction = True
    default_weight = 0.006

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a weighted mean over positions of all images."""
        scores = score_map(lesson, *student.shape[2:]).flatten(1)  # (B, HW)
        scores = scores * (scores > BACKGROUND)
        errors = F.mse_loss(rows(student).float(), rows(teacher).detach().float(), reduction="none").mean(2)
        return (scores * errors).sum() / scores.sum().clamp(min=1)  # 1 position of which it is sure
