"""What mosaics are made of where images are decoded anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import data.store
from data.loader import train_loader
from data.pool import Pools
from data.sampler import Rectangles, TrainSampler
from data.spec import read_data
from utils.hyp import Hyp

SIZE = (64, 64)
MOSAICS = Hyp(mosaic=1.0, mixup=0.3)


@pytest.fixture
def nothing_in_memory(monkeypatch):
    monkeypatch.setattr(data.store, "SMALL", 0)


def training(file, hyp=MOSAICS, **options):
    options = {"image_size": SIZE, "batch_size": 3, "stride": 32, "seed": 0, **options}
    return train_loader(read_data(file), hyp, **options)


def sampler(count=60, batch=4, **options):
    return TrainSampler(count, batch, SIZE, seed=0, **options)


# -- which images are in a pool ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "world"), [(1, 1), (3, 1), (2, 2)])
def test_a_pool_is_what_its_process_loaded_last(processes, world):
    """Against a list of all that each process has loaded, from its beginning."""
    for rank in range(world):
        found = sampler(pool=10, processes=processes, rank=rank, world_size=world)
        loaded = [[] for _ in range(processes)]
        for number, batch in enumerate(found):
            own = loaded[number % processes]
            own += [key.index for key in batch]
            latest = list(dict.fromkeys(reversed(own)))[:10]
            for key in batch:
                assert len(key.pool) == len(set(key.pool)) == 10
                assert set(latest) <= set(key.pool)
                assert key.pool is batch[0].pool  # pickled once
        assert min(len(own) for own in loaded) > 10


def test_images_with_and_without_labels_have_pools_of_their_own():
    for batch in sampler(labelled=20, pool=8):
        for key in batch:
            group = range(20) if key.index < 20 else range(20, 60)
            assert set(key.pool) <= set(group)
            assert len(key.pool) == 8
            assert key.index in key.pool


def test_small_data_sets_are_one_pool():
    for batch in sampler(6, pool=64):
        assert all(sorted(key.pool) == list(range(6)) for key in batch)


def test_with_a_pool_or_without_an_epoch_has_the_same_order():
    for options in ({}, {"labelled": 20}, {"rank": 1, "world_size": 2}):
        plain, pooled = (list(sampler(pool=pool, **options)) for pool in (0, 8))
        assert [[key._replace(pool=()) for key in batch] for batch in pooled] == plain
        assert all(key.pool == () for batch in plain for key in batch)


def test_an_epoch_s_pools_can_be_repeated_and_differ_from_the_next():
    one, other = sampler(pool=8), sampler(pool=8)
    first = list(one)
    other.epoch = 1
    second = list(other)
    other.epoch = 0
    assert list(other) == first
    assert [set(batch[0].pool) for batch in first] != [set(batch[0].pool) for batch in second]


def test_there_is_no_pool_where_it_would_be_of_no_use_or_uneven():
    closed, weighted = sampler(pool=8), sampler(pool=8)
    closed.mosaic = False
    weighted.weights = np.ones(60)
    fixed = sampler(pool=8, rectangles=Rectangles([np.arange(4), np.arange(4, 8)], (SIZE, SIZE)))
    for found in (closed, weighted, fixed):
        assert all(key.pool == () for batch in found for key in batch)


def test_a_pool_smaller_than_a_batch_keeps_the_batch_s_last():
    pools = Pools(3, (0, 20), 1, np.random.default_rng(0))
    assert pools.after(0, [4, 9, 1, 7, 2]) == [(1, 7, 2)] * 5


# -- statistics -------------------------------------------------------------------------------------------------------


def drawn(dataset, found, epochs):
    """(images, images) how often each was the partner of each, and (epochs, images) how often each was one."""
    count = len(dataset)
    pairs, totals = np.zeros((count, count)), np.zeros((epochs, count))
    for epoch in range(epochs):
        found.epoch = epoch
        for batch in found:
            for key in batch:
                partners = dataset._composer.partners(key.index, 3, key.pool, dataset.rng(key))
                np.add.at(pairs[key.index], partners, 1)
                np.add.at(totals[epoch], partners, 1)
    return pairs, totals


def test_every_image_is_mixed_with_every_other_equally_often(make_data):
    """By chi-square over pairs; partners are different images, and never the image itself."""
    dataset = training(make_data(24)).dataset
    pairs, totals = drawn(dataset, sampler(24, 3, pool=8, processes=2), 600)
    assert (np.diag(pairs) == 0).all()
    others = pairs[~np.eye(24, dtype=bool)]
    expected = 600 * 3 / 23
    assert others.sum() == 600 * 24 * 3
    # draws within a pool hang together, so the spread is somewhat wider than that of independent draws (1.0)
    assert ((others - expected) ** 2 / expected).mean() < 1.3
    marginal = pairs.sum(axis=0)
    np.testing.assert_allclose(marginal, 1800, atol=5 * np.sqrt(1800))
    # and in one epoch an image is drawn about as unevenly as without a pool: a binomial of mean 3
    _, free = drawn(dataset, sampler(24, 3), 600)
    assert totals.mean() == free.mean() == 3
    assert totals.var() == pytest.approx(free.var(), rel=0.35)


def test_without_a_pool_partners_are_drawn_from_all(make_data):
    dataset = training(make_data(24)).dataset
    pairs, _ = drawn(dataset, sampler(24, 3), 600)
    expected = 600 * 3 / 24
    assert (np.diag(pairs) > 0).all()
    assert ((pairs - expected) ** 2 / expected).mean() == pytest.approx(1.0, abs=0.2)


def test_partners_from_a_pool_are_different_images(make_data):
    dataset, rng = training(make_data(24)).dataset, np.random.default_rng(0)
    pool = (3, 5, 8, 13, 21)
    for _ in range(200):
        partners = dataset._composer.partners(5, 4, pool, rng)
        assert sorted(partners) == [3, 8, 13, 21]
    few = {other for _ in range(200) for other in dataset._composer.partners(5, 3, (5, 8), rng)}
    assert few == set(range(24))  # too few in the pool: all are


# -- loading ----------------------------------------------------------------------------------------------------------


def test_a_pool_saves_decoding(make_data, nothing_in_memory, monkeypatch):
    counts = {}
    read = data.store.read_image
    for pool in (0, 8):
        loader = training(make_data(40), mosaic_pool=pool)
        seen = []
        monkeypatch.setattr(data.store, "read_image", lambda path, *rest, seen=seen: seen.append(path) or read(path))
        list(loader)
        counts[pool] = len(seen)
    assert counts[0] > 100
    assert counts[8] < 40 + 12  # each once, and what the pool was filled with


def test_batches_with_a_pool_can_be_repeated_with_as_many_workers(make_data, nothing_in_memory):
    """The epoch depends on how many processes share it: with none and with one it is the same."""
    file = make_data(20)
    batches = {workers: list(training(file, mosaic_pool=6, workers=workers)) for workers in (0, 1, 2)}
    assert [training(file, mosaic_pool=6, workers=workers).sampler.processes for workers in (0, 1, 2)] == [1, 1, 2]
    again = list(training(file, mosaic_pool=6, workers=2))
    for one, other in ((batches[0], batches[1]), (batches[2], again)):
        for first, second in zip(one, other, strict=True):
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.targets, second.targets)
    assert [batch.paths for batch in batches[0]] == [batch.paths for batch in batches[2]]


def test_images_in_memory_need_no_pool(make_data, monkeypatch):
    file = make_data(12)
    in_memory, plain = training(file, mosaic_pool=6), training(file)
    assert in_memory.sampler.pool == 0
    monkeypatch.setattr(data.store, "SMALL", 0)
    assert training(file, mosaic_pool=6).sampler.pool == 6
    assert training(file, mosaic_pool=6, rect=True).sampler.pool == 0
    assert training(file, mosaic_pool=6, image_weights=True).sampler.pool == 0
    assert training(file, replace(MOSAICS, mosaic=0), mosaic_pool=6).sampler.pool == 0
    for one, other in zip(in_memory, plain, strict=True):
        assert torch.equal(one.images, other.images)


def test_whether_there_is_a_pool_does_not_depend_on_the_memory_that_is_free(make_data, monkeypatch):
    file = make_data(12)
    for free in (1e12, 1e3):
        monkeypatch.setattr(data.store, "free_memory", lambda free=free: free)
        assert training(file, mosaic_pool=6).sampler.pool == 0
        assert training(file, mosaic_pool=6, cache="ram").sampler.pool == 0


def test_pictures_and_scenes_draw_the_same_partners(make_data, nothing_in_memory):
    loader = training(make_data(20), replace(MOSAICS, scale=0, translate=0), mosaic_pool=6)
    for batch in loader.sampler:
        for key in batch:
            picture = loader.dataset.augmented(key, loader.dataset.rng(key))
            drawn_image = loader.dataset[key].image.numpy()
            np.testing.assert_array_equal(drawn_image, picture.image[..., ::-1].transpose(2, 0, 1))
