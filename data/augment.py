"""Augmentation: pure functions of pictures and a random generator. Names of hyper-parameters are YOLOv5's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.geometry import GREY, Region, areas, intersections, stretch_picture
from data.picture import Floats, Image, Picture, Polygons, Size, joined
from utils.opencv import cv2

Gains = tuple[float, float, float]  # factors of hue, saturation, brightness

HIDDEN = 0.3  # an object is pasted only where it and those that are there cover less than this share of each other
PASTED = 12  # objects at most that `paste_in` adds to a picture
TRIES = 20  # places that are looked at for each of them
PLACE = (1 / 16, 1 / 2)  # share of the picture that they take of its width or height
ENLARGED = 2.0  # more than this, and what is pasted is a blur
LEAST = 8  # pixels of their shorter side


def mosaic(pictures: Sequence[Picture], size: Size, rng: Generator) -> Picture:
    """Four pictures around a random point of a canvas of twice the `size`.

    Source: Bochkovskiy et al., "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020, arXiv:2004.10934.
    """
    height, width = size
    canvas = np.full((2 * height, 2 * width, 3), GREY, dtype=np.uint8)
    placed = []
    for picture, (left, top) in zip(pictures, mosaic_corners([p.size for p in pictures], size, rng), strict=True):
        paste(canvas, picture.image, top, left)
        placed.append(picture.moved(left, top))
    return joined(canvas, placed).clipped((2 * height, 2 * width))


def mosaic_corners(sizes: Sequence[Size], size: Size, rng: Generator) -> list[tuple[int, int]]:
    """Left and top of four pictures that meet in a random point of the canvas; what sticks out is cut off."""
    centre_y, centre_x = (int(rng.uniform(side / 2, 3 * side / 2)) for side in size)
    return [
        (centre_x - columns if index % 2 == 0 else centre_x, centre_y - rows if index < 2 else centre_y)
        for index, (rows, columns) in enumerate(sizes)
    ]


def paste(canvas: Image, image: Image, top: int, left: int) -> None:
    """Writes an image into a canvas; what sticks out is cut off."""
    bottom, right = min(top + image.shape[0], canvas.shape[0]), min(left + image.shape[1], canvas.shape[1])
    first_y, first_x = max(top, 0), max(left, 0)
    canvas[first_y:bottom, first_x:right] = image[first_y - top : bottom - top, first_x - left : right - left]


def mixup(picture: Picture, other: Picture, rng: Generator) -> Picture:
    """Two pictures of one size laid over each other, with the objects of both.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.
    """
    share = mixup_share(rng)
    return joined(cv2.addWeighted(picture.image, share, other.image, 1 - share, 0), (picture, other))


def mixup_share(rng: Generator) -> float:
    """Of the first of two pictures: near a half."""
    return rng.beta(32.0, 32.0)


def copy_paste(picture: Picture, probability: float, rng: Generator) -> Picture:
    """Objects with outlines are pasted once more, mirrored left to right, where they hide little of the others.

    Source: after Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
    CVPR 2021, arXiv:2012.07177; with the picture itself as source.
    """
    if picture.polygons is None or not probability:
        return picture
    count = len(picture.boxes)
    chosen = rng.permutation(count)[: round(probability * count)]
    mirrored = flip_left_right(picture)
    outlines = np.split(_mirrored(picture.polygons, (-1, 1), (picture.size[1], 0)).points, picture.polygons.starts[1:])
    mask = np.zeros(picture.size, dtype=np.uint8)
    boxes, pasted = picture.boxes, []
    for index in chosen:
        box = mirrored.boxes[index]
        if (_covered(boxes, box) < HIDDEN).all():
            pasted.append(index)
            boxes = np.concatenate((boxes, box[None]))
            cv2.fillPoly(mask, [np.round(outlines[index]).astype(np.int32)], 1)
    if not pasted:
        return picture
    image = np.where(mask[..., None] > 0, mirrored.image, picture.image)
    return joined(image, (picture, mirrored.take(np.array(pasted))))


def paste_in(picture: Picture, sources: Sequence[Picture], rng: Generator) -> Picture:
    """Objects of other pictures, resized, at random places where they and what is there hide little of each other.

    What is pasted is the inside of an object's outline or, without outlines, of its box. The idea is that of copy-paste
    (Ghiasi et al., CVPR 2021, arXiv:2012.07177), as YOLOv7's recipes have it (Wang et al., 2022, arXiv:2207.02696).
    """
    objects = [(source, index) for source in sources for index in range(len(source.boxes))]
    image, boxes, pasted = picture.image.copy(), picture.boxes, []
    for number in rng.permutation(len(objects))[:PASTED].tolist():
        source, index = objects[number]
        cut = _cut_out(source, index)
        place = _free_place(cut.size, picture.size, boxes, rng)
        if place is not None:
            moved = stretch_picture(cut, (place[3] - place[1], place[2] - place[0]), smooth=True)
            _stick(image, moved, place)
            pasted.append(moved.moved(place[0], place[1]))
            boxes = np.concatenate((boxes, pasted[-1].boxes))
    return joined(image, (picture, *pasted)) if pasted else picture


def _cut_out(picture: Picture, index: int) -> Picture:
    """One object alone, on the part of the image that its box covers."""
    height, width = picture.size
    x1, y1, x2, y2 = picture.boxes[index]
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    right, bottom = min(width, math.ceil(x2)), min(height, math.ceil(y2))
    alone = picture.take(np.array([index])).moved(-left, -top)
    return alone._replace(image=picture.image[top:bottom, left:right])


def _free_place(inner: Size, size: Size, boxes: np.ndarray, rng: Generator) -> Region | None:
    """Where in an image of `size` something of size `inner` may go, and how large; None if no such place is found."""
    if min(inner) < 1:
        return None
    sides, limits = np.array(inner[::-1]), np.array(size[::-1])  # width, height
    shares = np.exp(rng.uniform(*np.log(PLACE), size=(TRIES, 1)))  # small places are as likely as large ones
    scaled = np.maximum(np.round(sides * np.minimum(shares * (limits / sides).min(), ENLARGED)), 1)
    corners = np.floor(rng.random((TRIES, 2)) * (limits - scaled + 1))
    places = np.concatenate((corners, corners + scaled), axis=1)
    shared = intersections(places, boxes)
    hidden = np.maximum(shared / areas(places)[:, None], shared / (areas(boxes) + 1e-16)).max(axis=1, initial=0)
    (good,) = np.nonzero((hidden < HIDDEN) & (scaled.min(axis=1) >= LEAST))
    if not len(good):
        return None
    left, top, right, bottom = places[good[0]].astype(int).tolist()
    return left, top, right, bottom


def _stick(image: Image, piece: Picture, place: Region) -> None:
    """Writes a cut-out object of the place's size into an image."""
    left, top, right, bottom = place
    mask = np.full(piece.size, 1, dtype=np.uint8)
    if piece.polygons is not None:
        mask = np.zeros(piece.size, dtype=np.uint8)
        cv2.fillPoly(mask, [np.round(piece.polygons.points).astype(np.int32)], 1)
    cv2.copyTo(piece.image, mask, image[top:bottom, left:right])


