"""Key -> scene: what a training sample shows, from chance, sizes and labels alone; no pixel is read.

Chance is drawn in the order in which `TrainImages.augmented` draws it, so that a sample's scene and its picture agree.

Where nothing turns or shears, every tile is drawn by resizing whole pixels of its image into whole pixels of the
output. Its edges are rounded to that end, in the output where the tile ends there, and in the tile where the output
ends. The tile's labels go the way of its rounded edges, so that boxes and pixels agree exactly; against the scene's
matrix nothing moves by more than half a pixel of the output, or of the tile, whichever is larger (one of the output or
two of the tile where less than one pixel of it is seen).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.augment import boxes_left_right, boxes_up_down, hsv_gains, mixup_share, mosaic_corners
from data.geometry import candidates, fitted_size, place, random_matrix, visible_boxes, warp_boxes, warp_points
from data.labels import Labels
from data.picture import Floats, Polygons, Size, clip, outlined
from data.sampler import Key
from data.scene import Layer, Scene, Tile
from data.view import View
from utils.hyp import Hyp

PIXEL_KEYS = ("copy_paste", "paste_in", "photometric", "expand", "min_iou_crop")


class _Objects(NamedTuple):
    """Of several tiles, on the canvas."""

    classes: Floats  # (n,)
    boxes: Floats  # (n, 4) xyxy pixels
    polygons: Polygons | None
    tiles: NDArray[np.int64]  # (n,) which tile an object belongs to


class _Shown(NamedTuple):
    layer: Layer
    classes: Floats
    boxes: Floats  # pixels of the output


class Composer:
    """Makes scenes.

    Args:
        labels: of what the recipe's view shows, see `open_images`.
        size: of mosaics.
    """

    def __init__(self, labels: Labels, hyp: Hyp, size: Size) -> None:
        self.labels = labels
        self.hyp = hyp
        self.view = View.of(hyp)
        self.size = size

    @property
    def pixel_keys(self) -> tuple[str, ...]:
        """What of the recipe looks at pixels before it decides, or pastes objects; without it, samples are scenes."""
        found = tuple(key for key in PIXEL_KEYS if getattr(self.hyp, key))
        return found if self.labels.has_polygons else tuple(key for key in found if key != "copy_paste")

    @property
    def suffices(self) -> bool:
        """Whether the recipe's samples are scenes."""
        return not self.pixel_keys

    def scene(self, key: Key, rng: Generator) -> Scene:
        """What this key shows; only where it `suffices`."""
        hyp, size, share = self.hyp, key.size, 1.0
        if key.mosaic and rng.random() < hyp.mosaic:
            size = self.size
            shown = [self._mosaic(key.index, key.pool, rng)]
            if rng.random() < hyp.mixup:
                (other,) = self.partners(key.index, 1, key.pool, rng)
                shown.append(self._mosaic(other, key.pool, rng))
                share = mixup_share(rng)
        else:
            shown = [self._alone(key.index, size, rng)]
        gains = hsv_gains(hyp.hsv_h, hyp.hsv_s, hyp.hsv_v, rng)
        up_down, left_right = bool(rng.random() < hyp.flipud), bool(rng.random() < hyp.fliplr)
        boxes = shown[0].boxes if len(shown) == 1 else np.concatenate([one.boxes for one in shown])
        boxes = boxes_up_down(boxes, size[0]) if up_down else boxes
        boxes = boxes_left_right(boxes, size[1]) if left_right else boxes
        classes = np.concatenate([one.classes for one in shown])
        return Scene(size, tuple(one.layer for one in shown), share, gains, up_down, left_right, classes, boxes)

    def partners(self, index: int, count: int, pool: Sequence[int], rng: Generator) -> list[int]:
        """What an image is mixed with: like with like, so that a sample is wholly labelled or not at all.

        Args:
            pool: images like it, from which distinct others are drawn; where it is empty, all images like it are.
        """
        others = [other for other in pool if other != index]
        if len(others) >= count:
            return [others[number] for number in rng.choice(len(others), size=count, replace=False).tolist()]
        labelled = self.labels.labelled
        first, last = (0, labelled) if index < labelled else (labelled, len(self.labels))
        drawn: list[int] = rng.integers(first, last, size=count).tolist()
        return drawn

    # -- layers --------------------------------------------------------------------------------------------------------

    def _mosaic(self, index: int, pool: Sequence[int], rng: Generator) -> _Shown:
        indices = rng.permutation([index, *self.partners(index, 3, pool, rng)]).tolist()
        sizes = [self._loaded_size(one) for one in indices]
        corners = mosaic_corners(sizes, self.size, rng)
        return self._shown(indices, sizes, corners, (2 * self.size[0], 2 * self.size[1]), self.size, rng)

    def _alone(self, index: int, size: Size, rng: Generator) -> _Shown:
        """One image, fitted into the size or stretched to it."""
        if self.view.stretch:
            return self._shown([index], [size], [(0, 0)], size, size, rng)
        placement = place(self._loaded_size(index), size, enlarge=True)
        return self._shown([index], [placement.inner], [(placement.left, placement.top)], size, size, rng)

    def _loaded_size(self, index: int) -> Size:
        height, width = self.labels.shapes[index].tolist()
        return fitted_size((height, width), self.size)

    def _shown(
        self, indices: Sequence[int], sizes: Sequence[Size], corners: Sequence[tuple[int, int]], canvas: Size,
        size: Size, rng: Generator,
    ) -> _Shown:  # fmt: skip
        """Tiles on a canvas, warped at random into an output of `size`."""
        matrix, scale = random_matrix(canvas, size, self.hyp, rng)
        put = _snapped if _upright(matrix) else _turned
        found = (put(*tile, canvas, matrix, size) for tile in zip(indices, sizes, corners, strict=True))
        layer = Layer(tuple(tile for tile in found if tile is not None), canvas, matrix)
        objects = self._objects(layer.tiles, canvas)
        if canvas == size and np.array_equal(matrix, np.eye(3)):  # nothing moved: nothing is too small now that was not
            return _Shown(layer, objects.classes, objects.boxes)
        boxes, kept = _moved(objects, layer, scale, size)
        return _Shown(layer, objects.classes[kept], boxes[kept])

    def _objects(self, tiles: Sequence[Tile], canvas: Size) -> _Objects:
        found = [self.labels[tile.index] for tile in tiles]
        rows = np.concatenate([self.labels.rows[:0], *found])
        owners = np.repeat(np.arange(len(tiles)), np.array([len(own) for own in found], dtype=np.int64))
        frames = np.array([(tile.size[1], tile.size[0], tile.left, tile.top) for tile in tiles], np.float32)
        frames = frames.reshape(-1, 4)[owners]
        sides, corners = frames[:, :2], frames[:, 2:]
        centre, half = rows[:, 1:3], rows[:, 3:5] / 2
        boxes = np.concatenate(((centre - half) * sides + corners, (centre + half) * sides + corners), axis=1)
        polygons = None
        if self.labels.has_polygons and len(rows):
            polygons = self._outlines([tile.index for tile in tiles], boxes, corners, sides)
            polygons = polygons._replace(points=clip(polygons.points, canvas))
        return _Objects(rows[:, 0], clip(boxes, canvas), polygons, owners)

    def _outlines(self, indices: Sequence[int], boxes: Floats, corners: Floats, sides: Floats) -> Polygons:
        """The corners of the box stand for an object without an outline."""
        outlines = [outline for index in indices for outline in self.labels.polygons(index)]
        ways = zip(outlines, sides, corners, strict=True)
        return outlined([outline * side + corner for outline, side, corner in ways], boxes)


