"""Blocks whose last convolution sees every stage of their stack, not its end alone.

What YOLOv8 and its successors made of `C3`; the idea of the gradient paths is that of Wang et al., "Designing Network
Design Strategies Through Gradient Path Analysis", arXiv:2211.04800.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.blocks.attention import PSABlock
from models.blocks.base import Block, LayerSpec
from models.blocks.conv import Conv, DWConv
from models.blocks.csp import Bottleneck, C3k
from models.blocks.rep import RepVGGDW

C3K_SCALES = {"m", "l", "x"}  # their every C3k2 is of the C3k kind, whatever its row says


class _StagesKept(Block):
    """Half of the channels through stages one after the other; the output of each is kept beside the other half."""

    repeats_inside = True

    def __init__(self, c_in: int, c_out: int, hidden: int, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, 2 * hidden, 1)
        self.cv2 = Conv((2 + len(stages)) * hidden, c_out, 1)
        self.m = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        kept = list(self.cv1(x).chunk(2, dim=1))
        for stage in self.m:
            kept.append(stage(kept[-1]))
        return self.cv2(torch.cat(kept, dim=1))


class C2f(_StagesKept):
    """Bottlenecks of two 3×3 convolutions."""

    def __init__(
        self, c_in: int, c_out: int, number: int = 1, shortcut: bool = False, groups: int = 1, expansion: float = 0.5
    ) -> None:
        hidden = int(c_out * expansion)
        stages = [Bottleneck(hidden, hidden, shortcut, groups, 1.0, 3) for _ in range(number)]
        super().__init__(c_in, c_out, hidden, stages)


class C3k2(_StagesKept):
    """Narrow bottlenecks, or with `nested` a `C3k` of two, or with `attention` a bottleneck and an attention block."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        number: int = 1,
        nested: bool = False,
        expansion: float = 0.5,
        attention: bool = False,
        groups: int = 1,
        shortcut: bool = True,
    ) -> None:
        hidden = int(c_out * expansion)

        def stage() -> nn.Module:
            if nested and not attention:
                return C3k(hidden, hidden, 2, shortcut, groups)
            bottleneck = Bottleneck(hidden, hidden, shortcut, groups, 0.5, 3)
            return nn.Sequential(bottleneck, PSABlock(hidden)) if attention else bottleneck

        super().__init__(c_in, c_out, hidden, [stage() for _ in range(number)])

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        if spec.scale in C3K_SCALES:
            spec = replace(spec, args=(spec.args[0], True, *spec.args[2:]))
        return super().from_spec(spec, c_in, width)


class C2(Block):
    """Half of the channels through bottlenecks of two 3×3 convolutions, half around them."""

    repeats_inside = True

    def __init__(
        self, c_in: int, c_out: int, number: int = 1, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, 2 * hidden, 1)
        self.cv2 = Conv(2 * hidden, c_out, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, groups, 1.0, 3) for _ in range(number)))

    def forward(self, x: Tensor) -> Tensor:
        through, around = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat((self.m(through), around), dim=1))


class CIB(Block):
    """Depth-wise 3×3 convolutions at both ends and in the middle, 1×1 ones between: wide at little cost.

    Source: Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", NeurIPS 2024, arXiv:2405.14458.

    Args:
        large_kernel: 7×7 in the middle, with a 3×3 branch beside it.
    """

    def __init__(
        self, c_in: int, c_out: int, shortcut: bool = True, expansion: float = 0.5, large_kernel: bool = False
    ) -> None:
        super().__init__()
        hidden = 2 * int(c_out * expansion)
        self.cv1 = nn.Sequential(
            DWConv(c_in, c_in, 3),
            Conv(c_in, hidden, 1),
            RepVGGDW(hidden) if large_kernel else DWConv(hidden, hidden, 3),
            Conv(hidden, c_out, 1),
            DWConv(c_out, c_out, 3),
        )
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        return x + y if self.add else y


class C2fCIB(_StagesKept):
    """Stages of depth-wise convolutions."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        number: int = 1,
        shortcut: bool = False,
        large_kernel: bool = False,
        expansion: float = 0.5,
    ) -> None:
        hidden = int(c_out * expansion)
        stages = [CIB(hidden, hidden, shortcut, 1.0, large_kernel) for _ in range(number)]
        super().__init__(c_in, c_out, hidden, stages)


class SCDown(Block):
    """Channels by a 1×1 convolution, then positions by a depth-wise one; sources as of `CIB`."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.cv1 = Conv(c_in, c_out, 1)
        self.cv2 = DWConv(c_out, c_out, kernel, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(self.cv1(x))
