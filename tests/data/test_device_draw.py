"""Scenes drawn by tensors beside scenes drawn by OpenCV, and beside a slow loop over pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from data import device_draw
from data.device_draw import Source, draw, sketches
from data.draw import Easel
from data.geometry import GREY
from data.scene import Layer, Scene, Tile

# how far off: OpenCV before 5 turns in steps of a 32nd of a pixel, at a seam a 64th of 255 levels
TURNED = {"largest": 1, "mean": 0.05} if int(cv2.__version__.split(".")[0]) >= 5 else {"largest": 4, "mean": 0.2}
SIZE = (72, 96)


@pytest.fixture(scope="module")
def images():
    """Noise, smoothed as photographs are."""
    rng = np.random.default_rng(0)
    sizes = ((96, 72), (60, 96), (96, 96), (33, 91), (95, 50))
    coarse = [rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8) for height, width in sizes]
    return [cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC) for one, size in zip(coarse, sizes, strict=True)]


def plain(layers, **given):
    scene = Scene(SIZE, tuple(layers), 1.0, None, False, False, np.zeros(0), np.zeros((0, 4)))
    return scene._replace(**given)


def whole(images, index, place, part=None):
    height, width = images[index].shape[:2]
    tile = Tile(index, (height, width), 0, 0, part or (0, 0, width, height), place)
    return Layer((tile,), (height, width), np.eye(3))


def mosaic(images, matrix=None):
    """Four images around a point of a canvas of twice the size; straight where there is no matrix."""
    height, width = (2 * side for side in SIZE)
    y, x = height // 2 + 7, width // 2 - 11
    tiles = []
    for index, (right, below) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        rows, columns = images[index].shape[:2]
        left, top = x if right else x - columns, y if below else y - rows
        part = (max(0, -left), max(0, -top), min(columns, width - left), min(rows, height - top))
        place = None
        if matrix is None:  # the middle of the canvas, at half the size, on whole pixels
            corners = [left + part[0], top + part[1], left + part[2], top + part[3]]
            place = tuple(corner // 2 for corner in corners)
        tiles.append(Tile(index, (rows, columns), left, top, part, place))
    return Layer(tuple(tiles), (height, width), np.diag((0.5, 0.5, 1.0)) if matrix is None else matrix)


def turning(angle=20.0, scale=0.8, perspective=0.0):
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    turn = np.array(((cosine, sine, 5.3), (-sine, cosine, 20.7), (perspective, -perspective, 1)))
    return np.diag((0.5, 0.5, 1.0)) @ turn


def drawn(scenes, images, at_once=device_draw.CPU_AT_ONCE):
    """(B, 3, H, W) RGB as int, drawn by tensors; the images one after the other, and then a grey pixel."""
    stored = np.array([image.shape[:2] for image in images])
    starts = np.concatenate(([0], np.cumsum(stored.prod(axis=1))))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images] + [np.full((1, 3), GREY, dtype=np.uint8)])
    found = []
    for sketch in sketches(scenes, stored, at_once):
        shown = sketch.index >= 0
        stride = np.where(shown, stored[sketch.index, 1], 0)
        origin = starts[sketch.index] + sketch.region[..., 1] * stride + sketch.region[..., 0]
        found.append(draw(sketch, Source(torch.from_numpy(pixels), np.where(shown, origin, starts[-1]), stride)))
    return torch.cat(found).flip(-1).permute(0, 3, 1, 2).numpy().astype(int)


def expected(scenes, images):
    planes = np.empty((len(scenes), 3, *SIZE), dtype=np.uint8)
    for scene, plane in zip(scenes, planes, strict=True):
        Easel(SIZE).draw(scene, lambda index: images[index], plane)
    return planes.astype(int)


def assert_near(scenes, images, largest=1, mean=0.2):
    """OpenCV resizes with weights of eleven bits: a level more or less is nobody's mistake."""
    difference = np.abs(drawn(scenes, images) - expected(scenes, images))
    assert difference.max() <= largest
    assert difference.mean() < mean


def test_an_image_that_is_moved_and_no_more_is_exact(images):
    scenes = [plain([whole(images, 1, (0, 5, 96, 65))]), plain([whole(images, 0, (10, 0, 82, 72), (0, 20, 72, 92))])]
    np.testing.assert_array_equal(drawn(scenes, images), expected(scenes, images))
    assert (drawn(scenes, images)[0, :, :5] == GREY).all()


@pytest.mark.parametrize("place", [(0, 0, 96, 72), (3, 10, 20, 70), (0, 0, 90, 4), (50, 30, 51, 31)])
@pytest.mark.parametrize("index", range(5))
def test_an_image_is_resized_into_its_place(images, place, index):
    assert_near([plain([whole(images, index, place)])], images)


def test_a_part_of_an_image_repeats_its_own_border(images):
    """What lies beside the part is of the same image and must not shine in."""
    framed = [image.copy() for image in images]
    framed[2][:20], framed[2][:, :30] = 255, 0
    assert_near([plain([whole(framed, 2, (0, 0, 96, 72), (30, 20, 41, 31))])], framed)


def test_a_mosaic_is_four_images_in_their_places(images):
    assert_near([plain([mosaic(images)])], images)


@pytest.mark.parametrize("angle", [0.0, 20.0, -75.0, 180.0])
@pytest.mark.parametrize("scale", [0.5, 1.3])
def test_a_turned_mosaic_shows_its_seams_and_its_borders_as_opencv_does(images, angle, scale):
    assert_near([plain([mosaic(images, turning(angle, scale))])], images, **TURNED)