# -- ways into the output ---------------------------------------------------------------------------------------------


def _upright(matrix: NDArray[np.float64]) -> bool:
    """Whether it only scales and shifts."""
    return not (matrix[0, 1] or matrix[1, 0] or matrix[2, :2].any()) and bool((matrix.diagonal() > 0).all())


def _snapped(
    index: int, its_size: Size, corner: tuple[int, int], canvas: Size, matrix: NDArray[np.float64], size: Size
) -> Tile | None:
    """A tile that is resized, from whole pixels to whole pixels; None where nothing of it is seen."""
    left, top = corner
    ((scale_x, _, shift_x), (_, scale_y, shift_y), _) = matrix.tolist()
    x = _span(max(left, 0), min(left + its_size[1], canvas[1]), scale_x, shift_x, size[1])
    y = _span(max(top, 0), min(top + its_size[0], canvas[0]), scale_y, shift_y, size[0])
    if x.to == x.end or y.to == y.end:
        return None
    part = (x.first - left, y.first - top, x.last - left, y.last - top)
    return Tile(index, its_size, left, top, part, (x.to, y.to, x.end, y.end))


class _Span(NamedTuple):
    """first ... last on the canvas is drawn at to ... end in the output."""

    first: int
    last: int
    to: int
    end: int


def _span(low: int, high: int, scale: float, shift: float, limit: int) -> _Span:
    """Whole pixels nearest to where low ... high is seen in 0 ... limit, and to what of it is seen."""
    to, end = (round(min(max(edge * scale + shift, 0.0), limit)) for edge in (low, high))
    first = min(max(round(-shift / scale), low), high - 1)
    last = min(max(round((limit - shift) / scale), first + 1), high)
    return _Span(first, last, to, end)


