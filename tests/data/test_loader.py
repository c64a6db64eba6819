from __future__ import annotations

import gc
import logging
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from data.batch import collate_quad
from data.dataset import prepare
from data.loader import eval_loader, train_loader
from data.sampler import TrainSampler, rectangles, weigh_images
from data.spec import read_data
from data.store import FORKS
from utils.boxes import to_original, xywh_to_xyxy
from utils.errors import UserError
from utils.hyp import Hyp

RICH = Hyp(degrees=10, shear=5, perspective=0.0005, flipud=0.5, mixup=0.5, copy_paste=0.5, mosaic=0.7, paste_in=0.5)
SLIM = Hyp(mosaic=0, letterbox=False, photometric=0.5, expand=0.5, min_iou_crop=(0.1, 0.5, 0.9))
PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)


def training(file, hyp=RICH, **options):
    options = {"image_size": (64, 64), "batch_size": 3, "stride": 32, "seed": 0, **options}
    return train_loader(read_data(file), hyp, **options)


def evaluation(file, split="val", **options):
    options = {"image_size": (64, 64), "batch_size": 3, "stride": 32, **options}
    return eval_loader(read_data(file), split, **options)


def epochs(loader, count=2, mosaic=True):
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch, mosaic)
        found += list(loader)
    return found


def assert_same(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one.paths == other.paths


# -- training ---------------------------------------------------------------------------------------------------------


def test_batches_are_bytes_with_targets_inside_the_image(make_data):
    loader = training(make_data())
    batches = epochs(loader)
    assert len(batches) == 2 * len(loader) == 6
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 64, 64)
        assert batch.labelled.all()
        assert batch.targets.shape[1] == 6
        assert batch.targets[:, 0].max() < len(batch.images)
        boxes = xywh_to_xyxy(batch.targets[:, 2:])
        assert boxes.min() >= -1e-6
        assert boxes.max() <= 1 + 1e-6
        assert (batch.targets[:, 4:] > 0).all()
        assert batch.frames == ()


@pytest.mark.parametrize("options", [{}, {"rect": True}, {"quad": True}, {"hyp": SLIM}])
def test_batches_do_not_depend_on_the_number_of_workers(make_data, options):
    file = make_data()
    alone = epochs(training(file, workers=0, **options))
    for workers in (1, 2):
        assert_same(alone, epochs(training(file, workers=workers, **options)))


def test_an_epoch_can_be_repeated_alone(make_data):
    file = make_data()
    third = training(file)
    third.set_epoch(2)
    assert_same(list(third), epochs(training(file), 3)[6:])


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"rect": True, "batch_size": 2}, {"image_weights": True}])
def test_an_epoch_that_goes_on_has_the_batches_that_are_left(make_data, options):
    file = make_data()
    whole, rest = (training(file, **options) for _ in range(2))
    whole.set_epoch(1)
    rest.set_epoch(1, first=1)
    assert len(rest) == len(whole)
    assert_same(list(rest), list(whole)[1:])
    rest.set_epoch(1)
    assert_same(list(rest), list(whole))
    rest.set_epoch(1, first=len(rest))
    assert list(rest) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_left_is_mixed_with_the_same_images(rank):
    def sampler(first):
        made = TrainSampler(40, 3, (64, 64), seed=0, rank=rank, world_size=2, pool=8, processes=2, labelled=30)
        made.first = first
        return made

    whole = list(sampler(0))
    assert len({key.pool for keys in whole for key in keys}) > 5
    assert list(sampler(3)) == whole[3:]


def test_another_seed_or_epoch_gives_other_batches(make_data):
    file = make_data()
    first, second = epochs(training(file))[:3], epochs(training(file))[3:]
    other = epochs(training(file, seed=1), 1)
    assert [b.paths for b in first] != [b.paths for b in second]
    assert not torch.equal(first[0].images, other[0].images)


