"""An image with its labels, as augmentations pass it on. Nothing writes into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Size = tuple[int, int]  # height, width


class Polygons(NamedTuple):
    """Outlines of n objects, corners one after the other."""

    points: Floats  # (P, 2) x, y in pixels
    counts: NDArray[np.int64]  # (n,) corners of each object, at least 3

    @property
    def starts(self) -> NDArray[np.int64]:
        """(n,) where an object's corners begin."""
        return np.cumsum(self.counts) - self.counts

    def take(self, keep: NDArray) -> Polygons:
        """Those objects that an index or a mask over objects selects."""
        chosen = np.arange(len(self.counts))[keep]
        starts = self.starts[chosen]
        counts = self.counts[chosen]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Polygons(self.points[np.repeat(starts, counts) + inside], counts)


class Picture(NamedTuple):
    """A BGR image and the objects in it."""

    image: Image  # (H, W, 3)
    classes: Floats  # (n,)
    boxes: Floats  # (n, 4) xyxy pixels
    polygons: Polygons | None = None  # of all objects or of none

    @property
    def size(self) -> Size:
        return self.image.shape[0], self.image.shape[1]

    def take(self, keep: NDArray) -> Picture:
        """The objects that an index or a mask selects."""
        polygons = None if self.polygons is None else self.polygons.take(keep)
        return Picture(self.image, self.classes[keep], self.boxes[keep], polygons)

    def moved(self, x: float, y: float) -> Picture:
        """Labels shifted by so many pixels; the image as it is."""
        shift = np.array((x, y), dtype=np.float32)
        polygons = self.polygons and self.polygons._replace(points=self.polygons.points + shift)
        return self._replace(boxes=self.boxes + np.tile(shift, 2), polygons=polygons)

    def clipped(self, size: Size) -> Picture:
        """Labels cut at the borders of an image of this size."""
        polygons = self.polygons and self.polygons._replace(points=clip(self.polygons.points, size))
        return self._replace(boxes=clip(self.boxes, size), polygons=polygons)


def clip(coordinates: Floats, size: Size) -> Floats:
    """x, y, x, y ... cut at the borders of an image."""
    height, width = size
    limits = np.tile(np.array((width, height), dtype=np.float32), coordinates.shape[-1] // 2)
    return np.clip(coordinates, 0, limits)


def joined(image: Image, pictures: Sequence[Picture]) -> Picture:
    """All objects of several pictures on one image."""
    polygons = None
    if any(picture.polygons is not None for picture in pictures):
        outlines = [picture.polygons or boxes_as_polygons(picture.boxes) for picture in pictures]
        polygons = Polygons(
            np.concatenate([outline.points for outline in outlines]),
            np.concatenate([outline.counts for outline in outlines]),
        )
    return Picture(
        image,
        np.concatenate([picture.classes for picture in pictures]),
        np.concatenate([picture.boxes for picture in pictures]),
        polygons,
    )


def boxes_as_polygons(boxes: Floats) -> Polygons:
    """The four corners of every box."""
    return Polygons(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2), np.full(len(boxes), 4, dtype=np.int64))


def outlined(outlines: Sequence[Floats], boxes: Floats) -> Polygons:
    """The outlines, (k, 2) each; the corners of its box stand for an object without one."""
    corners = boxes_as_polygons(boxes).points.reshape(-1, 4, 2)
    parts = [outline if len(outline) else box for outline, box in zip(outlines, corners, strict=True)]
    points = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.float32)
    return Polygons(points, np.array([len(part) for part in parts], dtype=np.int64))
