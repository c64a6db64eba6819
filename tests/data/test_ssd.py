from __future__ import annotations

import colorsys

import numpy as np
import pytest

import data.ssd
from data.picture import Picture, boxes_as_polygons
from data.ssd import expand, min_iou_crop, photometric, ssd
from utils.hyp import Hyp

COLORS = ((10, 200, 250), (250, 30, 20), (40, 240, 60), (230, 220, 15))  # none of them is the canvas's
BOXES = ((12, 8, 40, 30), (50, 5, 90, 60), (20, 40, 48, 70), (100, 50, 116, 58))
SIZE = (80, 120)


def drawn(polygons=False):
    """Four rectangles, each of a colour of its own, of classes 0 to 3."""
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), color in zip(BOXES, COLORS, strict=True):
        image[y1:y2, x1:x2] = color
    image.setflags(write=False)
    boxes = np.array(BOXES, dtype=np.float32)
    return Picture(image, np.arange(4, dtype=np.float32), boxes, boxes_as_polygons(boxes) if polygons else None)


def seen(picture, label):
    """The box around all pixels of an object's colour."""
    rows, columns = np.nonzero((picture.image == COLORS[int(label)]).all(axis=2))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def assert_boxes_are_where_their_objects_are(picture):
    for box, label in zip(picture.boxes, picture.classes, strict=True):
        np.testing.assert_array_equal(box, seen(picture, label))
    if picture.polygons is not None:
        corners = picture.polygons.points.reshape(-1, 4, 2)
        np.testing.assert_array_equal(corners.min(axis=1), picture.boxes[:, :2])
        np.testing.assert_array_equal(corners.max(axis=1), picture.boxes[:, 2:])


def slow_iou(a, b):
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_centre_inside(crop, box):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return crop[0] < x < crop[2] and crop[1] < y < crop[3]


# -- colours ----------------------------------------------------------------------------------------------------------


def slow_photometric(image, rng):
    """Pixel by pixel, with Python's own colour conversion."""
    pixels = [[float(value) for value in pixel] for pixel in image.reshape(-1, 3)]

    def turned(pixel, shift, factor):
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in reversed(pixel)))
        rgb = colorsys.hsv_to_rgb((hue + shift / 360) % 1, min(1.0, saturation * factor), value)
        return [255 * part for part in reversed(rgb)]

    for step in rng.permutation(5):
        if rng.random() >= 0.5:
            continue
        if step == 0:
            delta = rng.uniform(-32, 32)
            pixels = [[part + delta for part in pixel] for pixel in pixels]
        elif step == 1:
            factor = rng.uniform(0.5, 1.5)
            pixels = [[part * factor for part in pixel] for pixel in pixels]
        elif step == 2:
            factor = rng.uniform(0.5, 1.5)
            pixels = [turned(pixel, 0, factor) for pixel in pixels]
        elif step == 3:
            shift = rng.uniform(-18, 18)
            pixels = [turned(pixel, shift, 1) for pixel in pixels]
        else:
            order = rng.permutation(3)
            pixels = [[pixel[channel] for channel in order] for pixel in pixels]
        pixels = [[min(255.0, max(0.0, part)) for part in pixel] for pixel in pixels]
    return np.array(pixels).reshape(image.shape)


def test_photometric_distortion_equals_a_loop_over_pixels():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    changed = 0
    for seed in range(40):
        distorted = photometric(image, np.random.default_rng(seed))
        expected = slow_photometric(image, np.random.default_rng(seed))
        assert distorted.dtype == np.uint8
        np.testing.assert_allclose(distorted, expected, atol=0.51)  # it is rounded
        changed += not np.array_equal(distorted, image)
    assert changed > 30


def test_every_distortion_happens_half_of_the_time_and_at_any_place(monkeypatch):
    calls = []
    steps = [lambda image, rng, number=number: (calls[-1].append(number), image)[1] for number in range(5)]
    monkeypatch.setattr(data.ssd, "_STEPS", steps)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        calls.append([])
        photometric(np.zeros((2, 2, 3), np.uint8), rng)
    for number in range(5):
        assert sum(number in call for call in calls) == pytest.approx(500, abs=60)
        assert sum(call[:1] == [number] for call in calls) == pytest.approx(1000 / 5, abs=50)


# -- a larger canvas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polygons", [False, True])
def test_an_expanded_picture_lies_anywhere_on_a_mean_canvas(polygons):
    picture, rng = drawn(polygons), np.random.default_rng(1)
    ratios, places = [], []
    for _ in range(60):
        larger = expand(picture, 3.0, rng)
        (height, width), (left, top) = larger.size, larger.boxes[0, :2] - picture.boxes[0, :2]
        assert_boxes_are_where_their_objects_are(larger)
        assert larger.classes.tolist() == [0, 1, 2, 3]
        outside = np.ones((height, width), dtype=bool)
        outside[int(top) : int(top) + 80, int(left) : int(left) + 120] = False
        assert (larger.image[outside] == (104, 117, 123)).all()
        np.testing.assert_array_equal(larger.image[~outside].reshape(picture.image.shape), picture.image)
        assert width / height == pytest.approx(120 / 80, rel=0.02)
        ratios.append(width / 120)
        places.append((left / max(1, width - 120), top / max(1, height - 80)))
    assert 1 <= min(ratios) < 1.2
    assert 2.8 < max(ratios) <= 3
    assert (np.ptp(places, axis=0) > 0.8).all()


