from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.augment import copy_paste, flip_left_right, flip_up_down, hsv, mixup, mosaic
from data.picture import Picture, boxes_as_polygons


def block(size, box, color=255, polygons=False, label=0):
    """A black picture with one bright box."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = color
    boxes = np.array([box], dtype=np.float32)
    return Picture(image, np.array([label], np.float32), boxes, boxes_as_polygons(boxes) if polygons else None)


def seen(image, color=255):
    rows, columns = np.nonzero((image == color).all(axis=2))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_a_mosaic_keeps_boxes_on_their_objects(size):
    height, width = size
    for seed in range(30):
        rng = np.random.default_rng(seed)
        pictures = [
            block(
                (int(rng.integers(20, height + 1)), int(rng.integers(20, width + 1))), (5, 3, 17, 12), 200 + i, label=i
            )
            for i in range(4)
        ]
        picture = mosaic(pictures, size, rng)
        assert picture.image.shape == (2 * height, 2 * width, 3)
        for box, label in zip(picture.boxes, picture.classes, strict=True):
            if (box[2:] - box[:2]).min() > 0:
                np.testing.assert_array_equal(box, seen(picture.image, 200 + int(label)))


def test_the_centre_of_a_mosaic_varies_within_the_middle_half():
    centres = []
    for seed in range(200):
        tiles = [block((64, 96), (0, 0, 1, 1)) for _ in range(4)]
        picture = mosaic(tiles, (64, 96), np.random.default_rng(seed))
        centres.append(picture.boxes[3, :2])  # the last tile begins at the centre
    low, high = np.min(centres, axis=0), np.max(centres, axis=0)
    assert (low >= (48, 32)).all()
    assert (high <= (144, 96)).all()
    assert (high - low > (80, 50)).all()


def test_a_mosaic_of_pictures_with_and_without_outlines_has_outlines_for_all():
    pictures = [block((32, 32), (2, 2, 9, 9), polygons=index % 2 == 0) for index in range(4)]
    picture = mosaic(pictures, (32, 32), np.random.default_rng(0))
    assert picture.polygons.counts.tolist() == [4, 4, 4, 4]


def test_a_mosaic_without_objects_is_possible():
    empty = Picture(np.zeros((32, 32, 3), np.uint8), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    picture = mosaic([empty] * 4, (32, 32), np.random.default_rng(0))
    assert picture.boxes.shape == (0, 4)


def test_mixup_blends_pixels_and_keeps_all_objects():
    one, other = block((32, 32), (2, 2, 9, 9), 200, label=1), block((32, 32), (12, 12, 29, 29), 100, label=2)
    picture = mixup(one, other, np.random.default_rng(0))
    assert picture.classes.tolist() == [1, 2]
    share = picture.image[4, 4, 0] / 200
    assert 0.3 < share < 0.7
    assert picture.image[20, 20, 0] == pytest.approx(100 * (1 - share), abs=1)


def test_copies_are_mirrored_pasted_and_labelled():
    picture = copy_paste(block((40, 100), (5, 10, 25, 30), 255, polygons=True, label=2), 1.0, np.random.default_rng(0))
    assert picture.classes.tolist() == [2, 2]
    np.testing.assert_array_equal(picture.boxes[1], [75, 10, 95, 30])
    assert (picture.image[11:29, 76:94] == 255).all()
    assert (picture.image[11:29, 6:24] == 255).all()
    assert picture.polygons.counts.tolist() == [4, 4]


def test_copies_never_hide_what_is_there():
    middle = block((40, 100), (40, 10, 60, 30), polygons=True)
    assert len(copy_paste(middle, 1.0, np.random.default_rng(0)).boxes) == 1


def test_without_outlines_nothing_is_copied():
    picture = block((40, 100), (5, 10, 25, 30))
    assert copy_paste(picture, 1.0, np.random.default_rng(0)) is picture


@pytest.mark.parametrize("flip", [flip_left_right, flip_up_down])
def test_flips_move_boxes_and_outlines_with_the_pixels(flip):
    picture = block((40, 100), (5, 10, 25, 35), polygons=True)
    flipped = flip(picture)
    np.testing.assert_array_equal(flipped.boxes[0], seen(flipped.image))
    assert flipped.polygons.points.min(axis=0).tolist() == flipped.boxes[0, :2].tolist()
    twice = flip(flipped)
    np.testing.assert_array_equal(twice.image, picture.image)
    np.testing.assert_array_equal(twice.boxes, picture.boxes)


def test_hsv_equals_a_slow_multiplication():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    turned = hsv(image, 0.015, 0.7, 0.4, np.random.default_rng(7))
    factors = 1 + np.random.default_rng(7).uniform(-1, 1, 3) * (0.015, 0.7, 0.4)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float64))
    expected = np.stack(
        ((hue * factors[0]) % 180, np.minimum(saturation * factors[1], 255), np.minimum(value * factors[2], 255)),
        axis=2,
    )
    np.testing.assert_array_equal(turned, cv2.cvtColor(expected.astype(np.uint8), cv2.COLOR_HSV2BGR))


def test_hsv_of_nothing_changes_nothing():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    assert hsv(image, 0, 0, 0, np.random.default_rng(0)) is image


def test_no_augmentation_writes_into_its_input():
    pictures = [block((32, 32), (2, 2, 12, 12), polygons=True, label=index) for index in range(4)]
    for picture in pictures:
        picture.image.setflags(write=False)
        picture.boxes.setflags(write=False)
    rng = np.random.default_rng(0)
    mosaic(pictures, (32, 32), rng)
    mixup(pictures[0], pictures[1], rng)
    copy_paste(pictures[0], 1.0, rng)
    hsv(pictures[0].image, 0.1, 0.1, 0.1, rng)
    flip_left_right(pictures[0])
    flip_up_down(pictures[0])
