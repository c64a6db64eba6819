"""The augmentation of SSD: colours distorted, the image on a larger canvas, a crop that keeps enough of an object.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, arXiv:1512.02325.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.geometry import areas, intersections
from data.picture import Floats, Image, Picture, Size
from utils.hyp import Hyp
from utils.opencv import cv2

MEAN = (104, 117, 123)  # blue, green, red: of the photographs of ImageNet, what the canvas is filled with
TRIES = 50  # crops that are drawn for each overlap


def ssd(picture: Picture, hyp: Hyp, rng: Generator) -> Picture:
    """One picture through all three, as far as the recipe has them; its size may be another afterwards."""
    if hyp.photometric and rng.random() < hyp.photometric:
        picture = picture._replace(image=photometric(picture.image, rng))
    if hyp.expand and rng.random() < hyp.expand:
        picture = expand(picture, hyp.expand_ratio, rng)
    if hyp.min_iou_crop:
        picture = min_iou_crop(picture, hyp.min_iou_crop, rng)
    return picture


# -- colours ----------------------------------------------------------------------------------------------------------


def photometric(image: Image, rng: Generator) -> Image:
    """Brightness, contrast, saturation, hue and the order of the channels: each with chance 1/2, in random order."""
    changed = image.astype(np.float32)
    for number in rng.permutation(len(_STEPS)).tolist():
        if rng.random() < 0.5:
            changed = _STEPS[number](changed, rng).clip(0, 255)
    return np.rint(changed).astype(np.uint8)


def _brightness(image: Floats, rng: Generator) -> Floats:
    return image + np.float32(rng.uniform(-32, 32))


def _contrast(image: Floats, rng: Generator) -> Floats:
    return image * np.float32(rng.uniform(0.5, 1.5))


def _saturation(image: Floats, rng: Generator) -> Floats:
    return _turned(image, shift=0.0, factor=rng.uniform(0.5, 1.5))


def _hue(image: Floats, rng: Generator) -> Floats:
    return _turned(image, shift=rng.uniform(-18, 18), factor=1.0)


def _channels(image: Floats, rng: Generator) -> Floats:
    return cv2.transform(image, np.eye(3, dtype=np.float32)[rng.permutation(3)])  # many times as fast as indexing


def _turned(image: Floats, shift: float, factor: float) -> Floats:
    """Hue moved by so many degrees, saturation times a factor."""
    turned = cv2.cvtColor(image / np.float32(255), cv2.COLOR_BGR2HSV)  # hue in 0 ... 360
    hue, saturation = turned[..., 0], turned[..., 1]
    hue += np.float32(shift)
    hue[hue < 0] += 360
    hue[hue >= 360] -= 360
    np.minimum(saturation * np.float32(factor), 1, out=saturation)
    return cv2.cvtColor(turned, cv2.COLOR_HSV2BGR) * np.float32(255)


_STEPS = (_brightness, _contrast, _saturation, _hue, _channels)


# -- places -----------------------------------------------------------------------------------------------------------


def expand(picture: Picture, largest: float, rng: Generator) -> Picture:
    """The picture somewhere on a canvas of the same ratio, up to `largest` times as high and wide: small objects."""
    height, width = picture.size
    ratio = rng.uniform(1, largest)
    rows, columns = round(height * ratio), round(width * ratio)
    top, left = rng.integers(0, (rows - height + 1, columns - width + 1)).tolist()
    around = (top, rows - height - top, left, columns - width - left)
    canvas = cv2.copyMakeBorder(picture.image, *around, cv2.BORDER_CONSTANT, value=MEAN)
    return picture.moved(left, top)._replace(image=canvas)


def min_iou_crop(picture: Picture, least: Sequence[float], rng: Generator) -> Picture:
    """The whole picture, any crop, or one whose overlap (IoU) with some object reaches one of `least`: equally likely.

    Objects whose centre lies outside are dropped and the others cut at its borders; a crop has at least one, if there
    are any. Where `TRIES` crops do not have the overlap, another choice is made.
    """
    for choice in rng.permutation(len(least) + 2).tolist():
        if choice == len(least):
            return picture
        crops = _random_crops(picture.size, rng)
        (good,) = np.nonzero(_suits(crops, picture.boxes, least[choice] if choice < len(least) else 0.0))
        if len(good):
            return _cropped(picture, crops[good[0]])
    return picture


def _random_crops(size: Size, rng: Generator) -> NDArray[np.int64]:
    """(TRIES, 4) xyxy pixels: sides are 0.3 to 1 of the image's, neither share more than twice the other."""
    limits = np.array(size[::-1])
    shares = rng.uniform(0.3, 1, (TRIES, 2))
    # the longer one is shortened: redrawing would take an unknown number of draws
    shares = np.minimum(shares, 2 * shares[:, ::-1])
    sides = np.maximum(np.round(shares * limits), 1)
    corners = np.floor(rng.random((TRIES, 2)) * (limits - sides + 1))
    return np.concatenate((corners, corners + sides), axis=1).astype(np.int64)


def _suits(crops: NDArray, boxes: NDArray, least: float) -> NDArray[np.bool_]:
    """(k,) which crops have enough of an object, and the centre of one; without objects, all."""
    if not len(boxes):
        return np.full(len(crops), True)
    shared = intersections(crops, boxes)
    overlap = shared / (areas(crops)[:, None] + areas(boxes) - shared)
    return (overlap.max(axis=1) >= least) & _have_centre(crops, boxes).any(axis=1)


def _have_centre(crops: NDArray, boxes: NDArray) -> NDArray[np.bool_]:
    """(k, n) whether the centre of a box lies in a crop."""
    centres = (boxes[None, :, :2] + boxes[None, :, 2:]) / 2
    return ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(axis=2)


def _cropped(picture: Picture, crop: NDArray[np.int64]) -> Picture:
    left, top, right, bottom = crop.tolist()
    kept = picture.take(_have_centre(crop[None], picture.boxes)[0])
    return (
        kept.moved(-left, -top)
        .clipped((bottom - top, right - left))
        ._replace(image=picture.image[top:bottom, left:right])
    )
