"""Where the teacher's channel is above its average, the student's shall be, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows, standardise

if TYPE_CHECKING:
    from distill.pairs import Lesson


class PearsonCorrelation(FeatureLoss):
    """1 - r, r being the Pearson correlation of corresponding channels over the positions of all images.

    Computed as what it is equal to, half the mean squared difference of the maps standardised per channel over the
    batch, because that takes half the time and is exactly 0 for equal maps, dead channels included. So neither the
    strength nor the zero of a channel matters, and teachers of another family can be used. Values lie between 0 and 2,
    1 for unrelated maps. (`mimic`, which standardises in its adapter, is twice this.)

    The published weights, 10 for one-stage detectors and 6 for two-stage ones, stand beside the bigger losses of those.
    There the adapter is left out where channels agree; here it is always there.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
    NeurIPS 2022, arXiv:2207.02039.
    """

    adapter = "conv"
    default_weight = 0.1

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over channels."""
        return F.mse_loss(rows(standardise(student)), rows(standardise(teacher.detach()))) / 2
