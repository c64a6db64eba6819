from __future__ import annotations

import logging
import os

import numpy as np
import pytest

import data.store
from data.images import read_image
from data.store import ImageStore, free_memory
from utils.errors import UserError


@pytest.fixture
def files(tmp_path, write_image):
    sizes = ((48, 64), (100, 30), (64, 64))
    paths = [str(write_image(tmp_path / f"{index}.png", size, index)) for index, size in enumerate(sizes)]
    return paths, np.array(sizes, dtype=np.int32)


def store(files, cache="", size=(64, 64)):
    return ImageStore(*files, size, smooth=False, cache=cache, where="train")


@pytest.fixture
def no_automatic_cache(monkeypatch):
    monkeypatch.setattr(data.store, "SMALL", 0)


def test_caches_give_the_same_pixels(files, no_automatic_cache):
    plain, memory, disk = store(files), store(files, "ram"), store(files, "disk")
    assert memory._filled.all()
    assert not plain._filled.any()
    for index in range(3):
        for cached in (memory, disk, disk):
            assert cached.load(index).original == plain.load(index).original
            np.testing.assert_array_equal(cached.load(index).image, plain.load(index).image)


def test_small_sets_are_kept_in_memory_without_being_asked(files):
    assert store(files)._filled.all()


def test_memory_that_does_not_suffice_is_not_taken(files, monkeypatch, caplog):
    monkeypatch.setattr(data.store, "free_memory", lambda: 1000.0)
    assert not store(files, "ram")._filled.any()
    assert "--cache ram needs" in caplog.text
    caplog.clear()
    assert not store(files)._filled.any()
    assert not caplog.text


def test_a_disk_cache_holds_the_originals_and_follows_changes(files, write_image, no_automatic_cache):
    disk = store(files, "disk")
    disk.load(0)
    cached = files[0][0] + ".npy"
    np.testing.assert_array_equal(np.load(cached), read_image(files[0][0]))
    write_image(data.store.Path(files[0][0]), (48, 64), seed=9)
    os.utime(files[0][0], ns=(1 << 62, 1 << 62))
    np.testing.assert_array_equal(disk.load(0).image, store(files).load(0).image)


@pytest.mark.parametrize("content", [b"", b"half a file", b"\x80\x04."])
def test_a_damaged_disk_cache_is_made_again(files, content, no_automatic_cache):
    path = data.store.Path(files[0][0] + ".npy")
    path.write_bytes(content)
    np.testing.assert_array_equal(store(files, "disk").load(0).image, store(files).load(0).image)
    assert np.load(path).shape == (48, 64, 3)


def test_a_disk_that_cannot_be_written_to_does_no_harm(files, monkeypatch, caplog, no_automatic_cache):
    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(data.store, "write_atomically", refuse)
    assert store(files, "disk").load(0).image.shape == (48, 64, 3)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        assert store(files, "disk").load(0).image.shape == (48, 64, 3)
    assert "cannot be written to" in caplog.text


def test_a_file_that_shrank_since_it_was_checked_is_read_as_it_is(files, write_image):
    write_image(data.store.Path(files[0][0]), (10, 20))
    loaded = store(files, "ram").load(0)
    assert loaded.original == (10, 20)
    assert loaded.image.shape == (32, 64, 3)


def test_an_unknown_cache_is_refused(files):
    with pytest.raises(UserError, match="--cache tape"):
        store(files, "tape")


def test_free_memory_is_a_plausible_number():
    assert free_memory() is None or 1e6 < free_memory() < 1e15
