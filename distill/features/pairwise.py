"""How alike are any two regions of the image?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, directions, rows
from distill.options import whole

if TYPE_CHECKING:
    from distill.pairs import Lesson


class PairwiseSimilarity(FeatureLoss):
    """Mean squared difference of the cosine similarities between every two regions of one image.

    Regions are the cells of a grid over which maps are averaged, so this is about the coarse layout; how each position
    ranks all others is what `position_similarity` compares. Similarities need no common channels: no adapter. Values
    lie between 0 and 4, usually far below 1; the paper's weight is 10.

    Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv:1903.04197.

    Args:
        grid: rows and columns of regions; maps with fewer are compared as they are.
    """

    adapter = None
    default_weight = 0.05

    def __init__(self, grid: int = 8) -> None:
        super().__init__()
        self.grid = whole("feature loss 'pairwise': grid", grid)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) -> scalar, a mean over images and pairs of regions."""
        return F.mse_loss(self._similarities(student), self._similarities(teacher.detach()))

    def _similarities(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, R, R) of the R regions."""
        grid = min(self.grid, x.shape[2]), min(self.grid, x.shape[3])
        regions = directions(rows(F.adaptive_avg_pool2d(x.float(), grid)))
        return torch.bmm(regions, regions.mT)
