"""Scenes drawn by batched tensor operations, on any device: what `data/scene.py` describes, as OpenCV would draw it.

A scene becomes numbers on the CPU (`sketch`) and pixels on the device (`draw`). There, an image's pixels are gathered
from one flat array, whose last pixel is grey: what shows nothing shows that one. A layer that is neither turned nor
sheared takes four pixels of one tile for each pixel of the output; any other one takes four of every tile, because at a
seam two tiles have their share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding  # gathers rows, several times as fast as an index does

from data.augment import hsv_tables
from data.device_colour import shifted
from data.geometry import GREY
from data.picture import Size
from data.scene import Layer, Scene, Tile

# pixels of the output, drawn at once: temporary tensors take up to 170 bytes a pixel, 0.7 GB on a GPU, which works best
# on many; a CPU on few, because of its caches
GPU_AT_ONCE, CPU_AT_ONCE = 1 << 22, 1 << 20


class Sketch(NamedTuple):
    """Some scenes of one size as numbers: L layers, the first of every scene and then the second ones.

    A layer's tiles are in S slots; slot 0 of each and what remains of others is grey.
    """

    size: Size  # of the output
    index: NDArray[np.int64]  # (L, S) of a tile's image in the data set, -1 for grey
    region: NDArray[np.int64]  # (L, S, 4) what of the image is seen: left, top, right, bottom of its pixels
    window: NDArray[np.int64]  # (L, S, 4) of the output, where the tile is drawn; empty for grey and in warped layers
    # (L, S, 4) scale and shift of x, then of y, to pixels of the region (0 is the centre of the first one): from
    # pixels of the output likewise, or in warped layers from edges of the canvas
    way: NDArray[np.float32]
    inverse: NDArray[np.float32]  # (L, 3, 3) from edges of the output to edges of the canvas
    straight: NDArray[np.int64]  # (k,) layers that are neither turned nor sheared
    warped: NDArray[np.int64]  # (k,) the others
    mixed: NDArray[np.int64]  # (k,) scenes of two layers, in the order of their second ones
    share: NDArray[np.float32]  # (k,) of their first layer
    coloured: NDArray[np.int64]  # (k,) scenes whose colours are shifted
    tables: NDArray[np.uint8]  # (k, 256, 3) what becomes of hue, saturation, brightness
    flip_up_down: NDArray[np.int64]  # (k,) scenes
    flip_left_right: NDArray[np.int64]


class Source(NamedTuple):
    """Where on the device the images of a sketch are."""

    pixels: Tensor  # (P, 3) uint8 BGR, the last one grey
    origin: NDArray[np.int64]  # (L, S) of the region's first pixel
    stride: NDArray[np.int64]  # (L, S) pixels from one row to the next


# -- numbers ----------------------------------------------------------------------------------------------------------


def sketches(scenes: Sequence[Scene], stored: NDArray[np.int64], at_once: int = GPU_AT_ONCE) -> list[Sketch]:
    """The scenes of a batch, as many together as are drawn at once.

    Args:
        stored: (n, 2) height and width of all images of the data set, as they are loaded.
        at_once: pixels of the output.
    """
    height, width = scenes[0].size
    count = max(1, at_once // (height * width))
    return [sketch(scenes[start : start + count], stored) for start in range(0, len(scenes), count)]


def sketch(scenes: Sequence[Scene], stored: NDArray[np.int64]) -> Sketch:
    """The numbers of some scenes of one size; `stored` as in `sketches`."""
    mixed = [number for number, scene in enumerate(scenes) if len(scene.layers) > 1]
    layers = [scene.layers[0] for scene in scenes] + [scenes[number].layers[1] for number in mixed]
    turned = np.array([any(tile.place is None for tile in layer.tiles) for layer in layers])
    coloured = [number for number, scene in enumerate(scenes) if scene.gains is not None]
    tables = [hsv_tables(scene.gains).T for scene in scenes if scene.gains is not None]
    return Sketch(
        scenes[0].size,
        *_placed(layers, stored),
        inverse=np.linalg.inv([layer.matrix for layer in layers]).astype(np.float32),
        straight=np.flatnonzero(~turned),
        warped=np.flatnonzero(turned),
        mixed=np.array(mixed, dtype=np.int64),
        share=np.array([scenes[number].share for number in mixed], dtype=np.float32),
        coloured=np.array(coloured, dtype=np.int64),
        tables=np.array(tables, dtype=np.uint8).reshape(-1, 256, 3),
        flip_up_down=np.flatnonzero([scene.flip_up_down for scene in scenes]),
        flip_left_right=np.flatnonzero([scene.flip_left_right for scene in scenes]),
    )


def _placed(layers: Sequence[Layer], stored: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Index, region, window and way of all tiles, see `Sketch`."""
    slots = 1 + max(len(layer.tiles) for layer in layers)
    index = np.full((len(layers), slots), -1, dtype=np.int64)
    region = np.tile(np.array((0, 0, 1, 1)), (*index.shape, 1))
    window = np.zeros((*index.shape, 4), dtype=np.int64)
    way = np.zeros((*index.shape, 4), dtype=np.float32)
    where = [(number, slot) for number, layer in enumerate(layers) for slot in range(1, len(layer.tiles) + 1)]
    if where:
        at = tuple(np.array(where).T)
        tiles = [tile for layer in layers for tile in layer.tiles]
        index[at] = [tile.index for tile in tiles]
        window[at] = [tile.place or (0, 0, 0, 0) for tile in tiles]
        region[at], way[at] = _ways(tiles, stored[index[at]])
    return index, region, window, way


