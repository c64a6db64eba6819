from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import data.labels
import data.store
from data.augment import paste_in
from data.batch import Sample, collate_quad
from data.loader import train_loader
from data.sampler import TrainSampler, rectangles
from data.spec import read_data
from losses.anchor import AnchorLoss
from utils.errors import UserError
from utils.hyp import Hyp
from utils.types import Prediction

PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
RICH = Hyp(degrees=10, shear=5, perspective=0.0005, flipud=0.5, mixup=0.5, copy_paste=0.5, mosaic=0.7)
MIXED = replace(PLAIN, mosaic=1.0, mixup=1.0)
LABELLED, UNLABELLED = 7, 10


@pytest.fixture
def make(make_data, write_image, tmp_path):
    """make(labelled, unlabelled): the YAML file of a data set; beside every unlabelled image lies a label file."""

    def make(labelled: int = LABELLED, unlabelled: int = UNLABELLED, key: str = "unlabelled: images/pool") -> Path:
        for index in range(unlabelled):
            write_image(tmp_path / f"images/pool/{index}.png", ((48, 64), (64, 40))[index % 2], 100 + index)
            path = tmp_path / f"labels/pool/{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("2 .5 .5 .4 .4\n")
        return make_data(labelled, extra=f"{key}\n")

    return make


def training(file, hyp=RICH, **options):
    options = {
        "image_size": (64, 64), "batch_size": 4, "stride": 32, "seed": 0, "unlabelled": True, **options,
    }  # fmt: skip
    return train_loader(read_data(file), hyp, **options)


def epochs(loader, count=2):
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def is_pooled(path):
    return Path(path).parent.name == "pool"


def assert_same(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.labelled, other.labelled)
        assert one.paths == other.paths


# -- the data file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["unlabelled", "unlabeled"])
def test_unlabelled_images_are_named_in_the_data_file(make, tmp_path, spelling):
    spec = read_data(make(1, 3, f"{spelling}: images/pool"))
    assert spec.unlabelled == (str(tmp_path / "images/pool"),)
    assert spec.images("unlabelled") == [str(tmp_path / f"images/pool/{index}.png") for index in range(3)]
    assert spec.as_single_class().unlabelled == spec.unlabelled


def test_without_the_key_there_are_none(make_data):
    spec = read_data(make_data(1))
    assert spec.unlabelled == ()
    with pytest.raises(UserError, match="has no 'unlabelled' images"):
        spec.images("unlabelled")


def test_they_are_folders_lists_or_several_of_them(make, write_image, tmp_path):
    write_image(tmp_path / "elsewhere/a.png")
    (tmp_path / "pool.txt").write_text("images/pool/1.png\n")
    spec = read_data(make(1, 2, f"unlabelled: [pool.txt, {tmp_path / 'elsewhere'}]"))
    assert spec.images("unlabelled") == [str(tmp_path / "images/pool/1.png"), str(tmp_path / "elsewhere/a.png")]


def test_an_absent_pool_is_a_mistake_that_names_it_and_fetches_nothing(make, monkeypatch, tmp_path):
    monkeypatch.setattr("data.spec.obtain", lambda *_: pytest.fail("the data set is there"))
    file = make(1, 1, "unlabelled: [images/pool, images/nowhere]\ndownload: https://example.com/a.zip")
    with pytest.raises(UserError, match="unlabelled: its images are not there") as error:
        read_data(file)
    assert str(tmp_path / "images/nowhere") in str(error.value)
    assert str(tmp_path / "images/pool") not in str(error.value)


def test_both_spellings_at_once_or_no_path_at_all_are_mistakes(make):
    with pytest.raises(UserError, match="has both unlabelled and unlabeled"):
        read_data(make(1, 1, "unlabelled: images/pool\nunlabeled: images/pool"))
    with pytest.raises(UserError, match="unlabelled: expected a folder"):
        read_data(make(1, 1, "unlabelled: 7"))


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rect": True}, {"augment": False}])
def test_an_epoch_shows_every_image_of_both_groups_once(make, options):
    loader = training(make(), PLAIN, **options)
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        paths = [path for batch in batches for path in batch.paths]
        assert len(paths) == len(set(paths)) == LABELLED + UNLABELLED
        for batch in batches:
            assert batch.labelled.tolist() == [not is_pooled(path) for path in batch.paths]
            assert batch.labelled[batch.targets[:, 0].long()].all()


def test_a_label_file_beside_an_unlabelled_image_is_not_read(make, caplog):
    with caplog.at_level(logging.INFO):
        labels = training(make()).dataset.labels
    assert len(labels.rows) == 3 * LABELLED
    assert labels.counts.images == LABELLED
    assert labels.counts.background == 0
    assert (labels.labelled, labels.unlabelled) == (LABELLED, UNLABELLED)
    assert f"train: {LABELLED} images (0 without objects)" in caplog.text
    assert f"unlabelled: {UNLABELLED} images, they learn from the teacher alone" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("options", [{}, {"rect": True}, {"quad": True}, {"image_weights": True}, {"cache": "ram"}])