def test_loading_leaves_the_global_generators_alone(make_data):
    loader = training(make_data())
    torch.manual_seed(1)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    epochs(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002


@pytest.mark.skipif(not FORKS, reason="workers are not forked here")
def test_the_garbage_collector_leaves_alone_what_forked_workers_share(make_data):
    loader = training(make_data(), workers=1)
    gc.unfreeze()
    try:
        list(loader)
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        new = [[] for _ in range(5000)]
        list(loader)  # by the same worker
        assert gc.get_freeze_count() < frozen + len(new)
    finally:
        gc.unfreeze()


def test_channels_are_rgb(tmp_path, make_data):
    file = make_data(1)
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[..., 2] = 255  # OpenCV's red
    cv2.imwrite(str(tmp_path / "images/train/0.png"), image)
    cv2.imwrite(str(tmp_path / "images/val/0.png"), image)
    for loader in (training(file, PLAIN), evaluation(file)):
        (batch,) = loader
        inside = batch.images[0, :, 32, 32]
        assert inside.tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (96, 32)])
def test_images_are_as_high_and_wide_as_asked(make_data, size):
    for hyp in (RICH, SLIM, replace(SLIM, letterbox=True)):
        for mosaic in (True, False):
            for batch in epochs(training(make_data(), hyp, image_size=size), 1, mosaic):
                assert batch.images.shape[2:] == size
    square = list(evaluation(make_data(), image_size=size, rect=False))
    assert all(batch.images.shape[2:] == size for batch in square)


def test_without_augmentation_boxes_lie_where_evaluation_has_them(make_data):
    file = make_data()
    train = training(file, augment=False)
    train.set_epoch(0)
    found = {}
    for batch in train:
        for index, path in enumerate(batch.paths):
            found[path.rsplit("/", 1)[1]] = batch.targets[batch.targets[:, 0] == index, 1:]
    for batch in evaluation(file, "train", rect=False):
        for index, path in enumerate(batch.paths):
            expected = batch.targets[batch.targets[:, 0] == index, 1:]
            # small images are enlarged in training only
            torch.testing.assert_close(found[path.rsplit("/", 1)[1]], expected, rtol=0, atol=0.02)


def test_a_warped_object_keeps_its_box(tmp_path, make_data):
    """Every augmentation at once: the brightest blob is where its box says."""
    file = make_data(4, ["0 .5 .5 .25 .25"] * 4)
    for index in range(4):
        image = np.zeros((64, 64, 3), dtype=np.uint8)
        image[24:40, 24:40] = 255
        cv2.imwrite(str(tmp_path / f"images/train/{index}.png"), image)
    hyp = replace(RICH, mixup=0, copy_paste=0, paste_in=0, mosaic=0, hsv_v=0, hsv_s=0)
    for batch in epochs(training(file, hyp), 5):
        for number, _, *box in batch.targets.tolist():
            bright = (batch.images[int(number), 0] > 180).nonzero()
            low, high = bright.min(dim=0).values.flip(0), bright.max(dim=0).values.flip(0) + 1
            expected = xywh_to_xyxy(torch.tensor(box)) * 64
            torch.testing.assert_close(torch.cat((low, high)).float(), expected, rtol=0, atol=2.0)


def test_closing_mosaic_shows_one_image_a_sample(make_data):
    file = make_data(6, [f"{index % 3} .5 .5 .9 .9" for index in range(6)])
    loader = training(file, replace(PLAIN, mosaic=1.0))
    open_, closed = epochs(loader, 1, mosaic=True), epochs(loader, 1, mosaic=False)
    assert sum(len(batch.targets) for batch in open_) > 6
    assert sum(len(batch.targets) for batch in closed) == 6


def test_polygons_are_copied_and_pasted(make_data):
    file = make_data(3, ["0 .05 .1 .3 .1 .3 .6 .05 .6\n"] * 3)
    loader = training(file, replace(PLAIN, copy_paste=1.0))
    assert sum(len(batch.targets) for batch in epochs(loader, 1)) == 6


