"""Scenes, decided from labels alone, against the pictures that go through every augmentation one after the other."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import data.store
from data.compose import _span
from data.loader import train_loader
from data.sampler import Key
from data.spec import read_data
from utils.hyp import Hyp

SIZE = (96, 128)
PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
UPRIGHT = Hyp(mosaic=0.7, mixup=0.4, flipud=0.3, fliplr=0.5, scale=0.9, translate=0.2)
TURNED = replace(UPRIGHT, degrees=20, shear=8)
TILTED = replace(TURNED, perspective=0.001)
RECIPES = {"upright": UPRIGHT, "turned": TURNED, "tilted": TILTED}


def training(file, hyp, size=SIZE, **options):
    options = {"image_size": size, "batch_size": 4, "stride": 32, "seed": 0, **options}
    return train_loader(read_data(file), hyp, **options).dataset


def keys(dataset, epochs=12, mosaic=True, size=SIZE):
    return [Key(epoch, index, 0, mosaic, size) for epoch in range(epochs) for index in range(len(dataset))]


def both(dataset, key):
    """A scene, its oracle, and the next random number of each."""
    one, other = dataset.rng(key), dataset.rng(key)
    scene, picture = dataset.scene(key, one), dataset.augmented(key, other)
    return scene, picture, (one.random(), other.random())


def largest_scale(scene):
    return max(layer.matrix[0, 0] for layer in scene.layers)


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("stretch", [False, True])
def test_a_scene_has_the_objects_of_its_picture(make_data, kind, stretch):
    """Warped ones exactly; resized ones within the rounding of their tile's edges."""
    dataset = training(make_data(9), replace(RECIPES[kind], letterbox=not stretch))
    assert dataset.composes
    compared, others = 0, 0
    for key in keys(dataset):
        scene, picture, numbers = both(dataset, key)
        assert numbers[0] == numbers[1]  # chance was drawn in the same order
        if len(scene.boxes) != len(picture.boxes):
            others += 1  # one of them was just too small
            continue
        np.testing.assert_array_equal(scene.classes, picture.classes)
        if len(picture.boxes):
            bound = max(0.5, largest_scale(scene) / 2) if kind == "upright" else 0.0
            assert abs(scene.boxes - picture.boxes).max() <= bound + 1e-3
            compared += len(picture.boxes)
    assert compared > 300
    assert others <= (0.1 * len(keys(dataset)) if kind == "upright" else 0)


@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_boxes_of_outlines_are_those_of_the_picture(make_data, kind):
    """Some objects have an outline, and some only a box."""
    rows = "0 .05 .1 .6 .2 .5 .8 .1 .6\n1 .6 .5 .5 .4\n2 .2 .2 .9 .3 .4 .95\n"
    dataset = training(make_data(7, [rows] * 7), replace(RECIPES[kind], mosaic=0.8))
    assert dataset.labels.has_polygons
    assert dataset.composes
    compared = 0
    for key in keys(dataset, 10):
        scene, picture, _ = both(dataset, key)
        if len(scene.boxes) == len(picture.boxes):
            np.testing.assert_array_equal(scene.classes, picture.classes)
            # where an outline is cut, what is seen of it may move by more than its tile does: edges run aslant
            inside = ((picture.boxes > 1) & (picture.boxes < np.tile(SIZE[::-1], 2) - 1)).all(axis=1)
            kept = inside if kind == "upright" else slice(None)
            bound = max(0.5, largest_scale(scene) / 2) if kind == "upright" else 0.0
            assert abs(scene.boxes - picture.boxes)[kept].max(initial=0) <= bound + 1e-2
            compared += len(picture.boxes[kept])
    assert compared > 200


def test_recipes_that_move_nothing_keep_every_box(make_data):
    file = make_data(5, ["0 .5 .5 .01 .01\n1 .2 .2 .3 .1\n"] * 5)  # one of less than two pixels
    dataset = training(file, PLAIN)
    for key in keys(dataset, 1):
        scene, picture, _ = both(dataset, key)
        np.testing.assert_allclose(scene.boxes, picture.boxes, atol=1e-4)
        assert scene.classes.tolist() == [0, 1]


def test_images_without_objects_make_scenes_without_objects(make_data):
    dataset = training(make_data(5, ["0 .5 .5 .2 .2\n", "", "", "", ""]), UPRIGHT)
    scenes = [dataset.scene(key, dataset.rng(key)) for key in keys(dataset, 4)]
    assert {len(scene.boxes) for scene in scenes} > {0}
    assert all(scene.boxes.shape == (len(scene.classes), 4) for scene in scenes)


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECIPES)
def test_tiles_lie_within_their_image_and_the_output_and_do_not_overlap(make_data, kind):
    dataset = training(make_data(9), RECIPES[kind])
    fewer = 0
    for key in keys(dataset):
        for layer in dataset.scene(key, dataset.rng(key)).layers:
            drawn = np.zeros(SIZE, dtype=int)
            fewer += len(layer.tiles) < 4
            for tile in layer.tiles:
                left, top, right, bottom = tile.part
                assert 0 <= left < right <= tile.size[1]
                assert 0 <= top < bottom <= tile.size[0]
                assert (tile.place is None) == (kind != "upright")
                if tile.place is not None:
                    left, top, right, bottom = tile.place
                    assert 0 <= left < right <= SIZE[1]
                    assert 0 <= top < bottom <= SIZE[0]
                    drawn[top:bottom, left:right] += 1
            assert drawn.max() <= 1
    assert fewer > 0