def test_who_does_not_ask_gets_the_same_batches_as_without_them(make, caplog, options):
    file = make()
    with caplog.at_level(logging.INFO):
        unasked = epochs(training(file, unlabelled=False, **options))
    assert "images/pool are not used" in caplog.text
    file.write_text(file.read_text().replace("unlabelled: images/pool", ""))
    caplog.clear()
    for asked in (False, True):
        with caplog.at_level(logging.INFO):
            assert_same(unasked, epochs(training(file, unlabelled=asked, **options)))
    assert "not used" not in caplog.text
    assert all(batch.labelled.all() for batch in unasked)


def test_a_labelled_sample_is_the_same_whether_others_are_unlabelled_or_not(make):
    file = make()
    samples = {}
    for asked in (False, True):
        for batch in epochs(training(file, unlabelled=asked), 1):
            for index, path in enumerate(batch.paths):
                own = batch.targets[batch.targets[:, 0] == index, 1:]
                samples.setdefault(path, []).append((batch.images[index], own))
    pairs = [pair for path, pair in samples.items() if not is_pooled(path)]
    assert [len(pair) for pair in pairs] == [2] * LABELLED
    for (image, targets), (other_image, other_targets) in pairs:
        assert torch.equal(image, other_image)
        assert torch.equal(targets, other_targets)


def test_mosaics_and_mixups_never_mix_the_groups(make, tmp_path):
    """Labelled images are red and unlabelled ones green: no sample has both."""
    file = make(3, 3)
    for folder, channel in (("train", 2), ("pool", 1)):
        for path in (tmp_path / "images" / folder).iterdir():
            image = np.zeros((64, 64, 3), dtype=np.uint8)
            image[..., channel] = 255
            cv2.imwrite(str(path), image)
    background = 114
    for batch in epochs(training(file, MIXED), 6):
        red, green = (batch.images[:, channel] > background + 5 for channel in (0, 1))
        assert torch.equal(red.flatten(1).any(dim=1), batch.labelled)
        assert torch.equal(green.flatten(1).any(dim=1), ~batch.labelled)


def test_unlabelled_images_are_mixed_among_themselves(make):
    loader = training(make(), MIXED)
    draw = np.random.default_rng(0)
    partners = {loader.dataset._composer.partners(LABELLED + 1, 1, (), draw)[0] for _ in range(200)}
    assert partners == set(range(LABELLED, LABELLED + UNLABELLED))
    partners = {loader.dataset._composer.partners(1, 1, (), draw)[0] for _ in range(200)}
    assert partners == set(range(LABELLED))


@pytest.mark.parametrize("options", [{}, {"rect": True}, {"quad": True}, {"cache": "disk"}])
def test_batches_do_not_depend_on_workers_and_an_epoch_can_be_repeated_alone(make, monkeypatch, options):
    monkeypatch.setattr(data.store, "SMALL", 0)
    file = make()
    alone = epochs(training(file, **options))
    assert_same(alone, epochs(training(file, workers=2, **options)))
    second = training(file, **options)
    second.set_epoch(1)
    assert_same(list(second), alone[len(second) :])


@pytest.mark.parametrize("rect", [False, True])
def test_two_ranks_share_an_epoch_in_equal_numbers_of_steps(make, rect):
    file = make(LABELLED, 10)
    parts = [training(file, PLAIN, rank=rank, world_size=2, rect=rect) for rank in range(2)]
    shown = [epochs(part, 1) for part in parts]
    assert len(shown[0]) == len(shown[1]) == len(parts[0])
    paths = {path for own in shown for batch in own for path in batch.paths}
    assert len(paths) == LABELLED + 10


def test_one_class_for_all_leaves_the_groups_as_they_are(make):
    spec = read_data(make()).as_single_class()
    loader = train_loader(
        spec, PLAIN, image_size=(64, 64), batch_size=4, stride=32, seed=0, single_class=True, unlabelled=True
    )
    assert sum(int(batch.labelled.sum()) for batch in loader) == LABELLED
    assert loader.dataset.class_counts.tolist() == [3 * LABELLED]


