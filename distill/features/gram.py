"""Which channels fire together?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows

if TYPE_CHECKING:
    from distill.pairs import Lesson


class Gram(FeatureLoss):
    """Mean squared difference of the Gram matrices: for each image, every two channels' mean product over positions.

    What fires with what is compared, and where is not, so this suits as a companion of a loss that looks at places.
    Behind BatchNorm an entry is a correlation, wherefore the value depends neither on the number of channels nor on
    that of positions; the 1 / (4 C² (HW)²) of the style loss, which is for sums of raw products, becomes a plain mean.

    Source: Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016 (the matrix,
    arXiv:1508.06576); Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
    arXiv:1707.01219 (its use between teacher and student: there it is the second-order kernel).
    """

    adapter = "conv_bn"
    default_weight = 0.02

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over images and pairs of channels."""
        return F.mse_loss(products(student, student), products(teacher.detach(), teacher.detach()))


def products(x: Tensor, y: Tensor) -> Tensor:
    """(B, C, H, W) and (B, C', H, W) -> (B, C, C'): mean over positions of each channel's product with each."""
    x, y = rows(x).float(), rows(y).float()
    return torch.bmm(x.mT, y) / x.shape[1]