def test_a_mosaic_in_perspective(images):
    assert_near([plain([mosaic(images, turning(perspective=0.001))])], images, **TURNED)


def test_a_turned_mosaic_equals_a_loop_over_its_pixels(images):
    layer = mosaic(images, turning())
    canvas = np.full((*layer.canvas, 3), GREY, dtype=np.float64)
    for tile in layer.tiles:
        left, top, right, bottom = tile.part
        part = images[tile.index][top:bottom, left:right]
        canvas[tile.top + top : tile.top + bottom, tile.left + left : tile.left + right] = part
    inverse = np.linalg.inv(layer.matrix)
    found = drawn([plain([layer])], images)[0]

    def pixel(x, y):
        inside = 0 <= x < layer.canvas[1] and 0 <= y < layer.canvas[0]
        return canvas[y, x] if inside else np.full(3, GREY)

    for row in range(0, SIZE[0], 5):
        for column in range(0, SIZE[1], 5):
            x, y, w = inverse @ (column + 0.5, row + 0.5, 1)
            x, y = x / w - 0.5, y / w - 0.5
            left, top = math.floor(x), math.floor(y)
            near = [
                (abs(1 - i - x + left) * abs(1 - j - y + top), pixel(left + i, top + j)) for i in (0, 1) for j in (0, 1)
            ]
            blend = sum(weight * colour for weight, colour in near)
            np.testing.assert_allclose(found[::-1, row, column], blend, atol=0.51)


def at_another_size(index, size, matrix=None):
    """An image that is resized once more, on a canvas that it fills; its right two thirds, where it is not turned."""
    part, place = (size[1] // 3, 0, size[1], size[0]), (0, 0, 96, 72)
    if matrix is not None:
        part, place = (0, 0, size[1], size[0]), None
    return plain([Layer((Tile(index, size, 0, 0, part, place),), size, np.eye(3) if matrix is None else matrix)])


@pytest.mark.parametrize("matrix", [None, turning()])
@pytest.mark.parametrize("size", [(97, 97), (95, 95), (144, 120), (50, 70)])
def test_an_image_that_stands_at_another_size_is_sampled_where_opencv_samples_it(size, matrix):
    """OpenCV resizes twice, which blurs; on a slope this makes no difference."""
    slope = np.zeros((96, 96, 3), dtype=np.uint8)
    slope[..., 0], slope[..., 1] = np.arange(96) * 2, np.arange(96)[:, None] * 2
    scenes = [at_another_size(0, size, matrix)]
    difference = np.abs(drawn(scenes, [slope]) - expected(scenes, [slope]))
    assert np.quantile(difference, 0.97) <= 1  # the rest is at its borders
    assert difference.mean() < 0.5


def test_an_image_that_stands_at_another_size_is_not_blurred_by_it(images):
    tile = Tile(2, (97, 97), 0, 0, (0, 0, 97, 97), (0, 0, 96, 72))
    found = drawn([plain([Layer((tile,), (97, 97), np.eye(3))])], images)[0]
    at_once = cv2.resize(images[2], (96, 72), interpolation=cv2.INTER_LINEAR)
    assert np.abs(found[::-1].transpose(1, 2, 0) - at_once).max() <= 1


def test_two_layers_are_laid_over_each_other(images):
    layers = [mosaic(images), whole(images, 4, (0, 0, 96, 72))]
    assert_near([plain(layers, share=0.37)], images, largest=2)  # of two layers and their sum
    single = [drawn([plain([layer])], images) for layer in layers]
    mixed = 0.37 * single[0] + 0.63 * single[1]
    assert np.abs(drawn([plain(layers, share=0.37)], images) - mixed).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("up_down", [False, True])
@pytest.mark.parametrize("left_right", [False, True])
def test_flips_are_exact(images, up_down, left_right):
    scene = plain([mosaic(images)])
    flipped = drawn([scene._replace(flip_up_down=up_down, flip_left_right=left_right)], images)
    axes = [axis for axis, flips in ((2, up_down), (3, left_right)) if flips]
    np.testing.assert_array_equal(flipped, np.flip(drawn([scene], images), axes))


def test_scenes_of_all_kinds_in_one_batch_are_as_each_alone(images):
    scenes = [
        plain([mosaic(images)], gains=(1.01, 1.4, 0.7)),
        plain([mosaic(images, turning())], flip_left_right=True),
        plain([whole(images, 1, (0, 6, 96, 66)), mosaic(images)], share=0.6, gains=(0.99, 0.5, 1.3)),
        plain([Layer((), SIZE, np.eye(3))], flip_up_down=True),
        plain([mosaic(images, turning(90)), mosaic(images)], share=0.45, flip_up_down=True),
    ]
    alone = np.concatenate([drawn([scene], images) for scene in scenes])
    np.testing.assert_array_equal(drawn(scenes, images), alone)
    assert_near(scenes, images, largest=12, mean=0.4)  # a level of difference may become several by its colour
    two = 2 * SIZE[0] * SIZE[1]
    assert len(sketches(scenes, np.array([image.shape[:2] for image in images]), two)) == 3
    np.testing.assert_array_equal(drawn(scenes, images, two), alone)


def test_a_scene_without_anything_is_grey(images):
    assert (drawn([plain([Layer((), SIZE, np.eye(3))])], images) == GREY).all()