def test_objects_of_other_images_are_pasted_unless_mixing_is_closed(make_data):
    file = make_data(6, ["0 .5 .5 .3 .3"] * 6)
    loader = training(file, replace(PLAIN, paste_in=1.0))
    assert sum(len(batch.targets) for batch in epochs(loader, 1)) > 12
    assert sum(len(batch.targets) for batch in epochs(loader, 1, mosaic=False)) == 6


def test_objects_are_pasted_as_often_as_the_recipe_says(make_data):
    file = make_data(6, ["0 .5 .5 .3 .3"] * 6)
    loader = training(file, replace(PLAIN, paste_in=0.3), batch_size=1)
    more = sum(len(batch.targets) > 1 for batch in epochs(loader, 40))
    assert more == pytest.approx(0.3 * 240, abs=25)


@pytest.mark.parametrize("letterbox", [True, False])
def test_the_recipe_of_ssd_keeps_boxes_on_their_objects(tmp_path, make_data, letterbox):
    file = make_data(4, ["0 .5 .5 .25 .25"] * 4)
    for index, (height, width) in enumerate(((64, 64), (100, 60), (40, 120), (200, 160))):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        rows, columns = (slice(round(0.375 * side), round(0.625 * side)) for side in (height, width))
        image[rows, columns] = 255
        cv2.imwrite(str(tmp_path / f"images/train/{index}.png"), image)
    hyp = replace(PLAIN, letterbox=letterbox, expand=0.5, expand_ratio=2.0, min_iou_crop=(0.1, 0.5), fliplr=0.5)
    sides = []
    for batch in epochs(training(file, hyp, image_size=(64, 160)), 10):
        assert len(batch.targets) == len(batch.images)
        for number, _, *box in batch.targets.tolist():
            bright = (batch.images[int(number), 0] > 190).nonzero()
            low, high = bright.min(dim=0).values.flip(0), bright.max(dim=0).values.flip(0) + 1
            expected = xywh_to_xyxy(torch.tensor(box)) * torch.tensor((160, 64, 160, 64))
            torch.testing.assert_close(torch.cat((low, high)).float(), expected, rtol=0, atol=2.6)
            sides.append((expected[2:] - expected[:2]).tolist())
    assert np.ptp(sides, axis=0).min() > 20


def test_recipes_that_leave_something_out_say_so(make_data, caplog):
    file = make_data()
    with caplog.at_level(logging.INFO):
        training(file, replace(SLIM, mosaic=1.0))
        assert "with mosaic 1 all images are" in caplog.text
        caplog.clear()
        training(file, SLIM)
        training(file, PLAIN)
        assert "mosaic" not in caplog.text
        training(file, replace(PLAIN, paste_in=0.5), rect=True)
        assert "--rect: without mosaic, mixup and paste_in" in caplog.text


def test_an_image_that_goes_bad_meanwhile_does_not_stop_training(tmp_path, make_data, monkeypatch, caplog):
    monkeypatch.setattr("data.store.SMALL", 0)
    loader = training(make_data())
    (tmp_path / "images/train/2.png").write_text("gone")
    with caplog.at_level(logging.WARNING):
        assert len(epochs(loader, 1)) == 3
    assert "2.png cannot be read any more" in caplog.text


def test_a_single_class_takes_boxes_of_all(make_data):
    spec = replace(read_data(make_data()), num_classes=1, names=("item",))
    options = {"image_size": (64, 64), "batch_size": 4, "stride": 32, "single_class": True}
    for loader in (train_loader(spec, PLAIN, seed=0, **options), eval_loader(spec, "val", **options)):
        assert loader.dataset.class_counts.tolist() == [21]
        assert all((batch.targets[:, 1] == 0).all() for batch in loader)


def test_without_boxes_training_is_refused_and_evaluation_warns(make_data, caplog):
    file = make_data(2, ["", ""])
    with pytest.raises(UserError, match="not one box"):
        training(file)
    assert sum(len(batch.images) for batch in evaluation(file)) == 2
    assert "not one box" in caplog.text


