"""A head that finds widths and heights by choosing among bins, then correcting."""

from __future__ import annotations

import torch
from torch import Tensor

from models.heads.anchor import EDGE
from models.heads.implicit import IDetect

BINS = 21  # between 0 and 4 anchors
LARGEST = 4.0  # anchors: what the square of twice a sigmoid reaches
REACH = 2.0  # bins: how far the correction goes, from one side to the other


class IBin(IDetect):
    """`IDetect` with 22 numbers for a width and 22 for a height: a correction, and a score for each of 21 bins.

    What it puts out is what `Detect` does, (B, A, H, W, 5 + C): the width and height that bin and correction say, as
    the logits which mean the same there. So decoding, losses and distillation need not know; a gradient reaches the
    correction alone, not the choice among bins.

    Source: the head of this name in the model files of Wang et al., "YOLOv7", CVPR 2023, arXiv:2207.02696.
    """

    hidden_outputs = 2 * (1 + BINS) - 2

    def level(self, index: int, features: Tensor) -> Tensor:
        centre, width, height, scores = (
            super().level(index, features).split((2, 1 + BINS, 1 + BINS, 1 + self.num_classes), dim=-1)
        )
        return torch.cat((centre, _side_logit(width), _side_logit(height), scores), dim=-1)


def _side_logit(x: Tensor) -> Tensor:
    """(..., 1 + BINS) logits -> (..., 1), the logit t for which (2 sigmoid(t))^2 is the side in anchors."""
    correction, bins = x[..., :1].sigmoid(), x[..., 1:]
    step = LARGEST / BINS
    middle = (bins.argmax(dim=-1, keepdim=True) + 0.5) * step
    side = (middle + (correction - 0.5) * REACH * step).clamp(0, LARGEST)
    return ((side / LARGEST).clamp(min=EDGE**2).sqrt()).logit(EDGE)
