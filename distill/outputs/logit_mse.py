"""Raw numbers beside raw numbers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from distill.outputs.cellwise import BACKGROUND, CellsLoss
from utils.types import Batch, Prediction


class LogitMSE(CellsLoss):
    """Mean squared error of the raw logits: boxes, objectness and classes of every cell alike.

    The plainest of all, as a baseline. Logits are unbounded and background is most of what there is: of two logits -8
    and -12 both say "nothing", and their difference counts more than one between objects. A plain mean over cells and
    channels that carries no gain of the detection loss.

    Where class lists differ, see `CellsLoss`.

    Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv:1312.6184.
    """

    default_weight: ClassVar[float] = 0.25

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        total, numbers = [], 0
        for own, other in self.level_pairs:
            level, teacher = student.levels[own], taught.levels[other].detach()
            belief = teacher[..., 4].float().sigmoid()
            trust = self.trust(belief, self.heard(teacher, belief > BACKGROUND))
            mine, theirs = self.channels(level, teacher)
            squares = (mine.float() - theirs.float()).square().sum(-1)  # (B, A, H, W)
            total.append((squares * trust).sum())
            numbers += mine.numel()
        return torch.stack(total).sum() / max(1, numbers)
