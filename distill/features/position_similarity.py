"""Which other positions does each position resemble most?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, directions, pooled, rows
from distill.options import whole
from distill.temperature import Temperature

if TYPE_CHECKING:
    from distill.pairs import Lesson


class PositionSimilarity(FeatureLoss):
    """KL divergence of each position's distribution over the others: a softmax over its cosine similarities to them.

    Unlike `pairwise`, which wants every similarity to have the teacher's value, this asks which others a position
    resembles most: few and near ones decide at a low temperature, the rest hardly counts, and what is added to all of
    a row (one side's features all resemble each other more) is not felt. A position is not compared with itself: that
    similarity is always 1 and would take most of the softmax. Needs no common channels, so there is no adapter.
    The divergence is not multiplied by T², as logits are bounded here; the paper does not either.

    Source: Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022,
    arXiv:2204.06986 (its relation between pixels, here within each image).

    Args:
        temperature: what similarities are divided by before the softmax.
        positions: maps of more positions are averaged over cells down to at most so many: memory grows as their square.
    """

    adapter = None
    default_weight = 0.004

    def __init__(self, temperature: Any = 0.1, positions: int = 256) -> None:
        super().__init__()
        self.temperature = Temperature("feature loss 'position_similarity'", temperature)
        self.positions = whole("feature loss 'position_similarity': positions", positions)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) -> scalar, a mean over images and positions."""
        own, shown = self._ranking(student), self._ranking(teacher.detach())
        divergence = F.kl_div(own, shown, reduction="sum", log_target=True)
        return divergence / (own.shape[0] * own.shape[1])

    def _ranking(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, P - 1): log-probabilities of each position's resembling each other one."""
        features = directions(rows(pooled(x.float(), self.positions)))
        similarities = torch.bmm(features, features.mT)
        return self.temperature.soften(_without_diagonal(similarities)).log_softmax(2)


def _without_diagonal(x: Tensor) -> Tensor:
    """(B, P, P) -> (B, P, P - 1). In one row of P² values the diagonal is each (P + 1)-th, the last one included."""
    size = x.shape[1]
    return x.flatten(1)[:, :-1].unflatten(1, (size - 1, size + 1))[:, :, 1:].reshape(len(x), size, size - 1)
