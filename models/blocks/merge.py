"""Joining maps, and moving positions into channels."""

from __future__ import annotations

import torch
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
