"""What of each image is shown, in training and evaluation alike: a fixed crop, fitted into the size or stretched to it.

Labels are told of it once, and images as they are read. What follows (batches, anchors, augmentation) sees images that
were like this from the beginning; only the frames of evaluation know the way back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.geometry import (
    Placement,
    Region,
    areas,
    frame_of,
    letterbox_picture,
    resize,
    stretch_picture,
)
from data.labels import Labels
from data.picture import Image, Picture, Size
from data.store import ImageStore, Loaded
from utils.errors import UserError
from utils.hyp import Hyp
from utils.types import Frame

log = logging.getLogger(__name__)

Crop = tuple[float, float, float, float]

WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)
LEAST_AREA = 0.1  # of a box must be left in the crop, as after a random warp


class View(NamedTuple):
    """Nothing but the fixed part of a recipe's geometry."""

    crop: Crop = WHOLE  # left, top, right, bottom, shares of the image
    stretch: bool = False  # to the size of training, whatever the ratio; otherwise fitted into it and padded

    @classmethod
    def of(cls, hyp: Hyp) -> View:
        return cls(hyp.fixed_crop or WHOLE, not hyp.letterbox)

    def region(self, original: Size) -> Region:
        """What is shown of an image of this size: left, top, right, bottom in pixels."""
        left, top, right, bottom = self._regions(np.array([original]))[0].tolist()
        return left, top, right, bottom

    def shapes(self, originals: NDArray[np.int32], size: Size) -> NDArray[np.int32]:
        """(n, 2) height and width that the images seem to have."""
        if self.stretch:
            return np.full_like(originals, size)
        regions = self._regions(originals)
        return (regions[:, [3, 2]] - regions[:, [1, 0]]).astype(originals.dtype)

    def show(self, image: Image, size: Size, smooth: bool) -> Image:
        """A decoded image as it is seen; `smooth` as in `resize`."""
        left, top, right, bottom = self.region((image.shape[0], image.shape[1]))
        part = image[top:bottom, left:right]
        return resize(part, size, smooth) if self.stretch else part

    def fit(self, picture: Picture, size: Size, smooth: bool = False) -> Picture:
        """A seen picture at the size of training, its labels with it."""
        if self.stretch:
            return stretch_picture(picture, size, smooth)
        return letterbox_picture(picture, size, smooth=smooth)

    def frame(self, original: Size, placement: Placement) -> Frame:
        """The way from pixels of the file's image to pixels of the tensor, into which what is seen was placed."""
        return frame_of(original, placement, self.region(original))

    def labels(self, labels: Labels, size: Size, where: str) -> Labels:
        """The labels of what is seen: shapes are those it seems to have, boxes are cut at the crop's borders.

        Raises:
            UserError: no box lies in the crop, though there are some.
        """
        shapes = self.shapes(labels.shapes, size)
        if self.crop == WHOLE:
            return labels if not self.stretch else replace(labels, shapes=shapes)
        cropped = _cropped(labels, self._regions(labels.shapes))
        log.info("%s: fixed_crop leaves %d of %d boxes", where, len(cropped.rows), len(labels.rows))
        if len(labels.rows) and not len(cropped.rows):
            shares = ", ".join(f"{share:g}" for share in self.crop)
            raise UserError(f"{where}: fixed_crop: [{shares}] leaves none of {len(labels.rows)} boxes")
        return replace(cropped, shapes=shapes)

    def _regions(self, originals: NDArray) -> NDArray[np.int64]:
        """(n, 2) height and width -> (n, 4) xyxy pixels, at least one each way."""
        sides = originals[:, ::-1].astype(np.int64)
        low = np.minimum(np.round(sides * self.crop[:2]).astype(np.int64), sides - 1)
        high = np.maximum(np.round(sides * self.crop[2:]).astype(np.int64), low + 1)
        return np.concatenate((low, high), axis=1)


def _cropped(labels: Labels, regions: NDArray[np.int64]) -> Labels:
    """Boxes and outlines in [0, 1] of the region of their image, (n, 4) xyxy pixels; too little of a box is no box."""
    sides = labels.shapes[labels.image_of_row][:, ::-1]  # (N, 2) width, height of the original
    region = regions[labels.image_of_row]
    inner = region[:, 2:] - region[:, :2]
    centre, half = labels.rows[:, 1:3].astype(np.float64), labels.rows[:, 3:5].astype(np.float64) / 2
    low, high = (((centre + sign * half) * sides - region[:, :2]) / inner for sign in (-1, 1))
    whole, boxes = np.concatenate((low, high), axis=1), np.concatenate((low, high), axis=1).clip(0, 1)
    kept = areas(boxes) > LEAST_AREA * areas(whole)
    rows = np.concatenate((labels.rows[:, :1], (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)

    corners = np.diff(labels.point_offsets)  # (N,) of each row
    row = np.repeat(np.arange(len(rows)), corners)
    points = ((labels.points * sides[row] - region[row, :2]) / inner[row]).clip(0, 1)
    return replace(labels, rows=rows.astype(np.float32), points=points.astype(np.float32)).keep(kept)


class ViewStore(ImageStore):
    """A store of images that are shown in part or stretched: it does so as it reads them.

    Args:
        originals: (n, 2) height and width of the files' images; `shapes` is what they seem to have.
    """

    def __init__(
        self, paths: Sequence[str], originals: NDArray[np.int32], view: View, size: Size, smooth: bool, cache: str,
        where: str, source: str = "",
    ) -> None:  # fmt: skip
        self.view = view
        self.originals = originals
        super().__init__(paths, view.shapes(originals, size), size, smooth, cache, where, source)

    def load(self, index: int) -> Loaded:
        height, width = self.originals[index].tolist()
        return super().load(index)._replace(original=(height, width))

    def settings(self) -> str:
        return f"{super().settings()} {self.view}"

    def _reduction(self, index: int) -> int:
        return 1  # what is shown of an image is counted in its own pixels

    def _original(self, index: int) -> Image | None:
        image = super()._original(index)
        if image is None:
            return None
        shown = self.view.show(image, self.size, self.smooth)
        return shown if shown is image or shown.base is not image else shown.copy()  # or a crop would keep the whole


def open_images(
    labels: Labels, view: View, size: Size, *, smooth: bool, cache: str, where: str, source: str = ""
) -> tuple[Labels, ImageStore]:
    """Labels and images of what a view shows, at one size; the rest is as in `ImageStore`."""
    if view == View():
        return labels, ImageStore(labels.paths, labels.shapes, size, smooth, cache, where, source)
    store = ViewStore(labels.paths, labels.shapes, view, size, smooth, cache, where, source)
    return view.labels(labels, size, where), store
