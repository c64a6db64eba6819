"""One file of raw pixels: the same images, written once, never half, and never another's."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import data.pack
import data.store
from data.geometry import GREY
from data.labels import read_labels
from data.store import ImageStore
from data.view import View, open_images

SIZES = ((48, 64), (100, 30), (64, 64))
SIZE = (64, 64)


@pytest.fixture(autouse=True)
def no_automatic_cache(monkeypatch):
    monkeypatch.setattr(data.store, "SMALL", 0)


@pytest.fixture
def files(tmp_path, write_image):
    return [str(write_image(tmp_path / f"images/train/{i}.png", size, i)) for i, size in enumerate(SIZES)]


def store(paths, cache="packed", size=SIZE, smooth=False, source="images/train"):
    return ImageStore(paths, np.array(SIZES, dtype=np.int32), size, smooth, cache, "train", source)


def packs(paths):
    return sorted(Path(paths[0]).parent.parent.glob("*.pack"))


def decodes_nothing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(data.store, "read_image", refuse)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_packed_image_is_the_image_that_the_store_loads(files, smooth):
    packed, plain = store(files, smooth=smooth), store(files, "", smooth=smooth)
    for index in range(len(files)):
        assert packed.load(index).original == plain.load(index).original
        np.testing.assert_array_equal(packed.load(index).image, plain.load(index).image)


def test_the_second_store_decodes_nothing(files, monkeypatch):
    first = [store(files).load(index).image.copy() for index in range(3)]
    decodes_nothing(monkeypatch)
    second = store(files)
    for index in range(3):
        np.testing.assert_array_equal(second.load(index).image, first[index])


def test_the_file_is_named_after_the_folder_and_the_size(files):
    store(files)
    (path,) = packs(files)
    assert path.name.startswith("train-64x64-")


def test_sizes_and_ways_to_shrink_lie_side_by_side(files, monkeypatch):
    settings = [{"size": (64, 64)}, {"size": (32, 64)}, {"smooth": True}]
    for given in settings:
        store(files, **given)
    assert len(packs(files)) == 3
    decodes_nothing(monkeypatch)
    for given in settings:
        store(files, **given).load(0)


def test_a_crop_has_a_pack_of_its_own(files):
    labels = read_labels(files, None, "images/train", "train")
    shown = {}
    for crop in ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)):
        given = {"smooth": False, "where": "train", "source": "images/train"}
        _, packed = open_images(labels, View(crop), SIZE, cache="packed", **given)
        _, plain = open_images(labels, View(crop), SIZE, cache="", **given)
        shown[crop] = packed.load(0)
        np.testing.assert_array_equal(shown[crop].image, plain.load(0).image)
        assert shown[crop].original == SIZES[0]
    assert len(packs(files)) == 2
    first, second = shown.values()
    assert not np.array_equal(first.image, second.image)


def test_what_lies_outside_of_all_images_is_grey(files):
    pixels = store(files).packed.pixels
    assert len(pixels) % 3 == 0
    assert pixels[-3:].tolist() == [GREY] * 3
    assert not pixels.flags.writeable


def test_the_whole_pack_says_where_an_image_begins(files):
    packed = store(files)
    for index in range(3):
        image = packed.load(index).image
        np.testing.assert_array_equal(packed.packed.image(index), image)
        assert tuple(packed.packed.sizes[index]) == image.shape[:2]


def test_a_changed_image_is_packed_again(files, write_image, caplog):
    before = store(files).load(0).image.copy()
    write_image(Path(files[0]), SIZES[0], seed=9)
    os.utime(files[0], ns=(1 << 62, 1 << 62))
    with caplog.at_level(logging.INFO):
        after = store(files).load(0).image
    np.testing.assert_array_equal(after, store(files, "").load(0).image)
    assert not np.array_equal(after, before)
    assert "packed again" in caplog.text
    assert len(packs(files)) == 1


def test_a_moved_folder_keeps_its_pack(files, tmp_path, monkeypatch):
    store(files)
    (tmp_path / "images").rename(tmp_path / "moved")
    decodes_nothing(monkeypatch)
    assert store([file.replace("/images/", "/moved/") for file in files]).load(2).image.shape == (64, 64, 3)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1, -30])
def test_a_file_that_was_cut_short_is_packed_again(files, keep, caplog):
    store(files)
    (path,) = packs(files)
    path.write_bytes(path.read_bytes()[:keep])
    np.testing.assert_array_equal(store(files).load(1).image, store(files, "").load(1).image)
    assert "no whole pack" in caplog.text


def test_a_file_whose_beginning_is_missing_is_packed_again(files, caplog):
    store(files)
    (path,) = packs(files)
    path.write_bytes(path.read_bytes()[100:])
    np.testing.assert_array_equal(store(files).load(1).image, store(files, "").load(1).image)
    assert "no whole pack" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"x" * 100, b"\xff" * 8 + data.pack.MAGIC])
def test_a_foreign_file_is_packed_over(files, content):
    store(files)
    (path,) = packs(files)
    path.write_bytes(content)
    np.testing.assert_array_equal(store(files).load(1).image, store(files, "").load(1).image)


def test_packing_that_is_interrupted_leaves_nothing(files, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.store, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store(files)
    assert [path.name for path in Path(files[0]).parent.parent.iterdir()] == ["train"]
    assert store(files).packed is not None


def test_what_a_packing_that_was_killed_has_left_is_removed_by_the_next(files, monkeypatch):
    def killed():
        monkeypatch.setattr(data.store, "read_image", lambda *_: os._exit(9))
        store(files)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(timeout=60)
    folder = Path(files[0]).parent.parent
    (leftover,) = folder.glob(".train-*.pack")
    assert process.exitcode == 9 and leftover.stat().st_size > 0
    assert store(files).packed is not None
    assert [path.name for path in folder.iterdir() if path.is_file()] == [packs(files)[0].name]


def test_an_image_that_cannot_be_read_is_grey(files, caplog):
    Path(files[1]).write_bytes(b"no image")
    packed = store(files)
    loaded = packed.load(1)
    assert not loaded.readable
    assert (loaded.image == GREY).all()
    assert (packed.packed.image(1) == GREY).all()
    assert packed.packed.readable.tolist() == [True, False, True]
    assert "cannot be read" in caplog.text
    np.testing.assert_array_equal(packed.load(2).image, store(files, "").load(2).image)


def test_a_folder_that_cannot_be_written_to_does_no_harm(files, monkeypatch, caplog):
    monkeypatch.setattr(os, "access", lambda *_: False)
    plain = store(files)
    assert "--cache packed" in caplog.text and "cannot be written to" in caplog.text
    assert plain.packed is None
    np.testing.assert_array_equal(plain.load(0).image, store(files, "").load(0).image)
    assert not packs(files)


def test_a_disk_that_is_too_small_does_no_harm(files, monkeypatch, caplog):
    class Usage:
        free = 1000

    monkeypatch.setattr(data.store.shutil, "disk_usage", lambda _: Usage)
    assert store(files).packed is None
    assert "--cache packed needs" in caplog.text
    assert not packs(files)


def test_a_disk_that_runs_full_does_no_harm(files, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.pack, "_reserve", full)
    plain = store(files)
    assert "No space left" in caplog.text
    assert plain.packed is None
    np.testing.assert_array_equal(plain.load(0).image, store(files, "").load(0).image)
    assert not packs(files)


def test_a_worker_is_sent_the_name_of_the_pack_and_not_its_pixels(files):
    packed = store(files, size=(640, 640))
    sent = pickle.dumps(packed)
    assert len(sent) < 10_000 < packed.packed.pixels.nbytes
    received = pickle.loads(sent)
    for index in range(3):
        np.testing.assert_array_equal(received.load(index).image, packed.load(index).image)


@pytest.mark.parametrize("filled", [np.ones(3), np.ones(4, dtype=np.bool_), np.array([2, 2, 2]), np.array(["a"] * 3)])
def test_an_index_that_lies_is_not_taken(files, filled):
    """Whether images are filled says which of them are read."""
    store(files)
    (path,) = packs(files)
    pixels, size = path.read_bytes()[: store(files).packed.pixels.nbytes], store(files).packed.pixels.nbytes - 3
    key = data.pack.pack_key(files, store(files).settings())
    index = io.BytesIO()
    head = np.frombuffer(json.dumps({"key": key, "size": size}).encode(), dtype=np.uint8)
    np.savez(index, head=head, filled=filled)
    path.write_bytes(pixels + index.getvalue() + index.tell().to_bytes(8, "little") + data.pack.MAGIC)
    assert data.pack.read_pack(path, key, 3, size) is None
    assert store(files).packed.readable.tolist() == [True] * 3


def test_originals_on_disk_that_are_no_images_are_decoded_again(files):
    plain = store(files, "").load(0).image
    lies = (np.zeros(9), np.zeros((4, 4, 3)), *(np.zeros(form, dtype=np.uint8) for form in ((4, 4), (0, 4, 3))))
    for lie in lies:
        np.save(f"{files[0]}.npy", lie)
        np.testing.assert_array_equal(store(files, "disk").load(0).image, plain)