# -- samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(7, 3, 1), (7, 3, 2), (16, 4, 4), (5, 8, 2), (9, 2, 4), (1, 4, 3)]
)
def test_ranks_share_an_epoch_in_equal_numbers_of_steps(count, batch, world):
    samplers = [TrainSampler(count, batch, (64, 64), seed=3, rank=rank, world_size=world) for rank in range(world)]
    for sampler in samplers:
        sampler.epoch = 5
    batches = [list(sampler) for sampler in samplers]
    steps = math.ceil(math.ceil(count / world) / batch)
    assert all(len(own) == len(sampler) == steps for own, sampler in zip(batches, samplers, strict=True))
    sizes = [[len(keys) for keys in own] for own in batches]
    assert all(own == sizes[0] for own in sizes)
    shown = [key for own in batches for keys in own for key in keys]
    assert {key.index for key in shown} == set(range(count))
    assert len(set(shown)) == len(shown) == math.ceil(count / world) * world  # repeats have numbers of their own


def test_image_weights_draw_rare_classes_more_often(make_data):
    labels = ["0 .5 .5 .2 .2"] * 6 + ["1 .5 .5 .2 .2"]
    loader = training(make_data(7, labels), image_weights=True)
    shown = np.zeros(7)
    for epoch in range(60):
        loader.set_epoch(epoch)
        for keys in loader.sampler:
            for key in keys:
                shown[key.index] += 1
    shares = shown / shown.sum()
    assert shares[6] == pytest.approx(0.5, abs=0.08)
    loader.set_image_weights([0.0, 0.0, 1.0])  # a class that no image has
    assert len(list(loader)) == 3
    loader.set_image_weights(None)
    assert sorted(key.index for keys in loader.sampler for key in keys) == list(range(7))


def test_weights_of_images_equal_a_slow_sum(make_data):
    labels = training(make_data()).dataset.labels
    per_class = np.array([0.5, 1.0, 2.0])
    counts = [sum((labels[i][:, 0] == c).sum() for i in range(len(labels))) for c in range(3)]
    expected = [sum(per_class[int(c)] / max(1, counts[int(c)]) for c in labels[i][:, 0]) for i in range(len(labels))]
    np.testing.assert_allclose(weigh_images(labels, per_class), expected)


def test_rectangular_training_pads_little_and_shows_every_image(make_data):
    loader = training(make_data(), rect=True, batch_size=2)
    for world in (1, 2):
        paths, shapes = set(), set()
        for rank in range(world):
            part = training(make_data(), rect=True, batch_size=2, rank=rank, world_size=world)
            part.set_epoch(1)
            assert len(part) == math.ceil(4 / world)
            for batch in part:
                paths |= set(batch.paths)
                shapes.add(tuple(batch.images.shape[2:]))
        assert len(paths) == 7
        assert (64, 32) in shapes
    orders = []
    for epoch in range(6):
        loader.set_epoch(epoch)
        orders.append(tuple(keys[0].index for keys in loader.sampler))
    assert len(set(orders)) > 1


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_detections_find_their_way_back_to_original_pixels(make_data):
    file = make_data()
    spec = read_data(file)
    for options in ({}, {"rect": False}, {"image_size": (64, 96)}, {"image_size": (32, 32)}):
        seen = 0
        loader = evaluation(file, **options)
        for batch in loader:
            size = torch.tensor(batch.images.shape[:1:-1]).repeat(2)
            for index, (path, frame) in enumerate(zip(batch.paths, batch.frames, strict=True)):
                original = cv2.imread(path)
                assert (frame.height, frame.width) == original.shape[:2]
                rows = loader.dataset.labels[spec.images("val").index(path)]
                own = batch.targets[batch.targets[:, 0] == index]
                boxes = to_original(xywh_to_xyxy(own[:, 2:].double()) * size, frame)
                expected = xywh_to_xyxy(torch.from_numpy(rows[:, 1:]).double())
                expected = expected * torch.tensor((frame.width, frame.height)).repeat(2)
                torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-3)
                seen += 1
        assert seen == 7


