"""The student's map shall be the teacher's, value by value, in the teacher's own units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows

if TYPE_CHECKING:
    from distill.pairs import Lesson


class L1(FeatureLoss):
    """Mean absolute difference of the raw maps: every difference pulls as hard as every other.

    Nothing is normalised, so channels count as much as they are loud in the teacher; `mimic` is the normalised squared
    one.

    Source: hints as in Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
    """

    adapter = "conv"
    default_weight = 0.1

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over everything."""
        return F.l1_loss(rows(student).float(), rows(teacher).detach().float())


class L2(FeatureLoss):
    """Mean squared difference of the raw maps; see `L1`.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
    """

    adapter = "conv"
    default_weight = 0.025

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over everything."""
        return F.mse_loss(rows(student).float(), rows(teacher).detach().float())