def test_an_unlabelled_image_feels_no_detection_loss(make):
    """Neither its value nor a gradient depends on what is predicted for it; for a labelled one both do."""

    class Head:
        num_classes, anchors = 3, torch.tensor([[[1.0, 1.0], [2.0, 3.0]]])

    loss = AnchorLoss(Head(), PLAIN, (64, 64))
    both = 0
    for batch in epochs(training(make()), 1):
        levels = torch.randn(len(batch.images), 2, 8, 8, 8, requires_grad=True)
        terms = loss(Prediction((levels,)), batch.to("cpu"))
        sum(terms.values()).backward()
        felt = levels.grad.flatten(1).abs().sum(dim=1) > 0
        assert torch.equal(felt, batch.labelled)
        changed = torch.where(batch.labelled[:, None, None, None, None], levels.detach(), 9.0)
        again = loss(Prediction((changed,)), batch.to("cpu"))
        assert all(torch.equal(terms[name], again[name]) for name in terms)
        both += 0 < batch.labelled.sum() < len(batch.labelled)
    assert both


# -- samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_every_step_has_its_share_of_labelled_images(world):
    labelled, rest, batch = 100, 300, 20
    samplers = [
        TrainSampler(400, batch, (64, 64), seed=0, rank=rank, world_size=world, labelled=labelled)
        for rank in range(world)
    ]
    orders = set()
    for epoch in range(5):
        for sampler in samplers:
            sampler.epoch = epoch
        shares = []
        for parts in zip(*samplers, strict=True):
            indices = [key.index for keys in parts for key in keys]
            shares.append(sum(index < labelled for index in indices) / len(indices))
            orders.add(tuple(indices))
        assert len(shares) == 400 // (batch * world)
        # two pieces of the line of either group may lie across a border
        assert all(abs(share - labelled / (labelled + rest)) <= 2 / (batch * world) for share in shares)
    assert len(orders) == 5 * len(shares)


def test_image_weights_choose_among_labelled_images_alone(make, tmp_path):
    file = make(7, 5)
    for index in range(7):
        (tmp_path / f"labels/train/{index}.txt").write_text("1 .5 .5 .2 .2" if index == 6 else "0 .5 .5 .2 .2")
    loader = training(file, PLAIN, image_weights=True)
    for per_class in (None, [0.0, 0.0, 1.0]):  # the second: a class that no image has
        if per_class:
            loader.set_image_weights(per_class)
        shown = np.zeros(12)
        for epoch in range(60):
            loader.set_epoch(epoch)
            for keys in loader.sampler:
                for key in keys:
                    shown[key.index] += 1
        assert shown[7:].tolist() == [60] * 5
        assert shown[:7].sum() == 60 * 7
        assert shown[6] / shown[:7].sum() == pytest.approx(1 / 7 if per_class else 1 / 2, abs=0.08)


def test_rectangles_mix_groups_of_equal_shape():
    shapes = np.array([[48, 64]] * 40, dtype=np.int32)
    plan = rectangles(shapes, 8, (64, 64), 32, 0.0, labelled=10)
    assert sorted(index for batch in plan.batches for index in batch.tolist()) == list(range(40))
    assert [int((batch < 10).sum()) for batch in plan.batches] == [2] * 5


# -- quad -------------------------------------------------------------------------------------------------------------


def drawn_samples(flags):
    coins = np.random.default_rng(0).random(len(flags)) * 0.4 + 0.55  # all heads: groups are put side by side
    return [
        Sample(
            torch.full((3, 8, 8), number, dtype=torch.uint8),
            torch.tensor([[0, 0.5, 0.5, 0.2, 0.2]] if flag else []).reshape(-1, 5),
            str(number),
            coin=coin,
            labelled=flag,
        )
        for number, (flag, coin) in enumerate(zip(flags, coins, strict=True))
    ]


def test_four_images_side_by_side_are_of_one_group():
    flags = [True, False, False, True, False, False, True, False, True, True, False, False]
    batch = collate_quad(drawn_samples(flags))
    assert batch.images.shape == (3, 3, 16, 16)  # as many as without unlabelled ones: memory does not depend on chance
    seen = [set(image.unique().tolist()) for image in batch.images]
    assert seen[0] == {0, 3, 6, 8}
    assert len(seen[1]) == 1  # the group with both shows one of its images
    assert seen[1] <= {9, 1, 2, 4}
    assert seen[2] == {5, 7, 10, 11}
    assert batch.labelled.tolist() == [True, seen[1] == {9}, False]
    assert (batch.targets[:, 0] == 0).sum() == 4


def test_of_a_group_with_both_each_image_has_a_chance():
    shown = set()
    for seed in range(40):
        coins = np.random.default_rng(seed).random(4)
        samples = [s._replace(coin=c) for s, c in zip(drawn_samples([True, False, True, False]), coins, strict=True)]
        shown.add(int(collate_quad(samples).images.unique()))
    assert shown == {0, 1, 2, 3}


def test_an_incomplete_group_with_both_keeps_its_flags():
    batch = collate_quad(drawn_samples([False, True, False]))
    assert batch.labelled.tolist() == [True, False, False]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 0, 2]


# -- files that are there twice, changed or broken --------------------------------------------------------------------


