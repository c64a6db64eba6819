"""Scenes drawn without a canvas, against the canvas and its warp."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data.augment import flip_left_right, flip_up_down
from data.batch import in_one_piece
from data.compose import _span
from data.dataset import to_tensor
from data.draw import Easel
from data.loader import train_loader
from data.picture import Picture
from data.sampler import Key
from data.scene import Layer, Scene, Tile
from data.spec import read_data
from utils.hyp import Hyp

SIZE = (96, 128)
PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
RICH = Hyp(mosaic=0.8, mixup=0.3, flipud=0.4)


def training(file, hyp, size=SIZE, **options):
    options = {"image_size": size, "batch_size": 4, "stride": 32, "seed": 0, **options}
    return train_loader(read_data(file), hyp, **options).dataset


def keys(dataset, count, size=SIZE):
    return [Key(number // len(dataset), number % len(dataset), 0, True, size) for number in range(count)]


def plain(dataset, key):
    """What the augmentations draw one after the other."""
    return to_tensor(dataset.augmented(key, dataset.rng(key)).image)


# -- the same picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"degrees": 10.0}, {"degrees": 5.0, "perspective": 0.0005}])
def test_where_nothing_is_rounded_the_picture_is_the_same_to_the_bit(make_data, changes):
    dataset = training(make_data(7), replace(RICH, scale=0, translate=0, **changes))
    assert dataset.composes
    for key in keys(dataset, 60):
        assert torch.equal(dataset[key].image, plain(dataset, key))


@pytest.mark.parametrize("size", [(320, 320), (256, 416)])
def test_photographs_look_as_they_do_on_a_canvas(bccd, size):
    """Moved by less than a pixel; what differs more are edges of objects, and of tiles, by one pixel."""
    dataset = training(bccd, replace(RICH, mixup=0.2), size)
    differences, shifted = [], []
    for key in keys(dataset, 30, size):
        drawn, expected = dataset[key].image.int(), plain(dataset, key).int()
        differences.append((drawn - expected).abs().float().mean().item())
        shifted.append((expected[:, :, 1:] - expected[:, :, :-1]).abs().float().mean().item())
    assert np.mean(differences) < 0.5 * np.mean(shifted)  # against the whole picture moved by one pixel
    assert max(differences) < 3.0


def test_targets_are_those_of_the_scene_and_stay_inside(make_data):
    dataset = training(make_data(7), RICH)
    for key in keys(dataset, 40):
        sample, scene = dataset[key], dataset.scene(key, dataset.rng(key))
        assert len(sample.targets) == len(scene.boxes)
        scale = torch.tensor((128, 96, 128, 96))
        boxes = torch.from_numpy(scene.boxes)
        torch.testing.assert_close(sample.targets[:, 3:] * scale[:2], boxes[:, 2:] - boxes[:, :2], rtol=0, atol=1e-3)


def test_a_tile_that_is_enlarged_keeps_to_its_place():
    """Slow: every pixel of the place is interpolated by hand between the part's own pixels."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    tile = Tile(0, (9, 11), 0, 0, (2, 1, 9, 6), (3, 4, 17, 12))
    planes = np.zeros((3, 20, 24), dtype=np.uint8)
    scene = Scene((20, 24), (Layer((tile,), (20, 24), np.eye(3)),), 1.0, None, False, False, np.zeros(0), np.zeros(0))
    Easel((20, 24)).draw(scene, lambda _: source, planes)
    image = planes[::-1].transpose(1, 2, 0)
    part = source[1:6, 2:9].astype(float)
    for y in range(8):
        for x in range(14):
            at_y, at_x = (np.clip((i + 0.5) * n / m - 0.5, 0, n - 1) for i, n, m in ((y, 5, 8), (x, 7, 14)))
            low_y, low_x = int(at_y), int(at_x)
            high_y, high_x = min(low_y + 1, 4), min(low_x + 1, 6)
            upper = part[low_y, low_x] * (1 - at_x + low_x) + part[low_y, high_x] * (at_x - low_x)
            lower = part[high_y, low_x] * (1 - at_x + low_x) + part[high_y, high_x] * (at_x - low_x)
            expected = upper * (1 - at_y + low_y) + lower * (at_y - low_y)
            np.testing.assert_allclose(image[4 + y, 3 + x], expected, atol=1.01)
    outside = np.ones((20, 24), dtype=bool)
    outside[4:12, 3:17] = False
    assert (image[outside] == 114).all()


