"""Where does each channel fire?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from distill.features.base import FeatureLoss, rows
from distill.options import positive

if TYPE_CHECKING:
    from distill.pairs import Lesson


class ChannelWiseDistillation(FeatureLoss):
    """KL divergence between the spatial distributions of corresponding channels.

    Each channel is softened over its H*W positions, so the student learns where a channel fires
    rather than how strongly.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.

    Args:
        temperature: softens both distributions.
    """

    adapter = "conv_bn"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("feature loss 'cwd': temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar, a mean over images and channels."""
        student = rows(student).float() / self.temperature  # (B, HW, C); float32 under autocast
        teacher = rows(teacher).detach().float() / self.temperature
        divergence = F.kl_div(student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True)
        return self.temperature**2 * divergence / (student.shape[0] * student.shape[2])
