"""Small heads of every kind, the gains of a loss between them, and what they may put out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import distill.gains
from models.heads.anchor_free import AnchorFreeDetect
from utils.types import Prediction


class Gains(NamedTuple):
    box: float = 0.05
    obj: float = 1.0
    cls: float = 0.5


ANCHORS = {8: [[10, 13], [16, 30]], 16: [[30, 61], [62, 45]], 32: [[116, 90], [156, 198]], 64: [[300, 200], [400, 500]]}


def three_levels(gains: Gains) -> distill.gains.Gains:
    """As an output loss has them, of a detection loss with these."""
    return distill.gains.Gains(*(3 * gain for gain in gains))


class TinyHead(nn.Module):
    def __init__(self, channels: int, strides: Sequence[int], num_classes: int, anchors: dict[int, list]) -> None:
        super().__init__()
        self.num_classes, self.num_anchors, self.num_levels = num_classes, 2, len(strides)
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.float32), persistent=False)
        pixels = torch.tensor([anchors[stride] for stride in strides], dtype=torch.float32)
        self.register_buffer("anchors", pixels / self.strides[:, None, None])
        self.m = nn.ModuleList(nn.Conv2d(channels, 2 * (5 + num_classes), 1) for _ in strides)

    @property
    def anchors_px(self) -> Tensor:
        return self.anchors * self.strides[:, None, None]

    def use(self, branch: str) -> None:
        """There is one."""

    def dense(self, prediction: Prediction) -> tuple[Tensor, ...]:
        return prediction.levels

    def forward(self, maps: Sequence[Tensor]) -> Prediction:
        levels = (convolution(x).unflatten(1, (2, -1)) for convolution, x in zip(self.m, maps, strict=True))
        return Prediction(tuple(level.permute(0, 1, 3, 4, 2).contiguous() for level in levels))


KINDS = {  # of heads; what a head without anchors is made with
    "anchors": {},
    "dfl": {"reg_max": 8},
    "more bins": {"reg_max": 12},
    "direct": {"reg_max": 1},
}


def make_head(kind: str, num_classes: int = 3, strides: Sequence[int] = (8, 16, 32)) -> nn.Module:
    """A head of one of `KINDS`."""
    if kind == "anchors":
        return TinyHead(4, strides, num_classes, ANCHORS)
    return AnchorFreeDetect(num_classes, [4] * len(strides), strides, **KINDS[kind])


def make_levels(
    kind: str, num_classes: int = 3, images: int = 2, strides: Sequence[int] = (8, 16, 32), size: int = 64
) -> Prediction:
    """Raw levels of such a head: scores as wide apart as those of a trained one, boxes with an area to speak of."""
    levels = []
    for stride in strides:
        if kind == "anchors":
            level = 3 * torch.randn(images, 2, size // stride, size // stride, 5 + num_classes)
            level[..., 2:4] /= 3
        else:
            bins = KINDS[kind]["reg_max"]
            sides = torch.randn(images, 4 * bins, size // stride, size // stride)
            sides = sides.abs() + 0.5 if bins == 1 else sides
            level = torch.cat((sides, 3 * torch.randn(images, num_classes, *sides.shape[2:]) - 2), dim=1)
        levels.append(level)
    return Prediction(tuple(levels))
