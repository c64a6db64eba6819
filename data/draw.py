"""Scene -> pixels, by OpenCV. Nothing of an image is touched but what is seen of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from data.augment import hsv_tables, paste, recolour
from data.geometry import GREY, Region, resize, warp_image
from data.picture import Image, Size
from data.scene import Layer, Scene, Tile
from utils.opencv import AVAILABLE, cv2

Load = Callable[[int], Image]  # index -> BGR; never written into


class Easel:
    """Draws scenes of one size, one after the other, in memory of its own: fresh pages cost more than some pixels."""

    def __init__(self, size: Size) -> None:
        self._image = np.empty((*size, 3), dtype=np.uint8)
        self._spare = np.empty_like(self._image)

    def draw(self, scene: Scene, load: Load, planes: NDArray[np.uint8]) -> None:
        """Draws a scene into (3, H, W) RGB."""
        _draw_layer(scene.layers[0], load, self._image)
        for layer in scene.layers[1:]:
            _draw_layer(layer, load, self._spare)
            cv2.addWeighted(self._image, scene.share, self._spare, 1 - scene.share, 0, dst=self._image)
        if scene.gains is not None:
            self._recolour(scene.layers, hsv_tables(scene.gains), planes)
        if not (scene.flip_up_down or scene.flip_left_right):
            write_planes(self._image, planes)
            return
        axis = -1 if scene.flip_up_down and scene.flip_left_right else int(scene.flip_left_right)
        unflipped = self._spare.reshape(planes.shape)
        write_planes(self._image, unflipped)
        for plane, target in zip(unflipped, planes, strict=True):
            cv2.flip(plane, axis, dst=target)

    def _recolour(self, layers: Sequence[Layer], tables: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
        top, bottom = _rows(layers, self._image.shape[0])
        if top < bottom:
            recolour(self._image[top:bottom], tables, self._spare[top:bottom], planes[:, top:bottom])
        for rest in (self._image[:top], self._image[bottom:]):
            rest.fill(tables[2, GREY])  # grey has neither hue nor saturation


def write_planes(image: Image, planes: NDArray[np.uint8]) -> None:
    """(H, W, 3) BGR into (3, H, W) RGB."""
    if AVAILABLE:
        cv2.split(image, [planes[2], planes[1], planes[0]])
    else:
        planes[...] = image[..., ::-1].transpose(2, 0, 1)


def _draw_layer(layer: Layer, load: Load, image: Image) -> None:
    """Draws a layer into the whole of (H, W, 3) BGR."""
    if _is_turned(layer):
        canvas = np.full((*layer.canvas, 3), GREY, dtype=np.uint8)
        for tile in layer.tiles:
            paste(canvas, _part(tile, load), tile.top + tile.part[1], tile.left + tile.part[0])
        image[...] = warp_image(canvas, layer.matrix, (image.shape[0], image.shape[1]))
        return
    image.fill(GREY)
    for tile in layer.tiles:
        _draw_resized(_part(tile, load), tile.place, image)


def _draw_resized(part: Image, place: Region | None, image: Image) -> None:
    """Draws a part into its place, bilinear; at its borders its own pixels are repeated."""
    assert place is not None
    left, top, right, bottom = place
    cv2.resize(part, (right - left, bottom - top), dst=image[top:bottom, left:right])


def _is_turned(layer: Layer) -> bool:
    return any(tile.place is None for tile in layer.tiles)


def _rows(layers: Sequence[Layer], height: int) -> tuple[int, int]:
    """The first row of the output that is not wholly grey, and the one after the last; all where it is not known."""
    places = [tile.place for layer in layers for tile in layer.tiles]
    tops = [0 if place is None else place[1] for place in places]
    bottoms = [height if place is None else place[3] for place in places]
    return min(tops, default=0), max(bottoms, default=0)


def _part(tile: Tile, load: Load) -> Image:
    """The pixels of a tile that are seen."""
    left, top, right, bottom = tile.part
    return resize(load(tile.index), tile.size, smooth=False)[top:bottom, left:right]