def _turned(
    index: int, its_size: Size, corner: tuple[int, int], canvas: Size, matrix: NDArray[np.float64], size: Size
) -> Tile | None:
    """A tile that is warped with its canvas; None where nothing of it can be seen."""
    left, top = corner
    region = (max(left, 0), max(top, 0), min(left + its_size[1], canvas[1]), min(top + its_size[0], canvas[0]))
    (box,) = warp_boxes(np.array([region], dtype=np.float32), matrix).tolist()
    outside = box[2] <= 0 or box[3] <= 0 or box[0] >= size[1] or box[1] >= size[0]
    # under perspective some of it may lie behind the eye, and then corners do not say where an edge runs
    if outside and not matrix[2, :2].any():
        return None
    part = (region[0] - left, region[1] - top, region[2] - left, region[3] - top)
    return Tile(index, its_size, left, top, part, None)


def _moved(objects: _Objects, layer: Layer, scale: float, size: Size) -> tuple[Floats, NDArray[np.bool_]]:
    """Boxes in the output, cut at its borders, and which of them are worth learning."""
    boxes, polygons = objects.boxes, objects.polygons
    if not len(boxes):
        return boxes, np.zeros(0, dtype=np.bool_)
    if layer.tiles[0].place is not None:
        ways = np.array([_way(tile) for tile in layer.tiles], dtype=np.float32)[objects.tiles]
        gains, shifts = ways[:, :2], ways[:, 2:]
        boxes = clip((boxes.reshape(-1, 2, 2) * gains[:, None] + shifts[:, None]).reshape(-1, 4), size)
        if polygons is not None:
            gains, shifts = (np.repeat(way, polygons.counts, axis=0) for way in (gains, shifts))
            polygons = polygons._replace(points=polygons.points * gains + shifts)
    else:
        boxes = clip(warp_boxes(boxes, layer.matrix), size)
        if polygons is not None:
            polygons = polygons._replace(points=warp_points(polygons.points, layer.matrix))
    before = objects.boxes * np.float32(scale)
    if polygons is None:
        return boxes, candidates(before, boxes, 0.1)
    # a polygon says exactly what is visible, so less of it will do
    boxes = visible_boxes(polygons, size)
    return boxes, candidates(before, boxes, 0.01)


def _way(tile: Tile) -> tuple[float, float, float, float]:
    """From the canvas to where the tile is drawn: gains of x and y, then what is added."""
    assert tile.place is not None
    (left, top, right, bottom), (to_x, to_y, end_x, end_y) = tile.part, tile.place
    gain_x, gain_y = (end_x - to_x) / (right - left), (end_y - to_y) / (bottom - top)
    return gain_x, gain_y, to_x - (tile.left + left) * gain_x, to_y - (tile.top + top) * gain_y
