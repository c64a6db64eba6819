"""Where does each channel fire?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.features.base import EPSILON, FeatureLoss, float_map, rows
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
    default_weight = 0.02

    def __init__(self, temperature: Any = 1.0) -> None:
        super().__init__()
        self.temperature = Temperature("feature loss 'cwd'", temperature)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over images and channels."""
        return self._divergence(student, teacher, False)

    def standardised(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """The same of maps that are standardised on the way: a fifth less time than doing it first (CPU)."""
        return self._divergence(student, teacher, True)

    def _divergence(self, student: Tensor, teacher: Tensor, standardise: bool) -> Tensor:
        maps = (rows(float_map(x)) for x in (student, teacher.detach()))
        value: Tensor = _SpatialDivergence.apply(*maps, self.temperature.value, standardise)
        return value


class _SpatialDivergence(torch.autograd.Function):
    """KL(softmax(teacher / T) || softmax(student / T)) over the positions, times T², a mean over images and channels.

    Written out for the sake of time, which here is memory traffic (CPU): one slice of images at a time runs through all
    steps while it lies in the cache, and what stays of the forward pass is the one map that the gradient is made of,
    the difference of the distributions. Standardising is only a slope per channel, because a softmax does not feel
    what is added to all positions. Powers are of 2, which take a quarter of the time of those of e.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: Tensor, standardise: bool) -> Tensor:
        """(B, HW, C) twice, float32 -> scalar."""
        moments = _moments if standardise else _unmoved
        (mean, scale), (_, other_scale) = moments(student), moments(teacher)
        steepness = math.log2(math.e) / temperature
        excess = torch.empty_like(student)  # student's probability - teacher's
        total, tilt = torch.zeros_like(temperature), torch.zeros_like(mean)
        for mine, other, out in zip(_slices(student), _slices(teacher), _slices(excess), strict=True):
            own, shown = _exponents(mine, steepness * scale), _exponents(other, steepness * other_scale)
            lead = shown - own
            q, p = own.exp2(), shown.exp2_()
            q_sum, p_sum = q.sum(1, keepdim=True), p.sum(1, keepdim=True)
            p.div_(p_sum)
            total += math.log(2) * torch.dot(p.flatten(), lead.flatten()) + (q_sum / p_sum).log_().sum()
            torch.sub(q.div_(q_sum), p, out=out)
            if standardise:
                tilt += own.mul_(out).flatten(0, 1).sum(0)
        images, positions, channels = student.shape
        tilt /= steepness * images * positions  # mean over a channel of standardised value times excess
        weight = temperature / (images * channels)
        ctx.save_for_backward(student, excess, mean, scale, tilt, weight)
        return temperature * weight * total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As through BatchNorm: (excess - its mean, which is 0 - standardised value * tilt) * scale."""
        student, excess, mean, scale, tilt, weight = ctx.saved_tensors
        weight = gradient * weight * scale
        slope = -weight * tilt * scale
        result = torch.empty_like(student)
        for x, change, out in zip(_slices(student), _slices(excess), _slices(result), strict=True):
            torch.addcmul(-mean * slope, x, slope, out=out).addcmul_(change, weight)
        return result, None, None, None


def _slices(x: Tensor) -> Sequence[Tensor]:
    """(B, HW, C) -> as many images at a time as lie in a CPU's cache; on other devices all at once."""
    images = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
    return x.split(images)


def _exponents(x: Tensor, slope: Tensor) -> Tensor:
    """x less the greatest of its image and channel, so that powers of it do not overflow, times slope."""
    return (x - x.amax(1, keepdim=True)).mul_(slope)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, HW, C) -> mean and 1 / standard deviation of each channel over all images and positions, (C,)."""
    if x.device.type == "cpu":  # what BatchNorm itself counts with: a twentieth of the time of `var_mean` there
        mean, variance = torch.batch_norm_update_stats(x[:, None].permute(0, 3, 1, 2), None, None, 0.0)
    else:
        variance, mean = torch.var_mean(x, (0, 1), correction=0)
    return mean, (variance + EPSILON).rsqrt_()


def _unmoved(x: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of channels that stay as they are."""
    return x.new_zeros(x.shape[2]), x.new_ones(x.shape[2])