def test_an_edge_moves_by_no_more_than_half_a_pixel_of_the_output_or_the_tile():
    rng = np.random.default_rng(0)
    seen = slim = 0
    for _ in range(20000):
        low = int(rng.integers(0, 200))
        high, limit = low + int(rng.integers(1, 200)), 100
        scale, shift = rng.uniform(0.1, 1.9), rng.uniform(-200, 100)
        first, last, to, end = _span(low, high, scale, shift, limit)
        assert low <= first < last <= high
        assert 0 <= to <= end <= limit
        if to == end:
            assert min(high * scale + shift, limit) - max(low * scale + shift, 0) <= 1
            continue
        seen += 1
        visible = min(high, (limit - shift) / scale) - max(low, -shift / scale)
        slim += visible < 1
        bound = max(0.5, scale / 2) if visible >= 1 else max(1.0, 2 * scale)
        assert abs(first * scale + shift - to) <= bound + 1e-9
        assert abs(last * scale + shift - end) <= bound + 1e-9
    assert seen > 5000
    assert slim > 10


def test_only_images_that_are_seen_are_loaded(make_data, monkeypatch):
    dataset = training(make_data(9), replace(UPRIGHT, mosaic=1.0, mixup=0.0))
    load, loaded = dataset.store.load, []
    monkeypatch.setattr(dataset.store, "load", lambda index: loaded.append(index) or load(index))
    total = 0
    for key in keys(dataset):
        loaded.clear()
        dataset[key]
        (layer,) = dataset.scene(key, dataset.rng(key)).layers
        assert sorted(loaded) == sorted({tile.index for tile in layer.tiles})
        total += len(loaded)
    assert total < 0.95 * 4 * len(keys(dataset))


# -- which recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "composes"),
    [({}, True), ({"copy_paste": 0.5}, True), ({"paste_in": 0.1}, False), ({"photometric": 0.5}, False),
     ({"expand": 0.5}, False), ({"min_iou_crop": (0.1,)}, False), ({"degrees": 5.0, "mixup": 1.0}, True)],
)  # fmt: skip
def test_recipes_that_look_at_pixels_first_are_not_composed(make_data, changes, composes):
    file = make_data(3)
    assert training(file, replace(UPRIGHT, **changes)).composes == composes
    assert not training(file, UPRIGHT, augment=False).composes


def test_with_outlines_copies_need_pixels(make_data):
    file = make_data(3, ["0 .05 .1 .3 .1 .3 .6 .05 .6\n"] * 3)
    assert training(file, PLAIN).composes
    assert not training(file, replace(PLAIN, copy_paste=0.5)).composes


def test_an_image_that_went_bad_has_no_objects_and_the_others_keep_theirs(make_data, tmp_path, monkeypatch):
    monkeypatch.setattr(data.store, "SMALL", 0)
    dataset = training(make_data(6, [f"{index % 3} .5 .5 .6 .6\n" for index in range(6)]), replace(PLAIN, mosaic=1.0))
    before = {key: dataset[key] for key in keys(dataset, 6)}
    (tmp_path / "images/train/2.png").write_text("gone")
    fewer = 0
    for key, sample in before.items():
        scene = dataset.scene(key, dataset.rng(key))
        now = dataset[key]
        if 2 in {tile.index for layer in scene.layers for tile in layer.tiles}:
            assert len(now.targets) <= len(sample.targets)
            assert set(map(tuple, now.targets.tolist())) <= set(map(tuple, sample.targets.tolist()))
            fewer += len(now.targets) < len(sample.targets)
        else:
            assert torch.equal(now.image, sample.image)
            assert torch.equal(now.targets, sample.targets)
    assert fewer > 5


def test_pixels_lie_where_boxes_are(make_data, tmp_path):
    """White objects on black; every one in full view is as large as its box says."""
    file = make_data(4, ["0 .5 .5 .25 .25"] * 4)
    for index, (height, width) in enumerate(((64, 64), (96, 48), (48, 128), (120, 160))):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[round(0.375 * height) : round(0.625 * height), round(0.375 * width) : round(0.625 * width)] = 255
        cv2.imwrite(str(tmp_path / f"images/train/{index}.png"), image)
    dataset = training(file, replace(PLAIN, mosaic=0.8, scale=0.6, translate=0.1, fliplr=0.5, flipud=0.5))
    compared = 0
    for key in keys(dataset, 20):
        sample = dataset[key]
        image = sample.image[0].numpy() / 255
        for x, y, width, height in (sample.targets[:, 1:] * torch.tensor((128, 96, 128, 96))).tolist():
            left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            if left < 4 or top < 4 or right > 124 or bottom > 92:
                continue
            rows, columns = (slice(int(low) - 3, int(high) + 4) for low, high in ((top, bottom), (left, right)))
            part = np.where(image[rows, columns] > 0.46, image[rows, columns], 0)  # grey is 114 of 255
            assert part.max(axis=0).sum() == pytest.approx(width, abs=1.2)
            assert part.max(axis=1).sum() == pytest.approx(height, abs=1.2)
            compared += 1
    assert compared > 60