def test_a_picture_without_objects_is_expanded_too():
    empty = Picture(drawn().image, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    assert expand(empty, 4.0, np.random.default_rng(0)).boxes.shape == (0, 4)


# -- crops ------------------------------------------------------------------------------------------------------------


def test_crops_have_shares_and_ratios_as_published():
    crops = np.concatenate([data.ssd._random_crops(SIZE, np.random.default_rng(seed)) for seed in range(40)])
    assert crops[:, :2].min() >= 0
    assert (crops[:, 2:] <= (120, 80)).all()
    shares = (crops[:, 2:] - crops[:, :2]) / (120, 80)
    assert shares.min() >= 0.3 - 0.01
    ratio = shares[:, 0] / shares[:, 1]
    assert 0.5 - 0.02 <= ratio.min() < 0.6
    assert 1.8 < ratio.max() <= 2 + 0.05
    left = crops[:, 0] / np.maximum(1, 120 - (crops[:, 2] - crops[:, 0]))
    assert left.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("least", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_suitable_crops_equal_a_loop_over_boxes(least):
    crops = data.ssd._random_crops(SIZE, np.random.default_rng(3))
    boxes = np.array([*BOXES, (5, 5, 110, 75)], dtype=np.float32)
    expected = [
        any(slow_iou(crop, box) >= least for box in boxes.tolist())
        and any(slow_centre_inside(crop, box) for box in boxes.tolist())
        for crop in crops.tolist()
    ]
    assert data.ssd._suits(crops, boxes, least).tolist() == expected
    assert any(expected)


@pytest.mark.parametrize("polygons", [False, True])
def test_a_crop_keeps_objects_whose_centre_it_has_and_cuts_them(polygons):
    picture = drawn(polygons)
    rows, columns = np.indices(SIZE)
    where = np.stack((columns, rows, np.zeros(SIZE)), axis=2).astype(np.uint8)  # each pixel says where it is
    cropped_ones = dropped = 0
    for seed in range(80):
        found = min_iou_crop(picture, (0.1, 0.3), np.random.default_rng(seed))
        assert_boxes_are_where_their_objects_are(found)
        places = min_iou_crop(picture._replace(image=where), (0.1, 0.3), np.random.default_rng(seed)).image
        x1, y1 = places[0, 0, :2].tolist()
        x2, y2 = (places[-1, -1, :2] + 1).tolist()
        assert found.size == (y2 - y1, x2 - x1)
        inside = [label for label, box in enumerate(BOXES) if slow_centre_inside((x1, y1, x2, y2), box)]
        assert found.classes.tolist() == inside
        cropped_ones += found.size != SIZE
        dropped += len(inside) < 4
    assert cropped_ones > 40
    assert dropped > 20


def test_crops_have_the_overlap_that_is_asked_for():
    """The whole picture, any crop, or an overlap: with one overlap each is a third of all."""
    box = np.array([[20, 10, 100, 70]], dtype=np.float32)
    picture = Picture(drawn().image, np.zeros(1, np.float32), box)
    whole = enough = 0
    for seed in range(600):
        found = min_iou_crop(picture, (0.7,), np.random.default_rng(seed))
        if found.size == SIZE:
            whole += 1
            continue
        shared = (found.boxes[0, 2:] - found.boxes[0, :2]).prod()  # what of the box the crop has
        enough += shared / (found.size[0] * found.size[1] + 80 * 60 - shared) >= 0.7
    assert whole == pytest.approx(200, abs=45)
    any_crop = data.ssd._random_crops(SIZE, np.random.default_rng(0))
    by_chance = np.mean([slow_iou(crop, box[0]) >= 0.7 for crop in any_crop.tolist()])
    assert enough == pytest.approx(200 + 200 * by_chance, abs=45)


def test_what_no_crop_can_have_is_left_to_the_other_choices():
    """A speck never overlaps a crop by 0.9."""
    speck = Picture(drawn().image, np.zeros(1, np.float32), np.array([[60, 40, 62, 42]], np.float32))
    sizes = [min_iou_crop(speck, (0.9,) * 5, np.random.default_rng(seed)).size for seed in range(60)]
    assert sum(size == SIZE for size in sizes) == pytest.approx(30, abs=14)


def test_pictures_without_objects_are_cropped_too():
    empty = Picture(drawn().image, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    found = [min_iou_crop(empty, (0.5,), np.random.default_rng(seed)) for seed in range(10)]
    assert any(one.size != SIZE for one in found)
    assert all(one.boxes.shape == (0, 4) for one in found)


# -- all of it --------------------------------------------------------------------------------------------------------


def test_a_recipe_without_these_keys_leaves_the_picture_and_draws_no_chance():
    picture, rng = drawn(), np.random.default_rng(0)
    assert ssd(picture, Hyp(), rng) is picture
    assert rng.random() == np.random.default_rng(0).random()


def test_all_three_together_keep_boxes_on_their_objects():
    hyp = Hyp(expand=0.5, expand_ratio=2.0, min_iou_crop=(0.1, 0.5))
    sizes = set()
    for seed in range(60):
        found = ssd(drawn(polygons=True), hyp, np.random.default_rng(seed))
        assert_boxes_are_where_their_objects_are(found)
        sizes.add(found.size)
    assert len(sizes) > 30
    colored = [ssd(drawn(), Hyp(photometric=0.5), np.random.default_rng(seed)).image for seed in range(60)]
    assert sum(np.array_equal(image, drawn().image) for image in colored) == pytest.approx(31, abs=12)
