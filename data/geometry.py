"""Where pixels and boxes go: resizing, letterbox, affine and perspective warps."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data import substitutes
from data.picture import Floats, Image, Picture, Polygons, Size, clip
from utils.opencv import AVAILABLE, cv2
from utils.types import Frame

Region = tuple[int, int, int, int]  # left, top, right, bottom, pixels

GREY = 114  # what is filled in around images, as the published models have learnt it


class Warp(Protocol):
    """Hyper-parameters of a random warp."""

    @property
    def degrees(self) -> float: ...
    @property
    def translate(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def shear(self) -> float: ...
    @property
    def perspective(self) -> float: ...


# -- resizing ---------------------------------------------------------------------------------------------------------


def fitted_size(original: Size, size: Size) -> Size:
    """Height and width of an image scaled, up or down, to fit into `size` and to touch it on one side."""
    gain = min(size[0] / original[0], size[1] / original[1])
    # rounded up as the published models were evaluated; the slack is for 640.0000001
    height, width = (max(1, math.ceil(side * gain - 1e-6)) for side in original)
    return min(height, size[0]), min(width, size[1])


def resize(image: Image, size: Size, smooth: bool) -> Image:
    """The image at another size; `smooth` averages areas when it shrinks, otherwise it is bilinear."""
    original = image.shape[:2]
    if original == tuple(size):
        return image
    shrinks = size[0] <= original[0] and size[1] <= original[1]
    if not AVAILABLE:
        return substitutes.resize(image, size, smooth and shrinks)
    method = cv2.INTER_AREA if smooth and shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


class Placement(NamedTuple):
    """A letterbox: the image is scaled to `inner`, then padded."""

    inner: Size
    top: int
    left: int
    bottom: int
    right: int


def place(original: Size, size: Size, enlarge: bool) -> Placement:
    """How an image of size `original` is centred in `size`; without `enlarge` it is never scaled up."""
    gain = min(size[0] / original[0], size[1] / original[1])
    gain = gain if enlarge else min(gain, 1.0)
    inner = (max(1, round(original[0] * gain)), max(1, round(original[1] * gain)))
    half_y, half_x = (size[0] - inner[0]) / 2, (size[1] - inner[1]) / 2
    # an odd pixel goes below and to the right
    return Placement(inner, round(half_y - 0.1), round(half_x - 0.1), round(half_y + 0.1), round(half_x + 0.1))


def letterbox(image: Image, size: Size, enlarge: bool = True, smooth: bool = False) -> tuple[Image, Placement]:
    """The image scaled to fit into `size` and padded with grey; `smooth` as in `resize`."""
    placement = place((image.shape[0], image.shape[1]), size, enlarge)
    inner = resize(image, placement.inner, smooth)
    _, top, left, bottom, right = placement
    if top or left or bottom or right:
        padded = np.full((*size, 3), GREY, dtype=np.uint8)
        padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        inner = padded
    return inner, placement


def frame_of(original: Size, placement: Placement, region: Region | None = None) -> Frame:
    """The way from pixels of the original image to pixels of the padded one.

    Args:
        region: what of the original was scaled and padded; None: all of it.
    """
    left, top, right, bottom = region or (0, 0, original[1], original[0])
    scale_y, scale_x = placement.inner[0] / (bottom - top), placement.inner[1] / (right - left)
    return Frame(
        height=original[0],
        width=original[1],
        scale_y=scale_y,
        scale_x=scale_x,
        offset_y=placement.top - top * scale_y,
        offset_x=placement.left - left * scale_x,
    )


def letterbox_picture(picture: Picture, size: Size, enlarge: bool = True, smooth: bool = False) -> Picture:
    """A picture scaled to fit into `size` and padded, its labels with it; `smooth` as in `resize`."""
    image, placement = letterbox(picture.image, size, enlarge, smooth)
    return _scaled(picture, image, placement.inner).moved(placement.left, placement.top)


def stretch_picture(picture: Picture, size: Size, smooth: bool = False) -> Picture:
    """A picture resized to `size` whatever its ratio, its labels with it; `smooth` as in `resize`."""
    if picture.size == tuple(size):
        return picture
    return _scaled(picture, resize(picture.image, size, smooth), size)


def _scaled(picture: Picture, image: Image, size: Size) -> Picture:
    """The labels of a picture on an image that shows it at this size."""
    height, width = picture.size
    gain = np.array((size[1] / width, size[0] / height), dtype=np.float32)
    polygons = picture.polygons and picture.polygons._replace(points=picture.polygons.points * gain)
    return Picture(image, picture.classes, picture.boxes * np.tile(gain, 2), polygons)


def intersections(boxes: NDArray, others: NDArray) -> NDArray:
    """Area that each xyxy box shares with each other: (n, 4) and (m, 4) -> (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(0).prod(axis=2)


def areas(boxes: NDArray) -> NDArray:
    """(n, 4) xyxy -> (n,)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


# -- warps ------------------------------------------------------------------------------------------------------------


def random_matrix(size: Size, out: Size, hyp: Warp, rng: Generator) -> tuple[NDArray[np.float64], float]:
    """A (3, 3) matrix from pixels of an image of `size` to pixels of `out`, and the scale in it.

    About the centre: perspective, rotation and scale, shear; then the centre goes near the centre of `out`.
    """

    def symmetric(limit: float) -> float:
        return rng.uniform(-limit, limit)

    centre = np.eye(3)
    centre[:2, 2] = -size[1] / 2, -size[0] / 2
    tilt = np.eye(3)
    tilt[2, :2] = symmetric(hyp.perspective), symmetric(hyp.perspective)
    angle, scale = math.radians(symmetric(hyp.degrees)), 1 + symmetric(hyp.scale)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array(((cosine, sine, 0), (-sine, cosine, 0), (0, 0, 1)))
    shear = np.eye(3)
    shear[0, 1], shear[1, 0] = (math.tan(math.radians(symmetric(hyp.shear))) for _ in range(2))
    move = np.eye(3)
    move[:2, 2] = [(0.5 + symmetric(hyp.translate)) * side for side in (out[1], out[0])]
    return move @ shear @ turn @ tilt @ centre, scale


def warp_points(points: Floats, matrix: NDArray[np.float64]) -> Floats:
    """(n, 2) -> (n, 2)."""
    moved = points @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] or matrix[2, 1]:
        # what is behind the eye has no place in the image; far away will do
        moved = moved / np.maximum(points @ matrix[2, :2] + matrix[2, 2], 1e-6)[:, None]
    return moved.astype(np.float32)


def warp_boxes(boxes: Floats, matrix: NDArray[np.float64]) -> Floats:
    """(n, 4) xyxy -> the boxes around their warped corners."""
    corners = warp_points(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2), matrix).reshape(-1, 4, 2)
    return np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)


def warp_image(image: Image, matrix: NDArray[np.float64], size: Size) -> Image:
    """Bilinear, grey where there was nothing; the matrix is one of edges, as for boxes."""
    # OpenCV's is one of pixel centres, and a pixel's centre lies half a pixel behind its edge
    to_edges, to_centres = np.eye(3), np.eye(3)
    to_edges[:2, 2], to_centres[:2, 2] = 0.5, -0.5
    centres = to_centres @ matrix @ to_edges
    shape, grey = (size[1], size[0]), (GREY,) * 3
    if matrix[2, 0] or matrix[2, 1]:
        return cv2.warpPerspective(image, centres, shape, borderValue=grey)
    return cv2.warpAffine(image, centres[:2], shape, borderValue=grey)


def random_affine(picture: Picture, size: Size, hyp: Warp, rng: Generator) -> Picture:
    """The picture warped at random onto an image of `size`; objects of which too little is left are dropped."""
    matrix, scale = random_matrix(picture.size, size, hyp, rng)
    if picture.size == tuple(size) and np.array_equal(matrix, np.eye(3)):
        return picture
    image = warp_image(picture.image, matrix, size)
    if not len(picture.boxes):
        return picture._replace(image=image)
    if picture.polygons is None:
        polygons, boxes, least = None, clip(warp_boxes(picture.boxes, matrix), size), 0.1
    else:
        polygons = picture.polygons._replace(points=warp_points(picture.polygons.points, matrix))
        # a polygon says exactly what is visible, so less of it will do
        boxes, least = visible_boxes(polygons, size), 0.01
    kept = candidates(picture.boxes * np.float32(scale), boxes, least)
    return Picture(image, picture.classes, boxes, polygons).take(kept)


def candidates(before: Floats, after: Floats, least_area: float) -> NDArray[np.bool_]:
    """(n,) which boxes are still worth learning: over 2 px wide and high, enough area left, no sliver (1 : 100)."""
    width, height = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    area = (before[:, 2] - before[:, 0]) * (before[:, 3] - before[:, 1])
    tiny = 1e-16
    slim = np.maximum(width / (height + tiny), height / (width + tiny))
    return (width > 2) & (height > 2) & (width * height / (area + tiny) > least_area) & (slim < 100)


def visible_boxes(polygons: Polygons, size: Size) -> Floats:
    """(n, 4) xyxy boxes around what of each polygon lies inside an image; zero where nothing does.

    Every edge is cut at the image's borders; a corner of the image that lies inside the polygon counts as well.
    """
    points, counts, starts = polygons.points.astype(np.float64), polygons.counts, polygons.starts
    following = np.arange(1, len(points) + 1)
    following[starts + counts - 1] = starts
    ends = points[following]
    limits = np.array((size[1], size[0]), dtype=np.float64)
    enter, leave = _cut(points, ends - points, limits)
    seen = (enter <= leave)[:, None]
    first, last = (points + np.clip(t, 0, 1)[:, None] * (ends - points) for t in (enter, leave))
    low = np.minimum.reduceat(np.where(seen, np.minimum(first, last), np.inf), starts)
    high = np.maximum.reduceat(np.where(seen, np.maximum(first, last), -np.inf), starts)
    corners = limits * np.array(((0, 0), (1, 0), (0, 1), (1, 1)))
    for corner in corners:
        inside = _contain(points, ends, starts, corner)[:, None]
        low = np.where(inside, np.minimum(low, corner), low)
        high = np.where(inside, np.maximum(high, corner), high)
    boxes = np.concatenate((low, high), axis=1)
    return np.where(np.isfinite(boxes).all(axis=1, keepdims=True), boxes, 0).astype(np.float32)


def _cut(points: NDArray, directions: NDArray, limits: NDArray) -> tuple[NDArray, NDArray]:
    """The stretch [enter, leave] of every edge, in [0, 1], inside 0 ... limits; enter > leave for none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (0 - points) / directions, (limits - points) / directions
    flat = directions == 0
    within = (points >= 0) & (points <= limits)
    near = np.where(flat, np.where(within, -np.inf, np.inf), np.minimum(to_low, to_high))
    far = np.where(flat, np.where(within, np.inf, -np.inf), np.maximum(to_low, to_high))
    return np.maximum(near.max(axis=1), 0), np.minimum(far.min(axis=1), 1)


def _contain(points: NDArray, ends: NDArray, starts: NDArray, corner: NDArray) -> NDArray[np.bool_]:
    """(n,) which polygons contain a point, by the number of edges that a ray to the right crosses."""
    (x, y), (x1, y1), (x2, y2) = corner, points.T, ends.T
    spans = (y1 > y) != (y2 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return np.add.reduceat((spans & (crossing > x)).astype(np.int64), starts) % 2 == 1
