"""What a loss is worth once it is a term: weight, largest value, gradient; and which images count more."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from utils.types import Prediction

LARGEST = 4.0  # times the mean: no single image takes a whole batch


class Weighing(NamedTuple):
    """Of one imitation term; what every method's options may say. Schedule and balance come after it."""

    weight: float = 1.0
    clip: float | None = None  # the largest value: a larger one is scaled down to it, and its gradient with it
    gradient_gain: float = 1.0  # multiplies the gradient and leaves the value, as reported and clipped

    def scaled(self, factor: float) -> Weighing:
        """For one of several teachers."""
        return self._replace(weight=factor * self.weight, clip=None if self.clip is None else factor * self.clip)

    def __call__(self, value: Tensor) -> Tensor:
        """A float32 scalar -> the term."""
        value = self.weight * value.float()
        if self.clip is not None:
            value = value * (self.clip / value.detach().clamp(min=self.clip))
        if self.gradient_gain != 1:
            value = value.detach() + self.gradient_gain * (value - value.detach())
        return value


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied image by image."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (weights,) = ctx.saved_tensors
        return gradient * weights.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)), None


def emphasised(
    prediction: Prediction, maps: dict[int, Tensor], weights: Tensor
) -> tuple[Prediction, dict[int, Tensor]]:
    """The student's prediction and maps, with gradients multiplied by one number an image, (B,)."""
    levels, aux = (tuple(_ScaledGradient.apply(level, weights) for level in part) for part in prediction)
    return Prediction(levels, aux), {layer: _ScaledGradient.apply(x, weights) for layer, x in maps.items()}


@torch.no_grad()
def difficulty(student: list[Tensor], teacher: list[Tensor], power: float) -> Tensor:
    """How far the student is from the teacher on each image: (B,) with mean 1.

    Measured is the difference of objectness (of heads without: highest score), over all cells, beside what the teacher
    believes in: an image full of objects is not hard for their number.

    Args:
        student, teacher: how sure either is that something is there, logits of matching levels, (B, ...) each.
        power: 0 makes all images equal.
    """
    error = sum((own.float().sigmoid() - other.float().sigmoid()).abs().flatten(1).sum(1)
                for own, other in zip(student, teacher, strict=True))  # fmt: skip
    belief = sum(other.float().sigmoid().flatten(1).sum(1) for other in teacher)
    distance = error / torch.as_tensor(belief).clamp(min=1)
    weights = (distance / distance.mean().clamp(min=1e-6)).clamp(max=LARGEST) ** power
    return weights / weights.mean().clamp(min=1e-6)
