"""How does a network get from one layer to the next?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss
from distill.features.gram import products

if TYPE_CHECKING:
    from distill.pairs import Lesson


class FlowOfSolution(FeatureLoss):
    """Mean squared difference of the FSP matrices ("flow of solution procedure"): for each image, the mean over
    positions of every product of a channel of one layer and a channel of the next.

    It compares two pairs of layers at once, neighbours among those that are compared. The finer maps come to the
    coarser one's grid by the greatest of the values that fall together, as in the paper. The paper has layers of
    equal width on both sides; here an adapter before each layer makes them so, and behind its BatchNorm an entry
    is near a correlation, of a size that depends neither on channels nor on positions.

    Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017.
    """

    adapter = "conv_bn"
    spans = 2
    default_weight = 0.03

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor], lesson: Lesson) -> Tensor:
        """Two maps (B, C1, H1, W1), (B, C2, H2, W2) of each side -> scalar, a mean over images and products."""
        return F.mse_loss(_flow(*students), _flow(*(teacher.detach() for teacher in teachers)))


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """(B, C1, H1, W1) and (B, C2, H2, W2) -> (B, C1, C2)."""
    grid = [min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True)]
    return products(*(x if list(x.shape[2:]) == grid else F.adaptive_max_pool2d(x, grid) for x in (first, second)))