def _ways(tiles: Sequence[Tile], stored: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(T, 4) regions and (T, 4) ways to them; `stored` (T, 2) is the size of the tiles' images."""
    sides, corner = np.array([tile.size[::-1] for tile in tiles]), np.array([(tile.left, tile.top) for tile in tiles])
    part = np.array([tile.part for tile in tiles])
    straight = np.array([tile.place is not None for tile in tiles])[:, None]
    place = np.array([tile.place or tile.part for tile in tiles])
    zoom = stored[:, ::-1] / sides  # a tile may have been resized once more: then it is sampled in one step
    low = np.minimum(np.floor(part[:, :2] * zoom), stored[:, ::-1] - 1)
    high = np.clip(np.ceil(part[:, 2:] * zoom - 1e-6), low + 1, stored[:, ::-1])
    step = np.where(straight, (part[:, 2:] - part[:, :2]) / (place[:, 2:] - place[:, :2]), 1.0)
    # edges of the output, or of the canvas -> edges of the tile -> centres of the region's pixels
    shift = np.where(straight, part[:, :2] - (place[:, :2] - 0.5) * step, -corner) * zoom - 0.5 - low
    region = np.concatenate((low, high), axis=1).astype(np.int64)
    return region, np.stack((step * zoom, shift), axis=2).reshape(len(tiles), 4)


# -- pixels -----------------------------------------------------------------------------------------------------------


def draw(sketch: Sketch, source: Source) -> Tensor:
    """(B, H, W, 3) uint8 BGR, on the device of the source's pixels."""
    device = source.pixels.device
    count = len(sketch.index) - len(sketch.mixed)
    layers = torch.empty((len(sketch.index), *sketch.size, 3), dtype=torch.uint8, device=device)
    for numbers, sample in ((sketch.straight, _straight), (sketch.warped, _warped)):
        if len(numbers):
            layers[moved(numbers, device)] = sample(sketch, source, numbers)
    pictures = layers[:count]
    if len(sketch.mixed):
        mixed, share = moved(sketch.mixed, device), moved(sketch.share, device).view(-1, 1, 1)
        blend = _between(layers[count:].float(), pictures[mixed].float(), share)
        pictures[mixed] = blend.round_().to(torch.uint8)
    if len(sketch.coloured):
        coloured = moved(sketch.coloured, device)
        pictures[coloured] = shifted(pictures[coloured], moved(sketch.tables, device))
    for numbers, axis in ((sketch.flip_up_down, 1), (sketch.flip_left_right, 2)):
        if len(numbers):
            flipped = moved(numbers, device)
            pictures[flipped] = pictures[flipped].flip(axis)
    return pictures


def moved(array: NDArray, device: torch.device) -> Tensor:
    """A host's array on a device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _straight(sketch: Sketch, source: Source, layers: NDArray[np.int64]) -> Tensor:
    """(k, H, W, 3) uint8: the layers whose tiles are resized and no more. Rows and columns are found apart."""
    device = source.pixels.device
    region, window, way = (array[layers] for array in (sketch.region, sketch.window, sketch.way))
    left, right, share_x, in_x = _axis(region, window, way, 0, sketch.size[1], device)
    above, below, share_y, in_y = _axis(region, window, way, 1, sketch.size[0], device)
    origin, stride = (moved(array[layers], device)[..., None] for array in (source.origin, source.stride))
    above, below = origin + above * stride, origin + below * stride

    slot = torch.zeros((len(layers), 1, *sketch.size), dtype=torch.int64, device=device)
    for number in range(1, sketch.index.shape[1]):
        slot.masked_fill_(in_y[:, number, None, :, None] & in_x[:, number, None, None, :], number)

    def of_row(values: Tensor) -> Tensor:
        return values[..., None].expand(-1, -1, *sketch.size).gather(1, slot)[:, 0]

    def of_column(values: Tensor) -> Tensor:
        return values[:, :, None].expand(-1, -1, *sketch.size).gather(1, slot)[:, 0]

    left, right, share_x = of_column(left), of_column(right), of_column(share_x)
    upper, lower = (
        _between(embedding(row + left, source.pixels).float(), embedding(row + right, source.pixels).float(), share_x)
        for row in (of_row(above), of_row(below))
    )
    return _between(upper, lower, of_row(share_y)).round_().to(torch.uint8)


def _between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """(..., 3) first + share * (second - first), in the place of the second; several times as fast as `lerp` here."""
    return second.sub_(first).mul_(share[..., None]).add_(first)


def _axis(
    region: NDArray, window: NDArray, way: NDArray, axis: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each pixel along an axis (0: x) of the output, were it of a slot: the pixels of the region on both sides of
    it, the share of the second one, and whether it is of that slot; (k, S, length) each."""
    side = moved(region[..., axis + 2] - region[..., axis], device)[..., None]
    scale, shift = (moved(way[..., 2 * axis + number], device)[..., None] for number in (0, 1))
    first, last = (moved(window[..., number], device)[..., None] for number in (axis, axis + 2))
    pixel = torch.arange(length, device=device)
    place = torch.minimum((pixel * scale + shift).clamp_(min=0), (side - 1).float())
    before = place.long()
    after = torch.minimum(before + 1, side - 1)
    return before, after, place - before, (pixel >= first) & (pixel < last)


def _warped(sketch: Sketch, source: Source, layers: NDArray[np.int64]) -> Tensor:
    """(k, H, W, 3) uint8: layers seen through a matrix, grey where no tile is."""
    device, grey = source.pixels.device, len(source.pixels) - 1
    x, y = _on_canvas(moved(sketch.inverse[layers], device), sketch.size)
    total = torch.full((len(layers), *sketch.size, 3), float(GREY), device=device)
    for slot in range(1, sketch.index.shape[1]):
        region, way, origin, stride = (
            moved(array[layers, slot], device)[:, None, None]
            for array in (sketch.region, sketch.way, source.origin, source.stride)
        )
        columns = _neighbours(x * way[..., 0] + way[..., 1], region[..., 2] - region[..., 0])
        rows = _neighbours(y * way[..., 2] + way[..., 3], region[..., 3] - region[..., 1])
        for row, share_y, in_y in rows:
            for column, share_x, in_x in columns:
                address = torch.where(in_x & in_y, origin + row * stride + column, grey)
                total += (embedding(address, source.pixels).float() - GREY).mul_((share_x * share_y)[..., None])
    return total.round_().clamp_(0, 255).to(torch.uint8)


def _on_canvas(inverse: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """(k, H, W) x and y on the canvas, of edges, of the centre of every pixel of the output."""
    x = torch.arange(size[1], device=inverse.device) + 0.5
    y = (torch.arange(size[0], device=inverse.device) + 0.5)[:, None]
    across, down, depth = (
        row[:, 0, None, None] * x + row[:, 1, None, None] * y + row[:, 2, None, None] for row in inverse.unbind(1)
    )
    return across / depth, down / depth


def _neighbours(place: Tensor, side: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """The two pixels on both sides of each place along an axis: which, their shares, and whether the region has it."""
    below = place.floor()
    share = place - below
    first = below.clamp(-2, 1 << 20).long()  # a place may be at infinity
    pairs = ((first, 1 - share), (first + 1, share))
    return tuple((pixel, part, (pixel >= 0) & (pixel < side)) for pixel, part in pairs)
