"""Where does the map as a whole fire?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows

if TYPE_CHECKING:
    from distill.pairs import Lesson


class AttentionTransfer(FeatureLoss):
    """Squared distance of the attention maps: the sum of squares over channels, with length 1 for each image.

    Needs no adapter: any numbers of channels sum up to one attention map. Values lie between 0 and 2, on maps of any
    size. The paper's β/2 of 500 weighs a mean over positions, which is 500 / HW of this.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", ICLR 2017, arXiv:1612.03928.
    """

    adapter = None
    default_weight = 0.013

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) -> scalar, a mean over images."""
        return (_attention(student) - _attention(teacher.detach())).square().sum(1).mean()


def _attention(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW), each row of length 1, or 0 for a blank map."""
    return F.normalize(rows(x).float().square().sum(2), dim=1)
