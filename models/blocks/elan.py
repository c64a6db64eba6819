"""The blocks of YOLOv9: layer aggregation over any inner block, and halving that pools before it convolves.

Source: Wang et al., "YOLOv9: Learning What You Want to Learn Using Programmable Gradient Information", ECCV 2024,
arXiv:2402.13616.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.base import Block
from models.blocks.conv import Conv
from models.blocks.csp import C3
from models.blocks.rep import RepConvPair


class ELAN1(Block):
    """Two stages of a 3×3 convolution each; what comes in and what each puts out, side by side, joined by 1×1.

    Args:
        c_first: channels of the first convolution; half of them go into the stages, all are kept.
        c_stage: channels that each stage puts out.
    """

    def __init__(self, c_in: int, c_out: int, c_first: int, c_stage: int, number: int = 1) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, c_first, 1)
        self.cv2 = self.stage(c_first // 2, c_stage, number)
        self.cv3 = self.stage(c_stage, c_stage, number)
        self.cv4 = Conv(c_first + 2 * c_stage, c_out, 1)

    def stage(self, c_in: int, c_out: int, number: int) -> nn.Module:
        return Conv(c_in, c_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.cv1(x)
        second = self.cv2(first.chunk(2, dim=1)[1])
        return self.cv4(torch.cat((first, second, self.cv3(second)), dim=1))


class RepNCSPELAN4(ELAN1):
    """Stages of a cross-stage-partial block, whose bottlenecks begin with a branched convolution, and 3×3.

    Args:
        number: bottlenecks a stage.
    """

    def stage(self, c_in: int, c_out: int, number: int) -> nn.Module:
        return nn.Sequential(RepCSP(c_in, c_out, number), Conv(c_out, c_out, 3))


class RepCSP(C3):
    """C3 with branched bottlenecks."""

    def stack(self, channels: int, number: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(RepBottleneck(channels, shortcut) for _ in range(number)))


class RepBottleneck(Block):
    """A branched 3×3 convolution, then a plain one, added to the input."""

    def __init__(self, channels: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1 = RepConvPair(channels, channels)
        self.cv2 = Conv(channels, channels, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class AConv(Block):
    """The mean of every 2×2 positions, then a 3×3 convolution of stride 2: a map of half the size."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, c_out, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv1(F.avg_pool2d(x, 2, 1))


class ADown(Block):
    """As `AConv`, with half of the channels; the other half by pooling and a 1×1 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.cv1 = Conv(c_in // 2, c_out // 2, 3, 2)
        self.cv2 = Conv(c_in // 2, c_out // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        convolved, pooled = F.avg_pool2d(x, 2, 1).chunk(2, dim=1)
        return torch.cat((self.cv1(convolved), self.cv2(F.max_pool2d(pooled, 3, 2, 1))), dim=1)
