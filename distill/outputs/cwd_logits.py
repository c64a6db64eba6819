"""Where does each class fire?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.features.cwd import spatial_divergence
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.positives import float_level
from distill.outputs.view import Cells
from distill.temperature import Temperature
from utils.types import Batch, Prediction

SILENT = -1e30  # a logit that leaves a position out of a softmax


class ChannelWiseLogits(CellsLoss):
    """KL divergence between the spatial distributions of each class's logits, softened by a temperature.

    A class is softened over the H*W positions of a level, so the student learns where an object of it is rather than
    how sure to be; background weighs next to nothing. A mean over images and classes, a sum over levels, as the terms
    of the feature loss `cwd`; no gain of the detection loss.

    Compared are the logits of the scores that NMS sees; of a cell with several anchors the strongest speaks, so that
    each class has one map. Where class lists differ, only classes that both have are compared. Positions at which the
    teacher sees an object of a class that the student does not have are left out of the softmaxes; where it does not
    know all of the student's classes, so are those at which it sees nothing.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.

    Args:
        temperature: softens both distributions. A number or a schedule, see `distill.temperature`.
    """

    default_weight = 1.0

    def __init__(self, sides: Sides, temperature: Any = 1.0) -> None:
        super().__init__(sides)
        self.temperature = Temperature("output loss 'cwd_logits'", temperature)

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of any two heads -> scalar."""
        with torch.autocast(batch.images.device.type, enabled=False):
            views = [
                (float_level(mine.strongest()), float_level(other.strongest()))
                for mine, other in self.views(student, taught)
            ]
            return torch.stack([self._level(mine, other) for mine, other in views]).sum()

    def _level(self, mine: Cells, other: Cells) -> Tensor:
        maps = [scores[:, 0].permute(0, 3, 1, 2) for scores in self.scores(mine, other)]  # (B, K, H, W)
        if not len(maps[0]):
            return maps[0].sum()
        sees = other.belief() > BACKGROUND  # (B, 1, H, W)
        silent = ~self.heard(other, sees)
        if not self.class_map.teaches_all:
            silent |= ~sees
        nobody = silent.flatten(1).all(1).view(-1, 1, 1, 1)  # of such an image there is nothing to compare
        maps = [x.masked_fill(silent, SILENT).masked_fill(nobody, 0) for x in maps]
        return spatial_divergence(maps[0], maps[1], self.temperature)
