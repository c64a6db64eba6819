"""Which images of the batch are alike?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from distill.features.base import FeatureLoss, directions, rows
from distill.options import choice

if TYPE_CHECKING:
    from distill.pairs import Lesson

KINDS = ("rows", "cosine")


class BatchSimilarity(FeatureLoss):
    """Squared difference of the similarities between the images of a batch, each image being its whole map.

    Published as the sum over the matrix divided by B²; with rows of length 1 that shrinks as the batch grows, so
    here it is the mean over rows of their squared distance, B times as much, between 0 and 4. Each process of a
    distributed run compares the images of its own batch, so a smaller batch a device is another, poorer relation; a
    batch of one image has none, and the value is 0. Needs no common channels: no adapter.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.

    Args:
        kind: `rows`, as published: inner products of the maps, and each image's row of them with length 1. `cosine`:
            cosines between the maps, so that a loud image is not everyone's likest; a mean over all pairs.
    """

    adapter = None
    default_weight = 0.04

    def __init__(self, kind: str = "rows") -> None:
        super().__init__()
        self.kind = choice("feature loss 'batch_similarity': kind", kind, KINDS)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) -> scalar, a mean over the images of the batch."""
        differences = (self._similarities(student) - self._similarities(teacher.detach())).square()
        return differences.mean() if self.kind == "cosine" else differences.sum(1).mean()

    def _similarities(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, B)."""
        images = rows(x).float().flatten(1)
        if self.kind == "cosine":
            images = directions(images)
            return images @ images.mT
        return directions(images @ images.mT)