def test_an_image_that_is_labelled_too_is_dropped_from_the_unlabelled(make, tmp_path, caplog):
    file = make(4, 3, "unlabelled: [images/pool, images/train, links.txt]")
    (tmp_path / "images/pool/link.png").symlink_to(tmp_path / "images/train/0.png")
    (tmp_path / "links.txt").write_text("./images/val/../train/1.png\n")
    with caplog.at_level(logging.INFO):
        loader = training(file)
    assert "unlabelled: 6 of 9 images are training images too, and dropped here" in caplog.text
    assert (loader.dataset.labels.labelled, loader.dataset.labels.unlabelled) == (4, 3)


def test_a_pool_of_training_images_alone_leaves_nothing_to_add(make, caplog):
    with caplog.at_level(logging.INFO):
        loader = training(make(4, 0, "unlabelled: images/train"))
    assert "4 of 4 images are training images too" in caplog.text
    assert all(batch.labelled.all() for batch in loader)


def test_images_that_scores_are_taken_on_are_pointed_out(make, caplog):
    training(make(4, 2, "unlabelled: [images/pool, images/val]"))
    assert "unlabelled: 4 images are val images too" in caplog.text


def test_the_check_of_images_is_kept_and_label_files_do_not_matter_to_it(make, monkeypatch, tmp_path):
    calls = []
    original = data.labels.scan_unlabelled
    monkeypatch.setattr(data.labels, "scan_unlabelled", lambda *args: calls.append(1) or original(*args))
    file = make()
    for _ in range(2):
        assert training(file).dataset.labels.unlabelled == UNLABELLED
    assert len(calls) == 1
    (tmp_path / "labels/pool/0.txt").write_text("0 .1 .1 .1 .1\n")
    training(file)
    assert len(calls) == 1
    os.utime(tmp_path / "images/pool/0.png", ns=(1, 1))
    training(file)
    assert len(calls) == 2


def test_the_cache_of_a_pool_is_not_that_of_the_same_folder_with_labels(make_data, write_image, monkeypatch, tmp_path):
    calls = []
    for name in ("scan", "scan_unlabelled"):
        original = getattr(data.labels, name)
        monkeypatch.setattr(data.labels, name, lambda *args, run=original, name=name: calls.append(name) or run(*args))
    write_image(tmp_path / "plain/0.png")
    (tmp_path / "plain/0.txt").write_text("2 .5 .5 .4 .4\n")
    file, labelled = make_data(4, extra="unlabelled: plain\n"), tmp_path / "labelled.yaml"
    labelled.write_text("path: .\ntrain: plain\nval: images/val\nnames: [a, b, c]\n")
    for _ in range(2):
        assert training(labelled).dataset.class_counts.tolist() == [0, 0, 1]
        assert len(training(file).dataset.labels.rows) == 3 * 4
    assert calls == ["scan", "scan", "scan_unlabelled"]


def test_a_pool_needs_no_folder_of_labels(make_data, write_image, tmp_path):
    file = make_data(4, extra="unlabelled: pool\n")
    write_image(tmp_path / "pool/deep/a.png")
    for _ in range(2):
        assert training(file).dataset.labels.unlabelled == 1
    assert list((tmp_path / "pool").glob("*.cache.npz"))


def test_broken_images_are_skipped_and_named(make, tmp_path, caplog):
    file = make(4, 3)
    (tmp_path / "images/pool/1.png").write_text("no image")
    loader = training(file, PLAIN)
    assert loader.dataset.labels.unlabelled == 2
    assert "unlabelled: skipped 1 corrupt images" in caplog.text
    for index in (0, 2):
        (tmp_path / f"images/pool/{index}.png").write_text("no image")
    with pytest.raises(UserError, match="unlabelled: none of its 3 images can be used"):
        training(file)


# -- pasted objects ---------------------------------------------------------------------------------------------------


def test_nothing_is_pasted_into_unlabelled_images_nor_taken_from_them(make, monkeypatch):
    """What a teacher labels should be there, and of an unlabelled image no object is known."""
    loader = training(make(), replace(PLAIN, paste_in=1.0, mosaic=0.5))
    plain = training(make(), replace(PLAIN, mosaic=0.5))
    taken = []
    monkeypatch.setattr(
        "data.dataset.paste_in", lambda picture, sources, rng: taken.append(sources) or paste_in(picture, sources, rng)
    )
    pasted = 0
    for batch, other in zip(epochs(loader), epochs(plain), strict=True):
        assert batch.paths == other.paths
        for index, labelled in enumerate(batch.labelled.tolist()):
            own = (batch.targets[:, 0] == index).sum()
            if labelled:
                pasted += int(own > (other.targets[:, 0] == index).sum())
            else:
                assert own == 0
                assert torch.equal(batch.images[index], other.images[index])
    assert pasted > 5
    assert len(taken) == 2 * LABELLED
    assert all(len(source.boxes) for sources in taken for source in sources)
