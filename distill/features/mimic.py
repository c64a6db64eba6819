"""The student's map shall be the teacher's, value by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows

if TYPE_CHECKING:
    from distill.pairs import Lesson


class Mimic(FeatureLoss):
    """Mean squared difference of the normalised maps.

    Normalisation (the BatchNorm of the adapter) is what makes it usable on detectors: raw maps let a few loud
    channels decide, and the loss outgrow the detection loss. Values lie between 0 and 4, 2 for unrelated maps.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
    """

    adapter = "conv_bn"
    default_weight = 0.05

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over everything."""
        return F.mse_loss(rows(student).float(), rows(teacher).detach().float())
