"""The classic distillation of a classifier, applied to the numbers of a cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.options import choice, share
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.terms import softmax_divergence
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch, Prediction


class SoftmaxDivergence(CellsLoss):
    """KL divergence between softmaxes over a cell's numbers, softened by a temperature; a plain mean over cells.

    The softmax sees how a cell's numbers compare, not how high they are; of the heads here, whose scores are sigmoids,
    `kl` and `bckd` tell more. It is what the first distillation recipes for YOLOv3 did, and carries no gain of the
    detection loss.

    Where class lists differ, see `CellsLoss`; the softmax runs over what both have.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Args:
        channels: all (x, y, w, h, objectness and classes in one softmax) or classes.
        threshold: only cells where the teacher's sigmoid objectness is at least this, and the mean is over them, 0
            where there are none; 0 for all cells.
        temperature: divides both sides' logits; the result is multiplied by its square, so gradients keep their size.
            A number or a schedule, see `distill.temperature`.

    Raises:
        UserError: classes alone are compared and there is only one, whose softmax is always 1.
    """

    default_weight = 0.04

    def __init__(
        self,
        sides: Sides,
        channels: str = "all",
        threshold: float = 0.0,
        temperature: Any = 3.0,
    ) -> None:
        super().__init__(sides)
        where = "output loss 'softmax_kl'"
        self.compared = choice(f"{where}: channels", channels, ("all", "classes"))
        self.threshold = share(f"{where}: threshold", threshold)
        self.temperature = Temperature(where, temperature)
        if self.compared == "classes" and len(set(sides.classes.student)) == 1:
            raise UserError(
                f"{where}: channels: classes compares how classes share a cell, but student and teacher have only one "
                "in common; use channels: all, or the output loss 'kl'"
            )

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        total, cells = [], []
        for own, other in self.level_pairs:
            level, teacher = student.levels[own], taught.levels[other].detach()
            belief = teacher[..., 4].float().sigmoid()
            trust = self.trust(belief, self.heard(teacher, belief > BACKGROUND))
            if self.threshold:
                chosen = (belief >= self.threshold).nonzero(as_tuple=True)
                level, teacher, trust = level[chosen], teacher[chosen], trust[chosen]
            compare = self.channels if self.compared == "all" else self.classes
            total.append((softmax_divergence(*compare(level, teacher), self.temperature) * trust).sum())
            cells.append(trust.numel())
        return torch.stack(total).sum() / max(1, sum(cells))
