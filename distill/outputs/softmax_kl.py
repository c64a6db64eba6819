"""The classic distillation of a classifier, applied to the numbers of a cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.options import choice, share
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.terms import softmax_divergence
from distill.outputs.view import Cells
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch, Prediction


class SoftmaxDivergence(CellsLoss):
    """KL divergence between softmaxes over a cell's numbers, softened by a temperature; a plain mean over cells.

    The softmax sees how a cell's numbers compare, not how high they are; of the heads here, whose scores are sigmoids,
    `kl` and `bckd` tell more. It is what the first distillation recipes for YOLOv3 did, and carries no gain of the
    detection loss.

    Where class lists differ, see `CellsLoss`; the softmax runs over what both have. Unless both heads have anchors,
    scores are compared, of a head with anchors objectness times class, of the strongest anchor of each cell; there is
    no softmax over distances and classes that would mean anything.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Args:
        channels: all (x, y, w, h, objectness and classes in one softmax, which both heads must have), classes, or auto:
            all where both have them, else classes.
        threshold: only cells where the teacher's sigmoid objectness (of heads without: highest score) is at least this,
            and the mean is over them, 0 where there are none; 0 for all cells.
        temperature: divides both sides' logits; the result is multiplied by its square, so gradients keep their size.
            A number or a schedule, see `distill.temperature`.

    Raises:
        UserError: classes alone are compared and there is only one, whose softmax is always 1; all are to be, and a
            head has no anchors.
    """

    default_weight = 0.04

    def __init__(
        self,
        sides: Sides,
        channels: str = "auto",
        threshold: float = 0.0,
        temperature: Any = 3.0,
    ) -> None:
        super().__init__(sides)
        where = "output loss 'softmax_kl'"
        compared = choice(f"{where}: channels", channels, ("all", "classes", "auto"))
        own = "all" if self.both_have_anchors else "classes"
        self.compared = own if compared == "auto" else compared
        if self.compared == "all" and not self.both_have_anchors:
            raise UserError(f"{where}: channels: all needs two heads with anchors; use channels: classes")
        self.threshold = share(f"{where}: threshold", threshold)
        self.temperature = Temperature(where, temperature)
        if self.compared == "classes" and len(set(sides.classes.student)) == 1:
            instead = "channels: all, or " if self.both_have_anchors else ""
            raise UserError(
                f"{where}: channels: classes compares how classes share a cell, but student and teacher have only one "
                f"in common; use {instead}the output loss 'kl'"
            )

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of any two heads -> scalar."""
        total, cells = [], []
        for own, other in self.views(student, taught):
            belief = other.belief()
            trust = self.trust(belief, self.heard(other, belief > BACKGROUND))
            if self.threshold:
                chosen = (belief >= self.threshold).nonzero(as_tuple=True)
                own, other, trust = own.at(chosen), other.at(chosen), trust[chosen]
            total.append((softmax_divergence(*self._compared(own, other), self.temperature) * trust).sum())
            cells.append(trust.numel())
        return torch.stack(total).sum() / max(1, sum(cells))

    def _compared(self, student: Cells, teacher: Cells) -> tuple[Tensor, Tensor]:
        if self.compared == "all":
            return self.channels(student, teacher)
        return (self.classes if self.both_have_anchors else self.scores)(student, teacher)
