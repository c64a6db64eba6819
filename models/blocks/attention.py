"""Self-attention over the positions of a map: of transformers, and made of convolutions.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929; here without layer norms.
Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", NeurIPS 2024, arXiv:2405.14458 (partial self-attention).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class Attention(Block):
    """Multi-head attention with queries, keys and values by one 1×1 convolution.

    Where a value stands is told by a depth-wise convolution of the values, added to what attention puts out.

    Args:
        key_ratio: channels of a query or key for one of a value.
        areas: into how many runs of rows the map is cut; a position then attends to its own run alone. They must
            divide the number of positions.
        kernel: of the depth-wise convolution.
    """

    def __init__(self, channels: int, num_heads: int, key_ratio: float = 0.5, areas: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.num_heads, self.areas = num_heads, areas
        self.value_channels = channels // num_heads
        self.key_channels = int(self.value_channels * key_ratio)
        self.qkv = Conv(channels, channels + 2 * self.key_channels * num_heads, 1, act=False)
        self.proj = Conv(channels, channels, 1, act=False)
        self.pe = Conv(channels, channels, kernel, groups=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        heads = self.qkv(x).flatten(2).unflatten(1, (self.num_heads, -1))  # (B, heads, channels of a head, H*W)
        queries, keys, values = heads.split((self.key_channels, self.key_channels, self.value_channels), dim=2)
        attended = F.scaled_dot_product_attention(*map(self._cut, (queries, keys, values)))
        attended = attended.unflatten(0, (batch, self.areas)).permute(0, 2, 4, 1, 3)  # (B, heads, channels, areas, run)
        positions = self.pe(values.reshape(batch, -1, height, width))
        return self.proj(attended.reshape(positions.shape) + positions)

    def _cut(self, x: Tensor) -> Tensor:
        """(B, heads, C, H*W) -> (B * areas, heads, H*W / areas, C)"""
        return x.unflatten(3, (self.areas, -1)).permute(0, 3, 1, 4, 2).flatten(0, 1)


class PSABlock(Block):
    """Attention, then two 1×1 convolutions at each position, each added to its input. A head has 64 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = Attention(channels, heads_of(channels, 64))
        self.ffn = pointwise(channels, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(Block):
    """Half of the channels through `number` attention blocks, half around them."""

    repeats_inside = True

    def __init__(self, c_in: int, c_out: int, number: int = 1, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_in * expansion)
        self.cv1 = Conv(c_in, 2 * hidden, 1)
        self.cv2 = Conv(2 * hidden, c_out, 1)
        self.m = nn.Sequential(*(PSABlock(hidden) for _ in range(number)))

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.cv1(x).chunk(2, dim=1)
        return self.cv2(torch.cat((around, self.m(through)), dim=1))


class PSA(Block):
    """Half of the channels through attention and 1×1 convolutions, each added to its input; half around them."""

    def __init__(self, c_in: int, c_out: int, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_in * expansion)
        self.cv1 = Conv(c_in, 2 * hidden, 1)
        self.cv2 = Conv(2 * hidden, c_out, 1)
        self.attn = Attention(hidden, heads_of(hidden, 64))
        self.ffn = pointwise(hidden, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        around, x = self.cv1(x).chunk(2, dim=1)
        x = x + self.attn(x)
        return self.cv2(torch.cat((around, x + self.ffn(x)), dim=1))


def heads_of(channels: int, channels_a_head: int) -> int:
    return max(1, channels // channels_a_head)


def pointwise(channels: int, ratio: float) -> nn.Sequential:
    """Two 1×1 convolutions, `ratio` times as many channels between them."""
    hidden = int(channels * ratio)
    return nn.Sequential(Conv(channels, hidden, 1), Conv(hidden, channels, 1, act=False))
