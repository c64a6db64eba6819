"""Half of the features by convolution, the other half cheaply from these.

Source: Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020, arXiv:1911.11907.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks.base import Block
from models.blocks.conv import Conv, DWConv
from models.blocks.csp import C3


class GhostConv(Block):
    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = Conv(c_in, hidden, kernel, stride, groups=groups, act=act)
        self.cv2 = Conv(hidden, hidden, 5, 1, groups=hidden, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), dim=1)


class GhostBottleneck(Block):
    """Two ghost convolutions, with a depth-wise one between them where the map is halved."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        hidden = c_out // 2
        halves = stride == 2
        self.conv = nn.Sequential(
            GhostConv(c_in, hidden, 1, 1),
            DWConv(hidden, hidden, kernel, stride, act=False) if halves else nn.Identity(),
            GhostConv(hidden, c_out, 1, 1, act=False),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c_in, c_in, kernel, stride, act=False), Conv(c_in, c_out, 1, 1, act=False))
            if halves
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class C3Ghost(C3):
    """C3 with ghost bottlenecks."""

    def stack(self, channels: int, number: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(channels, channels) for _ in range(number)))