def test_tiles_that_meet_on_the_canvas_meet_in_the_output(make_data, tmp_path):
    """White images: grey is never seen between two of them."""
    file = make_data(4, [""] * 3 + ["0 .5 .5 .2 .2\n"])
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"images/train/{index}.png"), np.full((*SIZE, 3), 255, dtype=np.uint8))
    dataset = training(file, replace(PLAIN, mosaic=1.0, scale=0.7, translate=0.2))
    several = 0
    for key in keys(dataset, 80):
        (layer,) = dataset.scene(key, dataset.rng(key)).layers
        places = np.array([tile.place for tile in layer.tiles])
        left, top = places[:, :2].min(axis=0)
        right, bottom = places[:, 2:].max(axis=0)
        several += len(places) > 1
        assert (dataset[key].image[:, top:bottom, left:right] == 255).all()
    assert several > 40


def test_stretched_and_single_images_are_drawn_too(make_data):
    for hyp in (PLAIN, replace(PLAIN, letterbox=False)):
        dataset = training(make_data(7), hyp)
        for key in keys(dataset, 7):
            assert torch.equal(dataset[key].image, plain(dataset, key))


@pytest.mark.parametrize("changes", [{}, {"degrees": 5.0}])
def test_of_an_image_that_is_moved_out_of_sight_grey_is_left(make_data, changes):
    dataset = training(make_data(5), replace(RICH, mosaic=0, translate=1.0, scale=0.9, hsv_v=0.4, **changes))
    gone = 0
    for key in keys(dataset, 200):
        scene, sample = dataset.scene(key, dataset.rng(key)), dataset[key]
        assert sample.image.shape == (3, *SIZE)
        if not scene.layers[0].tiles:
            gone += 1
            assert len(sample.targets) == 0
            assert torch.equal(sample.image, plain(dataset, key))
            assert sample.image.unique().numel() == 1
    assert gone > 5


def test_images_of_rectangular_batches_are_drawn_at_the_batch_s_size(make_data):
    dataset = training(make_data(7), replace(PLAIN, fliplr=0.5))
    for key in keys(dataset, 14):
        small = key._replace(mosaic=False, size=(64, 96))
        assert torch.equal(dataset[small].image, plain(dataset, small))


# -- flips, batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up_down", [False, True])
@pytest.mark.parametrize("left_right", [False, True])
def test_planes_are_flipped_as_pictures_are(up_down, left_right):
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    tile = Tile(0, (12, 20), 0, 0, (0, 0, 20, 12), (0, 0, 20, 12))
    layer = Layer((tile,), (12, 20), np.eye(3))
    scene = Scene((12, 20), (layer,), 1.0, None, up_down, left_right, np.zeros(0), np.zeros((0, 4)))
    planes = np.zeros((3, 12, 20), dtype=np.uint8)
    Easel((12, 20)).draw(scene, lambda _: image, planes)
    picture = Picture(image, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    picture = flip_up_down(picture) if up_down else picture
    picture = flip_left_right(picture) if left_right else picture
    np.testing.assert_array_equal(planes, picture.image[..., ::-1].transpose(2, 0, 1))


def test_a_batch_is_the_tensor_into_which_its_samples_were_drawn(make_data):
    dataset = training(make_data(7), RICH)
    samples = dataset.__getitems__(keys(dataset, 5))
    whole = in_one_piece([sample.image for sample in samples])
    assert whole.data_ptr() == samples[0].image.data_ptr()
    for sample, image, key in zip(samples, whole, keys(dataset, 5), strict=True):
        assert torch.equal(sample.image, image)
        assert torch.equal(image, dataset[key].image)  # what was drawn before leaves no trace


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1], [0, 0, 2]])
def test_samples_of_another_order_are_copied(order):
    images = list(torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8))
    chosen = [images[number] for number in order]
    assert torch.equal(in_one_piece(chosen), torch.stack(chosen))


def test_drawing_writes_into_no_image(make_data):
    dataset = training(make_data(7), RICH)
    for index in range(7):
        dataset.store.load(index)  # and is kept
    before = dataset.store._pixels.copy()
    assert before.any()
    dataset.__getitems__(keys(dataset, 40))
    np.testing.assert_array_equal(dataset.store._pixels, before)


def test_spans_of_scale_one_on_whole_pixels_are_not_rounded():
    assert _span(30, 90, 1.0, -40.0, 100) == (40, 90, 0, 50)
    assert _span(30, 90, 1.0, 20.0, 100) == (30, 80, 50, 100)
    assert _span(30, 90, 2.0, -70.0, 100) == (35, 85, 0, 100)
