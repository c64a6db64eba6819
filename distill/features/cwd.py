"""Where does each channel fire?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.features.base import EPSILON, FeatureLoss, rows
from distill.temperature import Temperature

if TYPE_CHECKING:
    from distill.pairs import Lesson

CACHED = 1 << 18  # values a processor's core keeps near: 1 MiB


class ChannelWiseDistillation(FeatureLoss):
    """KL divergence between the spatial distributions of corresponding channels.

    Each channel is softened over its H*W positions, so the student learns where a channel fires
    rather than how strongly.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.

    Args:
        temperature: softens both distributions; a number, or a mapping that lets it fall over the run.
    """

    adapter = "conv_bn"
    default_weight = 0.05  # as it was measured (docs/results.md)

    def __init__(self, temperature: Any = 1.0) -> None:
        super().__init__()
        self.temperature = Temperature("feature loss 'cwd'", temperature)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over images and channels."""
        return spatial_divergence(student, teacher, self.temperature)

    def standardised(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """The same of maps that are standardised on the way: a fifth less time than doing it first (CPU)."""
        return spatial_divergence(student, teacher, self.temperature, standardise=True)


def spatial_divergence(student: Tensor, teacher: Tensor, temperature: Temperature, standardise: bool = False) -> Tensor:
    """KL of the softmaxes over positions, times the squared temperature: (B, C, H, W) twice -> float32 scalar.

    A mean over images and channels; the gradient reaches the student alone.
    """
    value: Tensor = _SpatialDivergence.apply(rows(student), rows(teacher.detach()), temperature.value, standardise)
    return value


class _SpatialDivergence(torch.autograd.Function):
    """KL(softmax(teacher / T) || softmax(student / T)) over the positions, times T², a mean over images and channels.

    Written out for the sake of time, which here is memory traffic (CPU): one slice of images at a time runs through all
    steps while it lies in the cache, in float32 whatever the maps are in, and always in the same few buffers, since a
    fresh one is paid for page by page. What stays of the forward pass is the one map that the gradient is made of, the
    difference of the distributions. Standardising is only a slope per channel, because a softmax does not feel what is
    added to all positions. Powers are of 2, which take a quarter of the time of those of e.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: Tensor, standardise: bool) -> Tensor:
        """(B, HW, C) twice, in any float format -> scalar."""
        moments = _moments if standardise else _unmoved
        (mean, scale), (_, other_scale) = moments(student), moments(teacher)
        steepness = math.log2(math.e) / temperature
        lack = torch.empty_like(student, dtype=torch.float32)  # teacher's probability - student's
        total, tilt = torch.zeros_like(temperature), torch.zeros_like(mean)
        buffers = _buffers(student, 4)
        for mine, other, out in zip(_slices(student), _slices(teacher), _slices(lack), strict=True):
            own, p, q, lead = (buffer[: len(mine)] for buffer in buffers)
            _exponents(mine, steepness * scale, own)
            _exponents(other, steepness * other_scale, p)
            torch.sub(p, own, out=lead)
            torch.exp2(own, out=q)
            p.exp2_()
            q_sum, p_sum = q.sum(1, keepdim=True), p.sum(1, keepdim=True)
            p.div_(p_sum)
            total += math.log(2) * torch.dot(p.flatten(), lead.flatten()) + (q_sum / p_sum).log_().sum()
            torch.addcmul(p, q, -1 / q_sum, out=out)
            if standardise:
                tilt += own.mul_(out).flatten(0, 1).sum(0)
        images, positions, channels = student.shape
        tilt /= steepness * images * positions  # mean over a channel of standardised value times lack
        weight = temperature / (images * channels)
        ctx.save_for_backward(student, lack, mean, scale, tilt, weight)
        return temperature * weight * total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As through BatchNorm: (lack - its mean, which is 0 - standardised value * tilt) * -scale."""
        student, lack, mean, scale, tilt, weight = ctx.saved_tensors
        weight = gradient * weight * scale
        slope = weight * tilt * scale
        result = torch.empty_like(student)
        (buffer,) = _buffers(student, 1)
        for x, change, out in zip(_slices(student), _slices(lack), _slices(result), strict=True):
            rising = buffer[: len(x)].copy_(x)
            torch.addcmul(-mean * slope, rising, slope, out=rising)
            out.copy_(rising.addcmul_(change, weight, value=-1))
        return result, None, None, None


def _images(x: Tensor) -> int:
    """How many images of (B, HW, C) lie in a CPU's cache at a time; on other devices all."""
    return max(1, min(CACHED // x[0].numel(), len(x))) if x.device.type == "cpu" else len(x)


def _slices(x: Tensor) -> Sequence[Tensor]:
    return x.split(_images(x))


def _buffers(x: Tensor, count: int) -> list[Tensor]:
    """Float32, as large as the largest slice."""
    return [x.new_empty(_images(x), *x.shape[1:], dtype=torch.float32) for _ in range(count)]


def _exponents(x: Tensor, slope: Tensor, out: Tensor) -> None:
    """x less the greatest of its image and channel, so that powers of it do not overflow, times slope."""
    out.copy_(x)
    torch.addcmul(-out.amax(1, keepdim=True) * slope, out, slope, out=out)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, HW, C) -> mean and 1 / standard deviation of each channel over all images and positions, (C,), float32."""
    if x.device.type == "cpu":  # what BatchNorm itself counts with: a twentieth of the time of `var_mean` there
        running = x.new_zeros(2, x.shape[2], dtype=torch.float32)  # these decide the format of what comes out
        mean, variance = torch.batch_norm_update_stats(x[:, None].permute(0, 3, 1, 2), running[0], running[1], 0.0)
    else:
        variance, mean = torch.var_mean(x.float(), (0, 1), correction=0)
    return mean, (variance + EPSILON).rsqrt_()


def _unmoved(x: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of channels that stay as they are."""
    return x.new_zeros(x.shape[2], dtype=torch.float32), x.new_ones(x.shape[2], dtype=torch.float32)