def _covered(boxes: np.ndarray, by: np.ndarray) -> np.ndarray:
    """(n,) share of each box that another one covers."""
    return intersections(boxes, by[None])[:, 0] / (areas(boxes) + 1e-16)


def hsv(image: Image, hue: float, saturation: float, value: float, rng: Generator) -> Image:
    """Hue, saturation and brightness, each times a random factor in 1 ± its argument."""
    gains = hsv_gains(hue, saturation, value, rng)
    if gains is None:
        return image
    recoloured = image.copy()
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    recolour(recoloured, hsv_tables(gains), np.empty_like(image), planes)
    return recoloured


def hsv_gains(hue: float, saturation: float, value: float, rng: Generator) -> Gains | None:
    """Factors in 1 ± the argument; None where all arguments are 0."""
    if not (hue or saturation or value):
        return None
    first, second, third = (1 + rng.uniform(-1, 1, 3) * (hue, saturation, value)).tolist()
    return first, second, third


def hsv_tables(gains: Gains) -> NDArray[np.uint8]:
    """(3, 256) what becomes of each level: times its factor; what exceeds the range is cut off, hue begins again."""
    levels = np.arange(256) * np.array(gains)[:, None]
    levels[0] %= 180  # OpenCV's hue is in steps of two degrees
    return np.clip(levels, 0, 255).astype(np.uint8)


def recolour(image: Image, tables: NDArray[np.uint8], spare: Image, planes: NDArray[np.uint8]) -> None:
    """Replaces hue, saturation and brightness, as tables say.

    Args:
        image: written into.
        spare, planes: (H, W, 3) and (3, H, W), written into as well.
    """
    cv2.cvtColor(image, cv2.COLOR_BGR2HSV, dst=spare)
    cv2.split(spare, list(planes))  # one table for three channels takes twice as long as a table a plane
    for plane, table in zip(planes, tables, strict=True):
        cv2.LUT(plane, table, dst=plane)
    cv2.merge(list(planes), dst=spare)
    cv2.cvtColor(spare, cv2.COLOR_HSV2BGR, dst=image)


def flip_left_right(picture: Picture) -> Picture:
    width = picture.size[1]
    polygons = picture.polygons and _mirrored(picture.polygons, (-1, 1), (width, 0))
    return Picture(cv2.flip(picture.image, 1), picture.classes, boxes_left_right(picture.boxes, width), polygons)


def flip_up_down(picture: Picture) -> Picture:
    height = picture.size[0]
    polygons = picture.polygons and _mirrored(picture.polygons, (1, -1), (0, height))
    return Picture(cv2.flip(picture.image, 0), picture.classes, boxes_up_down(picture.boxes, height), polygons)


def boxes_left_right(boxes: Floats, width: int) -> Floats:
    """(n, 4) xyxy boxes of the mirrored image."""
    return _float((boxes * (-1, 1, -1, 1) + (width, 0, width, 0))[:, [2, 1, 0, 3]])


def boxes_up_down(boxes: Floats, height: int) -> Floats:
    """(n, 4) xyxy boxes of the image turned upside down."""
    return _float((boxes * (1, -1, 1, -1) + (0, height, 0, height))[:, [0, 3, 2, 1]])


def _mirrored(polygons: Polygons, sign: tuple[int, int], shift: tuple[int, int]) -> Polygons:
    return polygons._replace(points=_float(polygons.points * sign + shift))


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
