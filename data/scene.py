"""What a training sample shows, decided before a pixel is drawn: chance and labels here, pixels in whoever draws it.

Coordinates are of edges: pixel i covers [i, i + 1], so an image of width W reaches from 0 to W, for boxes and pixels
alike.
"""

from __future__ import annotations

from typing import NamedTuple

from numpy.typing import NDArray

from data.geometry import Region
from data.picture import Floats, Size


class Tile(NamedTuple):
    """An image, or the part of it that a layer shows."""

    index: int  # of the image in the data set
    size: Size  # at which it stands on the canvas; as the store loads it, except where that is resized once more
    left: int  # of its corner on the canvas, pixels; may be negative
    top: int
    part: Region  # of the tile, what is on the canvas: in the tile's own pixels, never empty
    place: Region | None  # of the output, where that part is drawn, resized; None where the layer turns or shears


class Layer(NamedTuple):
    """Tiles on a canvas of grey, and the way from there into the output."""

    tiles: tuple[Tile, ...]  # those of which something may be seen; they do not overlap
    canvas: Size
    matrix: NDArray  # (3, 3) from the canvas to the output, coordinates of edges


class Scene(NamedTuple):
    """A sample: one layer, or two that are laid over each other (mixup); then colours, then flips."""

    size: Size  # of the output
    layers: tuple[Layer, ...]
    share: float  # of the first layer, where there are two
    gains: tuple[float, float, float] | None  # factors of hue, saturation, brightness
    flip_up_down: bool
    flip_left_right: bool
    classes: Floats  # (n,) of the finished picture, flips included
    boxes: Floats  # (n, 4) xyxy pixels of the output
