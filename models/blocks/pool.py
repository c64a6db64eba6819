"""Spatial pyramid pooling: the same map pooled over several neighbourhoods, side by side.

Source: He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks", arXiv:1406.4729.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.base import Block, LayerSpec
from models.blocks.conv import Conv

MOST_POOLINGS = 16  # of a block; they have no parameters, which are counted elsewhere. Published ones have three


class SPP(Block):
    def __init__(self, c_in: int, c_out: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        _require_few(len(kernels))
        hidden = c_in // 2
        self.cv1 = Conv(c_in, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(kernels) + 1), c_out, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], dim=1))


class SPPF(Block):
    """SPP with kernels 5, 9, 13 as one small pooling applied three times: the same values, less work.

    Args:
        number: of poolings, three where nobody says. Rows that say it (YOLO26) have no activation before the pools.
        shortcut: whether the input is added, where shapes allow.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 5, number: int | None = None, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = c_in // 2
        self.number = 3 if number is None else number
        _require_few(self.number)
        self.cv1 = Conv(c_in, hidden, 1, 1, act=number is None)
        self.cv2 = Conv(hidden * (self.number + 1), c_out, 1, 1)
        self.m = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(_pooled_again(self.cv1(x), self.m, self.number))
        return x + y if self.add else y


class SPPELAN(Block):
    """`SPPF` as YOLOv9 has it: the channels that are pooled are its own argument, and names differ.

    Source: Wang et al., "YOLOv9", ECCV 2024, arXiv:2402.13616.
    """

    def __init__(self, c_in: int, c_out: int, hidden: int, kernel: int = 5) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, hidden, 1)
        self.cv5 = Conv(4 * hidden, c_out, 1)
        self.pool = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv5(_pooled_again(self.cv1(x), self.pool, 3))


def _require_few(number: int) -> None:
    if number > MOST_POOLINGS:
        raise ValueError(f"{number} poolings; expected at most {MOST_POOLINGS}")


def _pooled_again(x: Tensor, pool: nn.Module, number: int) -> Tensor:
    """The map, and beside it what one, two ... `number` poolings make of it."""
    pooled = [x]
    for _ in range(number):
        pooled.append(pool(pooled[-1]))
    return torch.cat(pooled, dim=1)


class SPPCSPC(Block):
    """Pyramid pooling in one half of a cross-stage-partial block, the other half passing by.

    Source: Wang et al., "Scaled-YOLOv4: Scaling Cross Stage Partial Network", CVPR 2021, arXiv:2011.08036.
    """

    def __init__(self, c_in: int, c_out: int, expansion: float = 0.5, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        _require_few(len(kernels))
        hidden = int(2 * c_out * expansion)
        self.cv1 = Conv(c_in, hidden, 1, 1)
        self.cv2 = Conv(c_in, hidden, 1, 1)
        self.cv3 = Conv(hidden, hidden, 3, 1)
        self.cv4 = Conv(hidden, hidden, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in kernels)
        self.cv5 = Conv(hidden * (len(kernels) + 1), hidden, 1, 1)
        self.cv6 = Conv(hidden, hidden, 3, 1)
        self.cv7 = Conv(2 * hidden, c_out, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], dim=1)))
        return self.cv7(torch.cat((y, self.cv2(x)), dim=1))


class _MaxPool(nn.MaxPool2d):
    repeats_inside = False

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        return cls(*spec.args), c_in[0]


class MP(_MaxPool):
    """The largest of every `kernel` x `kernel` square: a map of half the size."""

    def __init__(self, kernel: int = 2) -> None:
        super().__init__(kernel, kernel)


class SP(_MaxPool):
    """The largest around each position: a map of the same size."""

    def __init__(self, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(kernel, stride, kernel // 2)


class DownC(Block):
    """Half of the channels by a strided convolution, half by pooling: a map of half the size."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 2) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, c_in, 1, 1)
        self.cv2 = Conv(c_in, c_out // 2, 3, kernel)
        self.cv3 = Conv(c_in, c_out // 2, 1, 1)
        self.mp = nn.MaxPool2d(kernel, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), dim=1)
