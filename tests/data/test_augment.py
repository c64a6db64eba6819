from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.augment import copy_paste, flip_left_right, flip_up_down, hsv, mixup, mosaic, paste_in
from data.picture import Picture, Polygons, boxes_as_polygons


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
    paste_in(pictures[0], pictures[1:], rng)
    hsv(pictures[0].image, 0.1, 0.1, 0.1, rng)
    flip_left_right(pictures[0])
    flip_up_down(pictures[0])


# -- paste_in ---------------------------------------------------------------------------------------------------------


def slow_shares(box, other):
    """The share of each of two boxes that the other one covers."""
    wide = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    high = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    return [wide * high / ((one[2] - one[0]) * (one[3] - one[1])) for one in (box, other)]


@pytest.mark.parametrize("polygons", [False, True])
def test_an_object_of_another_picture_is_pasted_where_its_label_says(polygons):
    places = []
    for seed in range(40):
        source = block((60, 90), (11, 7, 47, 25), 250, polygons, label=2)
        picture = paste_in(
            block((100, 160), (60, 30, 100, 70), 90, polygons, label=1), [source], np.random.default_rng(seed)
        )
        if len(picture.boxes) == 1:
            continue
        assert picture.classes.tolist() == [1, 2]
        box = picture.boxes[1]
        np.testing.assert_array_equal(box, seen(picture.image, 250))
        assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(36 / 18, rel=0.1)
        assert (box[2:] - box[:2]).max() <= 2 * 36
        if polygons:
            np.testing.assert_array_equal(picture.polygons.points[[4, 6]].ravel(), box)
        places.append(box)
    assert len(places) > 35
    places = np.array(places)
    assert (np.ptp(places[:, :2], axis=0) > (80, 60)).all()
    assert np.ptp(places[:, 2] - places[:, 0]) > 40


def test_of_an_object_with_an_outline_only_its_inside_is_pasted():
    source = block((60, 60), (10, 10, 50, 50), 255)
    triangle = np.array([[10, 10], [50, 10], [10, 50]], dtype=np.float32)
    source.image[...] = 128  # what must not come along
    cv2.fillPoly(source.image, [triangle.astype(np.int32)], (255, 255, 255))
    source = source._replace(polygons=Polygons(triangle, np.array([3])))
    pasted = 0
    for seed in range(20):
        picture = paste_in(block((120, 120), (0, 0, 2, 2), 1, polygons=True), [source], np.random.default_rng(seed))
        if len(picture.boxes) == 2:
            pasted += 1
            x1, y1, x2, y2 = picture.boxes[1].astype(int)
            part = picture.image[y1:y2, x1:x2, 0]
            assert (part > 0).mean() == pytest.approx(0.5, abs=2 / len(part))  # pixels on the edge count
            assert part[-1, -1] == 0
            assert (part[part > 0] > 200).mean() > 0.75
    assert pasted > 15


def test_pasted_objects_and_those_that_are_there_hide_little_of_each_other():
    rng = np.random.default_rng(0)
    counts = []
    for seed in range(30):
        low = rng.uniform(0, 120, (6, 2))
        boxes = np.concatenate((low, low + rng.uniform(8, 60, (6, 2))), axis=1).astype(np.float32)
        own = Picture(np.zeros((160, 160, 3), np.uint8), np.zeros(6, np.float32), boxes)
        sources = [block((80, 80), (5, 5, 45, 35), 200, label=index) for index in range(4)] * 5
        picture = paste_in(own, sources, np.random.default_rng(seed))
        for number in range(6, len(picture.boxes)):
            for before in picture.boxes[:number]:
                assert max(slow_shares(picture.boxes[number].tolist(), before.tolist())) < 0.3 + 1e-6
            sides = picture.boxes[number, 2:] - picture.boxes[number, :2]
            assert sides.min() >= 8
            assert picture.boxes[number].min() >= 0
            assert picture.boxes[number].max() <= 160
        counts.append(len(picture.boxes) - 6)
    assert max(counts) <= 12
    assert np.mean(counts) > 3


def test_nothing_is_pasted_where_there_is_no_room_or_no_object():
    full, source = block((50, 50), (0, 0, 50, 50)), block((50, 50), (5, 5, 45, 35))
    assert paste_in(full, [source], np.random.default_rng(0)) is full
    free, empty = block((50, 50), (0, 0, 5, 5)), source.take(np.zeros(1, dtype=bool))
    assert paste_in(free, [empty], np.random.default_rng(0)) is free
    assert paste_in(free, [], np.random.default_rng(0)) is free


def test_objects_are_pasted_into_pictures_without_any():
    empty = block((80, 80), (0, 0, 1, 1)).take(np.zeros(1, dtype=bool))
    picture = paste_in(empty, [block((50, 50), (5, 5, 45, 35), label=2)], np.random.default_rng(0))
    assert picture.classes.tolist() == [2]
