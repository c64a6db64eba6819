"""The student's map, with holes, must be enough to make the teacher's from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.features.base import FeatureLoss, rows
from distill.options import share
from utils.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

    from distill.pairs import Lesson


class MaskedGeneration(FeatureLoss):
    """Mean squared difference between the teacher's map and one that two convolutions generate from the student's, most
    of whose positions are hidden (in all channels at once, anew in each step).

    What is hidden has to be told by its surroundings, so the student learns maps that carry their context; it need not
    look like the teacher itself. The generating part learns with it and is thrown away after training.

    Two things differ from the paper. Its squared errors are sums over channels and positions, a mean over images only,
    times 2e-5 (one-stage detectors); as a mean over everything that weight is 2e-5 * C * H * W, which is 8 for a map of
    256 * 40 * 40. And it compares raw maps; behind BatchNorm without affine no loud channel decides, and the value is
    the share of the teacher's variance that cannot be generated, at first about 1, whatever the teacher: so one weight
    suits them all.

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv:2205.01529.

    Args:
        channels: of the teacher's map.
        mask: probability with which a position is hidden; the paper's for one-stage detectors (two-stage: 0.45).
    """

    adapter = "conv_bn"
    default_weight = 0.6

    def __init__(self, channels: int, mask: float = 0.65) -> None:
        super().__init__()
        self.mask = share("feature loss 'mgd': mask", mask)
        if self.mask == 1:
            raise UserError("feature loss 'mgd': mask 1 hides everything, which leaves nothing to generate from")
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    @classmethod
    def from_pair(cls, channels: int, stride: int, **options: Any) -> Self:
        return cls(channels, **options)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over everything."""
        student = student.float()
        seen = torch.rand_like(student[:, :1]) >= self.mask  # (B, 1, H, W)
        return F.mse_loss(rows(self.generate(student * seen)), rows(teacher).detach().float())