def test_rectangular_batches_have_the_published_shapes():
    shapes = np.array([[480, 640], [427, 640], [640, 480], [640, 640]], dtype=np.int32)
    plan = rectangles(shapes, 2, (640, 640), 32, 0.5)
    assert [batch.tolist() for batch in plan.batches] == [[1, 0], [3, 2]]
    assert plan.sizes == ((512, 672), (672, 672))
    tall = rectangles(shapes[[2]], 1, (640, 640), 32, 0.5)
    assert tall.sizes == ((672, 512),)


def test_rectangles_of_a_non_square_size_hold_their_images():
    shapes = np.array([[480, 640], [100, 900], [900, 100], [300, 300]], dtype=np.int32)
    plan = rectangles(shapes, 1, (416, 736), 32, 0.0)
    needed = {0: (416, 576), 1: (96, 736), 2: (416, 64), 3: (416, 416)}
    assert {batch.item(): size for batch, size in zip(plan.batches, plan.sizes, strict=True)} == needed


def test_evaluation_shows_each_image_once_whatever_the_batches_and_ranks(make_data):
    file = make_data()
    for options in ({"batch_size": 2}, {"batch_size": 16}, {"rect": False}, {"workers": 2}):
        assert sorted(p for b in evaluation(file, **options) for p in b.paths) == read_data(file).images("val")
    shared = [p for rank in range(2) for b in evaluation(file, rank=rank, world_size=2) for p in b.paths]
    assert sorted(shared) == read_data(file).images("val")


def test_evaluation_does_not_enlarge_in_the_letterbox_but_fits_the_long_side(make_data):
    (batch,) = evaluation(make_data(1), image_size=(128, 128))
    assert batch.frames[0].scale_x == 2.0
    assert batch.frames[0].scale_y == 2.0


def test_a_single_image_is_prepared_as_in_evaluation(make_data):
    for batch in evaluation(make_data(), rect=False):
        for pixels, path, frame in zip(batch.images, batch.paths, batch.frames, strict=True):
            prepared, own = prepare(cv2.imread(path), (64, 64))
            assert torch.equal(prepared, pixels)
            assert own == frame


# -- quad -------------------------------------------------------------------------------------------------------------


def test_quad_batches_are_a_quarter_as_many_images_twice_as_large(make_data):
    loader = training(make_data(4), PLAIN, quad=True, batch_size=4)
    tiled = enlarged = 0
    for epoch in range(8):
        loader.set_epoch(epoch)
        (batch,) = loader
        assert batch.images.shape == (1, 3, 128, 128)
        samples = [loader.dataset[key] for key in next(iter(loader.sampler))]
        if len(batch.targets) == 12:
            tiled += 1
            assert torch.equal(batch.images[0, :, :64, 64:], samples[1].image)
            assert torch.equal(batch.images[0, :, 64:, :64], samples[2].image)
            expected = samples[2].targets[:, 1:3] / 2 + torch.tensor((0, 0.5))
            torch.testing.assert_close(batch.targets[6:9, 2:4], expected)
        else:
            enlarged += 1
            torch.testing.assert_close(batch.targets[:, 1:], samples[0].targets)
    assert tiled
    assert enlarged


def test_an_incomplete_quad_is_enlarged_one_by_one(make_data):
    loader = training(make_data(), PLAIN, batch_size=6)
    samples = [loader.dataset[key] for key in next(iter(loader.sampler))]
    assert collate_quad(samples).images.shape == (3, 3, 128, 128)


# -- real data --------------------------------------------------------------------------------------------------------


def test_real_photographs_are_loaded(bccd):
    loader = train_loader(read_data(bccd), Hyp(), image_size=(320, 320), batch_size=16, stride=32, seed=0)
    batch = next(iter(loader))
    assert batch.images.shape == (16, 3, 320, 320)
    assert len(batch.targets) > 100
    assert loader.dataset.class_counts.sum() == 2804
    evaluated = eval_loader(read_data(bccd), "val", image_size=(320, 320), batch_size=16, stride=32)
    assert next(iter(evaluated)).images.shape == (16, 3, 256, 352)
