"""Cross-stage-partial blocks: half of the channels pass through a stack of bottlenecks, half go around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks.base import Block, LayerSpec, batch_norm
from models.blocks.conv import Conv, CrossConv


class Bottleneck(Block):
    """`kernel`×`kernel`, then 3×3, added to the input where shapes allow."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
        kernel: int = 1,
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, kernel, 1)
        self.cv2 = Conv(hidden, c_out, 3, 1, groups=groups)
        self.add = shortcut and c_in == c_out

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        """Its row means two 3×3 convolutions in models without anchors: YOLOv3u is larger than YOLOv3."""
        c_out = spec.channels(width)
        options = {"kernel": 3} if spec.anchor_free else {}
        return cls(c_in[0], c_out, *spec.args[1:], **options), c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3(Block):
    """The CSP block of YOLOv5 since release 4, with three convolutions around its stack.

    Subclasses choose what is stacked.
    """

    repeats_inside = True

    def __init__(
        self, c_in: int, c_out: int, number: int = 1, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, 1, 1)
        self.cv2 = Conv(c_in, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c_out, 1)
        self.m = self.stack(hidden, number, shortcut, groups)

    def stack(self, channels: int, number: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(Bottleneck(channels, channels, shortcut, groups, 1.0) for _ in range(number)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class C3x(C3):
    """C3 with cross convolutions."""

    def stack(self, channels: int, number: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(channels, channels, 3, 1, groups, 1.0, shortcut) for _ in range(number)))


class C3k(C3):
    """C3 with two 3×3 convolutions a bottleneck."""

    def stack(self, channels: int, number: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(Bottleneck(channels, channels, shortcut, groups, 1.0, 3) for _ in range(number)))


class BottleneckCSP(Block):
    """The CSP block of YOLOv5 before release 4: two plain convolutions and a norm after joining.

    Source: Wang et al., "CSPNet", CVPR workshops 2020, arXiv:1911.11929.
    """

    repeats_inside = True

    def __init__(
        self, c_in: int, c_out: int, number: int = 1, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c_in, hidden, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c_out, 1, 1)
        self.bn = batch_norm(2 * hidden)
        self.act = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, groups, 1.0) for _ in range(number)))

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), dim=1)
        return self.cv4(self.act(self.bn(joined)))
