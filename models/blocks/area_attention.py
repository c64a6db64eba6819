"""Attention within areas of a map, cut by its rows: near the cost of a convolution where maps are large.

Source: Tian et al., "YOLOv12: Attention-Centric Real-Time Object Detectors", arXiv:2502.12524.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.blocks.attention import Attention, heads_of, pointwise
from models.blocks.base import Block, LayerSpec
from models.blocks.conv import Conv
from models.blocks.csp import C3k

LARGE_SCALES = {"l", "x"}  # their rows say nothing of the residual, nor of the narrower mlp
RESIDUAL_START = 0.01


class ABlock(Block):
    """Attention within areas, then two 1×1 convolutions, each added to its input. A head has 32 channels."""

    def __init__(self, channels: int, mlp_ratio: float = 2.0, areas: int = 1) -> None:
        super().__init__()
        self.attn = Attention(channels, heads_of(channels, 32), 1.0, areas, 7)
        self.mlp = pointwise(channels, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class A2C2f(Block):
    """`number` stages, the output of each kept: two attention blocks a stage, or, without `attention`, a `C3k`.

    Args:
        areas: of the attention.
        residual: whether the input is added, to the rest under a learned scale a channel.
    """

    repeats_inside = True

    def __init__(
        self,
        c_in: int,
        c_out: int,
        number: int = 1,
        attention: bool = True,
        areas: int = 1,
        residual: bool = False,
        mlp_ratio: float = 2.0,
        expansion: float = 0.5,
        groups: int = 1,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, 1)
        self.cv2 = Conv((1 + number) * hidden, c_out, 1)
        scaled = attention and residual
        if scaled and c_in != c_out:
            raise ValueError(f"A2C2f adds its input where it has as many channels; got {c_in} and {c_out}")
        self.gamma = nn.Parameter(torch.full((c_out,), RESIDUAL_START)) if scaled else None
        stages = (
            nn.Sequential(*(ABlock(hidden, mlp_ratio, areas) for _ in range(2)))
            if attention
            else C3k(hidden, hidden, 2, shortcut, groups)
            for _ in range(number)
        )
        self.m = nn.ModuleList(stages)

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        """The scales l and x have the residual and mlp ratio 1.2, unless the row says what it wants."""
        if spec.scale in LARGE_SCALES and len(spec.args) == 3:
            spec = replace(spec, args=(*spec.args, True, 1.2))
        return super().from_spec(spec, c_in, width)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.cv1(x)]
        for stage in self.m:
            kept.append(stage(kept[-1]))
        y = self.cv2(torch.cat(kept, dim=1))
        return y if self.gamma is None else x + self.gamma[:, None, None].to(y.dtype) * y
