"""One drawn scene: a background, clutter, and objects that partly hide each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from utils.opencv import cv2

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]  # (H, W) opacity in [0, 1]
Outline = NDArray[np.float64]  # (k, 2) around the origin, radius at most 1

SMALLEST = 8  # pixels; the diameter of an object
FINE = 4  # masks are drawn this much larger, then averaged
SHOWN = 0.45  # an object shows at least this share of itself
CROWD = (3, 11)  # objects tried a scene
NOBODY = 255


# -- outlines ---------------------------------------------------------------------------------------------------------


def _around(radius: Callable[[NDArray], NDArray], steps: int) -> Outline:
    angle = np.arange(steps) * (2 * math.pi / steps)
    return radius(angle)[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _points(count: int, inner: float) -> Outline:
    """A star with so many points."""
    return _around(lambda angle: np.where(np.arange(len(angle)) % 2 == 0, 1.0, inner), 2 * count)


def _disc() -> Outline:
    return _around(np.ones_like, 72)


def _star(rng: Generator) -> list[Outline]:
    return [_points(5, rng.uniform(0.42, 0.55))]


def _hexagram(rng: Generator) -> list[Outline]:
    return [_points(6, rng.uniform(0.48, 0.6))]


def _flower(rng: Generator) -> list[Outline]:
    petals, depth = int(rng.integers(6, 10)), rng.uniform(0.12, 0.18)
    outer = _around(lambda angle: 1 - depth + depth * np.cos(petals * angle), 180)
    return [outer, _disc() * rng.uniform(0.18, 0.3)]


def _gear(rng: Generator) -> list[Outline]:
    teeth, depth = int(rng.integers(6, 10)), rng.uniform(0.2, 0.3)
    outer = _around(lambda angle: 1 - depth / 2 + depth / 2 * np.tanh(4 * np.cos(teeth * angle)), 180)
    return [outer, _disc() * rng.uniform(0.18, 0.3)]


def _ring(rng: Generator) -> list[Outline]:
    return [_disc(), _disc() * rng.uniform(0.28, 0.6)]


def _pie(rng: Generator) -> list[Outline]:
    """A disc with a slice missing."""
    gap = math.radians(rng.uniform(35, 75))
    angle = np.linspace(gap / 2, 2 * math.pi - gap / 2, 64)
    rim = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return [np.concatenate((rim, [[rng.uniform(0.0, 0.25), 0.0]]))]


SHAPES: dict[str, Callable[[Generator], list[Outline]]] = {
    "star": _star,
    "hexagram": _hexagram,
    "flower": _flower,
    "gear": _gear,
    "ring": _ring,
    "pie": _pie,
}
CLASSES = tuple(SHAPES)


def _decoy(rng: Generator) -> list[Outline]:
    """Something of the same make that is no object: a full disc, a triangle, a box, a lens."""
    kind = int(rng.integers(4))
    if kind == 0:
        return [_disc()]
    if kind == 3:
        return [_disc() * (1.0, rng.uniform(0.3, 0.6))]
    return [_around(np.ones_like, 3 if kind == 1 else 4) * (1.0, rng.uniform(0.6, 1.0))]


# -- painting ---------------------------------------------------------------------------------------------------------


def draw_scene(size: tuple[int, int], rng: Generator) -> tuple[Image, NDArray[np.int64], NDArray[np.float64]]:
    """A BGR image of this height and width, the classes (n,) and the xyxy boxes (n, 4), in pixels, of what is seen."""
    canvas = _background(size, rng)
    for _ in range(int(rng.integers(2, 7))):
        _strokes(canvas, rng)
    for _ in range(int(rng.integers(2, 6))):
        _paint(canvas, _stamp(_decoy(rng), _diameter(size, rng), size, rng), rng)

    owner = np.full(size, NOBODY, dtype=np.uint8)  # whose pixel it is
    classes: list[int] = []
    whole, shown = np.zeros(NOBODY), np.zeros(NOBODY)  # pixels of each object, and how many of them are not hidden
    for _ in range(int(rng.integers(*CROWD, endpoint=True))):
        label = int(rng.integers(len(CLASSES)))
        stamp = _stamp(SHAPES[CLASSES[label]](rng), _diameter(size, rng), size, rng)
        solid = stamp.mask > 0.5
        left = shown - np.bincount(owner[stamp.window][solid], minlength=NOBODY + 1)[:NOBODY]
        if not _large_enough(solid) or (left < SHOWN * whole).any():
            continue
        left[len(classes)] = whole[len(classes)] = solid.sum()
        owner[stamp.window][solid] = len(classes)
        shown = left
        classes.append(label)
        _paint(canvas, stamp, rng)
    if rng.random() < 0.5:
        _strokes(canvas, rng)  # over everything
    return _photograph(canvas, rng), np.array(classes, dtype=np.int64), _boxes(owner, len(classes))


def _diameter(size: tuple[int, int], rng: Generator) -> float:
    """Many small ones, some up to half of the image."""
    largest = min(size) / 2
    return SMALLEST * (largest / SMALLEST) ** float(rng.beta(1.3, 1.5))


class Stamp(NamedTuple):
    """A shape at its place."""

    window: tuple[slice, slice]  # rows and columns of the scene, with room for a shadow
    mask: Mask  # of the window
    diameter: float


def _stamp(outlines: list[Outline], diameter: float, size: tuple[int, int], rng: Generator) -> Stamp:
    """Outlines turned, slightly squeezed, and put somewhere; the second and later ones are holes."""
    turn, squeeze = rng.uniform(0, 2 * math.pi), rng.uniform(0.82, 1.0)
    lean = rng.uniform(0, 2 * math.pi)
    matrix = _rotation(lean) @ np.diag((1.0, squeeze)) @ _rotation(turn - lean)
    centre = rng.uniform(0.02, 0.98, 2) * size[::-1]
    reach = diameter * 0.62 + 3
    left, top = (max(0, int(c - reach)) for c in centre)
    right, bottom = (min(side, int(c + reach) + 1) for c, side in zip(centre, size[::-1], strict=True))
    fine = np.zeros(((bottom - top) * FINE, (right - left) * FINE), dtype=np.uint8)
    for outline, ink in zip(outlines, (255, 0), strict=False):
        points = (outline @ matrix.T * (diameter / 2) + centre - (left, top)) * FINE
        cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], ink, lineType=cv2.LINE_8, shift=4)
    mask = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return Stamp((slice(top, bottom), slice(left, right)), mask, diameter)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))


def _paint(canvas: NDArray[np.float32], stamp: Stamp, rng: Generator) -> None:
    """Puts a shape on the canvas: its shadow, its filling, a darker rim."""
    patch, own, span = canvas[stamp.window], stamp.mask, stamp.diameter
    offset = max(1.0, span / 24)
    shift = np.array(((1, 0, offset), (0, 1, offset)))
    shadow = cv2.GaussianBlur(cv2.warpAffine(own, shift, own.shape[::-1]), (0, 0), max(0.6, span / 30))
    patch *= 1 - np.float32(rng.uniform(0.25, 0.5)) * shadow[..., None]

    core = cv2.erode(own, np.ones((3, 3), dtype=np.uint8)) if span > 14 else own
    rim = np.float32(rng.uniform(0.45, 0.8))
    tone = _texture(own.shape, span, rng) * (rim + (1 - rim) * core)
    patch += (_color(rng) * tone[..., None] - patch) * own[..., None]


def _texture(shape: tuple[int, ...], span: float, rng: Generator) -> Mask:
    """Brightness of a surface: lit from one side; plain, striped or dotted."""
    kind, strength, angle = int(rng.integers(4)), rng.uniform(0.15, 0.35), rng.uniform(0, math.pi)
    wave = 2 * math.pi / rng.uniform(0.2, 0.45)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) / np.float32(span)
    along = x * math.cos(angle) + y * math.sin(angle)
    tone = 1 - strength * (along - along.mean())
    if kind == 1:
        tone *= 1 - strength * (np.sin(along * wave) > 0)
    elif kind == 2:
        across = y * math.cos(angle) - x * math.sin(angle)
        tone *= 1 - strength * (np.sin(along * wave) * np.sin(across * wave) > 0.3)
    return tone


def _color(rng: Generator) -> NDArray[np.float32]:
    """A BGR colour, mostly a vivid one."""
    pixel = np.array([[[rng.integers(180), rng.integers(90, 230), rng.integers(110, 250)]]], dtype=np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _background(size: tuple[int, int], rng: Generator) -> NDArray[np.float32]:
    """Muted clouds of two or three colours."""
    height, width = size
    canvas = np.zeros((height, width, 3), dtype=np.float32) + rng.uniform(70, 200, 3).astype(np.float32)
    for cells in (2, 5, 12):
        clouds = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        clouds = 0.6 * clouds.mean(axis=2, keepdims=True) + 0.4 * clouds
        canvas += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC) * (60.0 / cells**0.5)
    return np.clip(canvas, 20, 235)


def _strokes(canvas: NDArray[np.float32], rng: Generator) -> None:
    """A curve of some thickness, or an arc: edges and bends that belong to no object."""
    height, width = canvas.shape[:2]
    tint = _color(rng).tolist()
    thickness = int(rng.integers(1, 4))
    if rng.random() < 0.3:
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius, start = int(rng.integers(4, max(6, min(height, width) // 4))), int(rng.integers(360))
        stop = start + int(rng.integers(60, 250))
        cv2.ellipse(canvas, centre, (radius, radius), 0, start, stop, tint, thickness, cv2.LINE_AA)
        return
    steps = rng.normal(0, min(height, width) / 7, (int(rng.integers(2, 6)), 2))
    corners = np.cumsum(steps, axis=0) + rng.uniform(0, 1, 2) * (width, height)
    cv2.polylines(canvas, [np.round(corners).astype(np.int32)], False, tint, thickness, cv2.LINE_AA)


def _photograph(canvas: NDArray[np.float32], rng: Generator) -> Image:
    """Light, focus and grain of a modest camera."""
    contrast, cast = rng.uniform(0.75, 1.1), rng.uniform(0.92, 1.08, 3)
    canvas = (canvas - 128) * (contrast * cast).astype(np.float32) + 128 + np.float32(rng.uniform(-18, 18))
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.0)))
    grain = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * np.float32(rng.uniform(1, 7))  # of brightness
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8)


# -- what is seen -----------------------------------------------------------------------------------------------------


def _large_enough(solid: NDArray[np.bool_]) -> bool:
    """Whether what of an object lies in the scene can be seen at all."""
    return min(cv2.boundingRect(solid.astype(np.uint8))[2:]) >= SMALLEST - 2


def _boxes(owner: NDArray[np.uint8], count: int) -> NDArray[np.float64]:
    """xyxy boxes around the visible pixels of each object."""
    boxes = np.zeros((count, 4))
    for index in range(count):
        x, y, width, height = cv2.boundingRect((owner == index).astype(np.uint8))
        boxes[index] = x, y, x + width, y + height
    return boxes
