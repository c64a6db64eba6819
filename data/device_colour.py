"""Hue, saturation and brightness as OpenCV has them for 8 bits: hue in steps of two degrees, the others to 255."""

from __future__ import annotations

import torch
from torch import Tensor

# of blue, green, red: where on the circle of hues, in sixths, a channel begins to fade
FADES = (1.0, 3.0, 5.0)


def shifted(pictures: Tensor, tables: Tensor) -> Tensor:
    """Pictures whose levels of hue, saturation and brightness are replaced.

    Args:
        pictures: (k, H, W, 3) uint8 BGR.
        tables: (k, 256, 3) uint8, what becomes of each level.
    """
    levels = to_hsv(pictures).flatten(1, 2)
    return to_bgr(tables.gather(1, levels).view(pictures.shape))


def to_hsv(pictures: Tensor) -> Tensor:
    """(..., 3) uint8 BGR -> (..., 3) int64 hue below 180, saturation, brightness; the very levels that OpenCV gives.

    Quotients are fixed-point numbers with twelve bits after the point, because ties would round differently otherwise.
    """
    blue, green, red = pictures.int().unbind(-1)
    value = torch.maximum(torch.maximum(blue, green), red)
    spread = value - torch.minimum(torch.minimum(blue, green), red)
    other = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    sector = torch.where(value == red, green - blue, other)
    hue = _rounded(sector * _quotient(30, spread))
    saturation = _rounded(spread * _quotient(255, value))
    return torch.stack((torch.where(hue < 0, hue + 180, hue), saturation, value), dim=-1).long()


def to_bgr(levels: Tensor) -> Tensor:
    """(..., 3) uint8 hue below 180, saturation, brightness -> (..., 3) uint8 BGR.

    Cut off and not rounded, as OpenCV does where it works on many pixels at once.
    """
    hue, saturation, value = levels.float().unbind(-1)
    hue, saturation, value = hue * (6 / 180), saturation / 255, value / 255
    channels = []
    for fade in FADES:
        along = (hue + fade) % 6
        darkness = torch.minimum(along, 4 - along).clamp_(0, 1)  # of a channel at full saturation
        channels.append((value * (1 - darkness * saturation) * 255).to(torch.uint8))
    return torch.stack(channels, dim=-1)


def _quotient(number: int, by: Tensor) -> Tensor:
    return ((number << 12) / by.clamp(min=1)).round_().int()


def _rounded(fixed: Tensor) -> Tensor:
    return (fixed + (1 << 11)) >> 12
