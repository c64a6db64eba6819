"""CutMix between maps: a rectangle of each image's map is that of another image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """A rectangle in [0, 1] of the map's height and width, and from how many images before it is taken."""

    shift: int
    top: float
    left: float
    bottom: float
    right: float

    def paste(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same with the rectangle, rounded to whole positions, of other images."""
        height, width = x.shape[2:]
        rows = slice(round(self.top * height), round(self.bottom * height))
        columns = slice(round(self.left * width), round(self.right * width))
        mixed = x.clone()
        mixed[:, :, rows, columns] = x[:, :, rows, columns].roll(self.shift, 0)
        return mixed


def draw_cut(chance: float, images: int) -> Cut | None:
    """With this chance a cut for maps of so many images, else None.

    The rectangle's share of the area is uniform in [0, 1] and so is its centre, as in Yun et al., "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019, arXiv:1905.04899; what
    sticks out is cut off. Drawn from torch's CPU generator, always five numbers: a resumed run draws the same, and no
    GPU is waited for.
    """
    luck, area, y, x, shift = torch.rand(5, device="cpu").tolist()
    if luck >= chance or images < 2:
        return None
    half = math.sqrt(area) / 2
    top, bottom = max(0.0, y - half), min(1.0, y + half)
    left, right = max(0.0, x - half), min(1.0, x + half)
    return Cut(1 + int(shift * (images - 1)), top, left, bottom, right)
