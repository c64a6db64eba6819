"""Raw numbers beside raw numbers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from distill.outputs.cellwise import BACKGROUND, CellsLoss
from utils.types import Batch, Prediction


class LogitMSE(CellsLoss):
    """Mean squared error of the raw logits: boxes, objectness (where there is one) and classes of every cell alike.

    The plainest of all, as a baseline. Logits are unbounded and background is most of what there is: of two logits -8
    and -12 both say "nothing", and their difference counts more than one between objects. A plain mean over cells and
    channels that carries no gain of the detection loss.

    Where class lists differ, see `CellsLoss`.

    Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv:1312.6184.
    """

    needs = ("layout",)
    default_weight: ClassVar[float] = 0.25

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of two heads of one kind -> scalar."""
        total, numbers = [], 0
        for own, other in self.views(student, taught):
            belief = other.belief()
            trust = self.trust(belief, self.heard(other, belief > BACKGROUND))
            mine, theirs = self.channels(own, other)
            squares = (mine.float() - theirs.float()).square().sum(-1)  # (B, A, H, W)
            total.append((squares * trust).sum())
            numbers += mine.numel()
        return torch.stack(total).sum() / max(1, numbers)
