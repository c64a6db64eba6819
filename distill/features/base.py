"""What every feature loss is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

    from distill.pairs import Lesson

EPSILON = 1e-5  # under the variance of a standardised channel, as BatchNorm has it


class FeatureLoss(nn.Module):
    """Compares two maps: `loss(student, teacher, lesson) -> scalar`; see the shelf's docstring for the contract."""

    adapter: ClassVar[str | None] = "conv_bn"  # what stands before the loss: "conv_bn", "conv" or None
    needs_prediction: ClassVar[bool] = False  # whether `lesson.taught` must be there (the teacher then runs its head)
    needs_boxes: ClassVar[bool] = False  # whether it looks at `lesson.batch.targets` (of labelled images)
    spans: ClassVar[int] = 1  # layers of each side that it compares at once: 1, or 2 (`distill.pairs.FlowPair`)
    default_weight: ClassVar[float] = 1.0  # where a recipe gives none

    @classmethod
    def from_pair(cls, channels: int, stride: int, **options: Any) -> Self:
        """A loss for maps of so many channels (the teacher's, behind an adapter) at this stride.

        Losses with learning parts of their own override it; most do not care what they compare.
        """
        return cls(**options)

    def standardised(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """The loss of two maps in any float format, after both are standardised: what "conv_bn" asks for.

        A loss that can do both in one go overrides it.
        """
        value: Tensor = self(standardise(student), standardise(teacher), lesson)
        return value


def standardise(x: Tensor) -> Tensor:
    """(B, C, H, W) -> float32, each channel with mean 0 and variance 1 over the batch.

    BatchNorm without affine and without memory: no map can win by its scale, and nothing of the teacher is kept.
    """
    return F.batch_norm(float_map(x), None, None, training=True, eps=EPSILON)


def float_map(x: Tensor) -> Tensor:
    """In float32 and in channels_last memory: batch statistics take a third of the time there (CPU)."""
    return x.to(torch.float32, memory_format=torch.channels_last)


def rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C).

    Maps lie in memory this way (channels_last), so nothing is copied, and the gradient lies so too; with it in the
    other order the backward pass of a BatchNorm takes ten times as long (CPU).
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def directions(x: Tensor) -> Tensor:
    """Vectors along the last axis, with length 1; those shorter than 1e-4 shorter.

    A blank map stays blank, and its gradient is at most 10 000 times what comes in.
    """
    return F.normalize(x, dim=-1, eps=1e-4)


def pooled(x: Tensor, positions: int) -> Tensor:
    """(B, C, H, W) averaged over the cells of a grid of the same shape, so that at most `positions` are left."""
    height, width = x.shape[2:]
    shrink = math.sqrt(min(1.0, positions / (height * width)))
    rows_left = max(1, min(round(height * shrink), positions))
    grid = rows_left, max(1, min(round(width * shrink), positions // rows_left))
    return x if grid == (height, width) else F.adaptive_avg_pool2d(x, grid)
