"""Joining maps, and moving positions into channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.base import Block, LayerSpec


class Concat(Block):
    """Maps side by side along `dim`; a model file may only name the channels, dim 1."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.d = dim

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        if spec.args not in ((), (1,)):
            raise ValueError(f"Concat joins channels, dimension 1; got {list(spec.args)}")
        return cls(1), sum(c_in)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat(maps, dim=self.d)


class Shortcut(Block):
    """The sum of two maps; the argument of its rows, a dimension, says nothing."""

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        if len(set(c_in)) != 1:
            raise ValueError(f"Shortcut adds maps of as many channels; got {c_in}")
        return cls(), c_in[0]

    def forward(self, maps: list[Tensor]) -> Tensor:
        first, *others = maps
        for other in others:
            first = first + other
        return first


class CBLinear(Block):
    """One map made into several, of the numbers of channels that its row says, for `CBFuse` to choose among.

    Source: Liu et al., "CBNet: A Novel Composite Backbone Network Architecture for Object Detection", AAAI 2020,
    arXiv:1909.03625.
    """

    def __init__(self, c_in: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.conv = nn.Conv2d(c_in, sum(channels), 1)

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        """Channels as written, whatever the width; says those of the last map."""
        (channels,) = spec.args
        return cls(c_in[0], channels), channels[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.channels, dim=1)


class CBFuse(Block):
    """The sum of the last map and, enlarged to its size, one map of each `CBLinear` before it."""

    def __init__(self, chosen: Sequence[int]) -> None:
        super().__init__()
        self.chosen = tuple(chosen)  # which map of each

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        (chosen,) = spec.args
        if len(chosen) != len(c_in) - 1:
            raise ValueError(f"CBFuse chooses a map of every input but the last; got {len(chosen)} for {len(c_in)}")
        return cls(chosen), c_in[-1]

    def forward(self, inputs: list[tuple[Tensor, ...] | Tensor]) -> Tensor:
        *several, last = inputs
        assert isinstance(last, Tensor)
        for maps, place in zip(several, self.chosen, strict=True):
            last = last + F.interpolate(maps[place], size=last.shape[2:])
        return last


class ReOrg(Block):
    """Moves each 2x2 neighbourhood into the channels: (B, C, H, W) -> (B, 4 C, H/2, W/2)."""

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        return cls(), 4 * c_in[0]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(corners(x), dim=1)


def corners(x: Tensor) -> list[Tensor]:
    """Upper left, lower left, upper right, lower right position of every 2x2 neighbourhood."""
    return [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
