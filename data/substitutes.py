"""What OpenCV does for a packed cache and for evaluation, where it is not installed: decoding and resizing.

Slower, and for the same pixels but for rounding: decoders differ by a level here and there.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from data.picture import Image, Size
from utils.opencv import MOST_PIXELS

# what Pillow may read; of others it has readers that start programs (EPS: Ghostscript)
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "SUN")
MOST_SIDE = 1_000_000  # pixels in a row or column; OpenCV reads no PNG of more


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Pillow.init()
    return tuple(name for name in FORMATS if name in Pillow.OPEN)


def fits(width: int, height: int) -> bool:
    """Whether OpenCV reads an image of this size; Pillow's own limit is of pixels alone, and others may move it."""
    return width * height <= MOST_PIXELS and max(width, height) <= MOST_SIDE


def decode(path: str | Path, reduction: int = 1) -> NDArray | None:
    """(H, W) or (H, W, 3) BGR, EXIF orientation applied, 8 or 16 bits or floating point; None if Pillow cannot.

    `reduction` as in `read_image`.
    """
    try:
        with Pillow.open(path, formats=formats()) as file:
            if not fits(*file.size):
                return None
            file.draft(None, (file.width // reduction, file.height // reduction))
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits, whatever the mode says
                return np.asarray(image).astype(np.uint16)
            if image.mode == "F":
                return np.asarray(image)
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except Exception:  # Pillow's plugins raise whatever their format runs into
        return None


def resize(image: Image, size: Size, average: bool) -> Image:
    """(H, W, 3) at another height and width: areas averaged, or bilinear between the nearest four pixels."""
    if average:
        scaled = _averaged(_averaged(image.astype(np.float32), 0, size[0]), 1, size[1])
    else:
        planes = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
        scaled = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)[0].numpy()
        scaled = scaled.transpose(1, 2, 0)
    return np.ascontiguousarray(scaled.round().clip(0, 255).astype(np.uint8))


def _averaged(values: NDArray[np.float32], axis: int, count: int) -> NDArray[np.float32]:
    """Means over `count` equal stretches of an axis, whose ends may lie within a pixel."""
    length = values.shape[axis]
    sums = np.insert(np.cumsum(values, axis=axis, dtype=np.float64), 0, 0, axis=axis)
    edges = np.arange(count + 1) * (length / count)
    below = np.minimum(edges.astype(np.int64), length - 1)
    shape = [-1 if dimension == axis else 1 for dimension in range(values.ndim)]
    at_edges = sums.take(below, axis) + values.take(below, axis) * (edges - below).reshape(shape)
    return (np.diff(at_edges, axis=axis) / (length / count)).astype(np.float32)
