"""Which differences matter is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from distill.features.base import FeatureLoss, rows

if TYPE_CHECKING:
    from typing_extensions import Self

    from distill.pairs import Lesson


class AdaptiveAttention(FeatureLoss):
    """Mean squared difference of the maps after both were multiplied by a learned mask over positions.

    The mask is the sigmoid of a 1x1 convolution of |teacher - student|, divided by its mean over each image. Without
    that, its best value is 0 everywhere, and the loss vanishes with nothing learned. With a mean of 1, no mask brings
    the loss below the harmonic mean of the positions' squared errors (reached by a mask in proportion to 1 / error):
    maps that differ everywhere by as much cost what they cost without a mask. What the mask can do is look away from
    the few positions that are hopeless. It looks at the maps, but its gradient goes to its convolution only: the
    student gets better by coming nearer to the teacher, not by steering the mask.

    Source: the attention-guided distillation of Zhang and Ma, "Improve Object Detection with Feature-based Knowledge
    Distillation: Towards Accurate and Efficient Detectors", ICLR 2021, with a learned mask instead of the maps' mean
    magnitudes; the division is ours.

    Args:
        channels: of the teacher's map.
    """

    adapter = "conv_bn"
    default_weight = 0.025

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = nn.Linear(channels, 1)  # a 1x1 convolution, on maps that are rows

    @classmethod
    def from_pair(cls, channels: int, stride: int, **options: Any) -> Self:
        return cls(channels, **options)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over everything."""
        student, teacher = rows(student).float(), rows(teacher).detach().float()
        mask = self._normalised(self.mask((teacher - student.detach()).abs_()).squeeze(2))
        errors = F.mse_loss(student, teacher, reduction="none").mean(2)  # (B, HW)
        return (mask.square() * errors).mean()  # (m t - m s)^2 = m^2 (t - s)^2

    @staticmethod
    def _normalised(logits: Tensor) -> Tensor:
        """(B, HW) -> sigmoid over its mean, 1 on average over each row; also where every sigmoid is 0 in float32."""
        return logits.shape[1] * F.logsigmoid(logits).softmax(dim=1)
