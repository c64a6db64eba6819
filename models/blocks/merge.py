"""Joining maps."""

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
