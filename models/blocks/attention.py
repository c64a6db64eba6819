"""Self-attention over the positions of a map.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929; here without layer norms.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.blocks.base import Block
from models.blocks.conv import Conv
from models.blocks.csp import C3


class TransformerLayer(nn.Module):
    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=channels, num_heads=num_heads)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(positions, B, C) -> the same"""
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)
        x = attended + x
        return self.fc2(self.fc1(x)) + x


class TransformerBlock(Block):
    """Transformer layers over a map's positions, which a learned linear map of the features themselves tells apart."""

    def __init__(self, c_in: int, c_out: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.conv = Conv(c_in, c_out) if c_in != c_out else None
        self.linear = nn.Linear(c_out, c_out)
        self.tr = nn.Sequential(*(TransformerLayer(c_out, num_heads) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = self.conv(x)
        positions = x.flatten(2).permute(2, 0, 1)  # (H*W, B, C)
        return self.tr(positions + self.linear(positions)).permute(1, 2, 0).reshape(x.shape)


class C3TR(C3):
    """C3 with a transformer block of four heads."""

    def stack(self, channels: int, number: int, shortcut: bool, groups: int) -> nn.Module:
        return TransformerBlock(channels, channels, 4, number)
