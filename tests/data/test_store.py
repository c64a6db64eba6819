from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import data.store
from data.geometry import fitted_size
from data.images import image_size, read_image
from data.store import ImageStore, free_memory, largest_reduction
from utils.errors import UserError
from utils.memory import resident


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


def test_every_image_is_fitted_however_many_are_alike():
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 3000, (50, 2))[rng.integers(0, 50, 300)].astype(np.int32)
    many = ImageStore([""] * 300, shapes, (96, 64), smooth=True, cache="", where="train")
    assert many.sizes.tolist() == [list(fitted_size((height, width), (96, 64))) for height, width in shapes.tolist()]


def test_caches_give_the_same_pixels(files, no_automatic_cache):
    plain, memory, disk = store(files), store(files, "ram"), store(files, "disk")
    for index in range(3):
        for cached in (memory, memory, disk, disk):
            assert cached.load(index).original == plain.load(index).original
            np.testing.assert_array_equal(cached.load(index).image, plain.load(index).image)


def test_small_sets_are_kept_in_memory_without_being_asked(files):
    assert store(files).keeps_all


def test_what_is_kept_in_memory_is_decoded_once_and_by_whoever_asks_first(files, monkeypatch):
    memory, read = store(files, "ram"), []
    monkeypatch.setattr(data.store, "read_image", lambda path, *rest: read.append(path) or read_image(path))
    assert not read  # a run begins without waiting for images
    child = multiprocessing.get_context("fork").Process(target=memory.load, args=(1,))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    seen = memory.load(1)
    assert not read
    np.testing.assert_array_equal(seen.image, store(files, "disk").load(1).image)
    read.clear()
    for _ in range(2):
        memory.load(0)
    assert read == [files[0][0]]


@pytest.mark.skipif(resident() is None, reason="this system does not say how much memory a process has")
def test_memory_that_is_promised_is_not_promised_again():
    """It is taken at once: what is free is less by it, beside whatever others take and give back meanwhile."""
    before = resident()
    kept = data.store.shared_memory(400_000_000)
    assert resident() - before > 390e6
    assert not kept.any()


def test_a_read_that_fails_leaves_what_another_process_has_read(files, monkeypatch):
    memory = store(files, "ram")
    image = memory.load(0).image.copy()
    memory._filled[0] = False  # as if two had begun to read it at once, and the second could not
    monkeypatch.setattr(data.store, "read_image", lambda *_: None)
    assert not memory.load(0).readable
    np.testing.assert_array_equal(memory._cached().image(0), image)


def test_without_forks_all_is_decoded_before_workers_are_started(files, monkeypatch):
    monkeypatch.setattr(data.store, "FORKS", False)
    memory = store(files, "ram")
    assert memory._filled.all()
    np.testing.assert_array_equal(memory.load(2).image, store(files, "disk").load(2).image)


def test_memory_that_does_not_suffice_is_not_taken(files, monkeypatch, caplog):
    monkeypatch.setattr(data.store, "free_memory", lambda: 1000.0)
    assert not store(files, "ram")._keeping
    assert "--cache ram needs" in caplog.text
    caplog.clear()
    assert not store(files)._keeping
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


def foreign(path, kind):
    """Writes what may have come with a data set in place of the pixels of an image of 48 x 64."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    if kind in ("zip", "damaged zip"):
        np.savez(path.with_suffix(".npz"), pixels)
        whole = path.with_suffix(".npz").read_bytes()
        path.write_bytes(whole if kind == "zip" else whole[:-30])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "claims":
        np.save(path, pixels)
        path.write_bytes(path.read_bytes().replace(b"(48, 64, 3), }" + b" " * 9, b"(48, 64, 99999999999)} "))
    else:
        np.save(path, {"larger": np.zeros((96, 128, 3), np.uint8), "longer": np.zeros((48, 64, 4), np.uint8),
                       "floats": pixels.astype(np.float32), "columns": np.asfortranarray(pixels)}[kind])  # fmt: skip


KINDS = ("zip", "damaged zip", "pipe", "device", "claims", "larger", "longer", "floats", "columns")


def test_a_foreign_disk_cache_is_made_again(tmp_path, write_image, limited):
    """Nobody waits for a pipe, and nothing else is shown than the image."""
    for kind in KINDS:
        foreign(Path(f"{write_image(tmp_path / f'{kind}.png')}.npy"), kind)
    limited("import numpy as np; from pathlib import Path; from data.store import ImageStore; "
            "from data.images import read_image", f"""
paths = sorted(map(str, Path({str(tmp_path)!r}).glob("*.png")))
store = ImageStore(paths, np.array([[48, 64]] * len(paths)), (64, 64), smooth=True, cache="disk", where="train")
for index, path in enumerate(paths):
    assert (store.load(index).image == read_image(path)).all(), path
    assert (np.load(path + ".npy") == read_image(path)).all(), path
""")  # fmt: skip


def test_a_disk_cache_of_an_image_that_has_changed_is_not_written(files, write_image, no_automatic_cache):
    write_image(Path(files[0][0]), (10, 20))
    assert store(files, "disk").load(0).original == (10, 20)
    assert not Path(files[0][0] + ".npy").exists()


def test_a_disk_that_cannot_be_written_to_does_no_harm(files, monkeypatch, caplog, no_automatic_cache):
    def refuse(*_: object, **__: object) -> None:
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


# -- what was loaded last ---------------------------------------------------------------------------------------------


def test_remembered_images_are_not_decoded_again_and_the_oldest_are_forgotten(files, no_automatic_cache, monkeypatch):
    plain, read = store(files), []
    monkeypatch.setattr(data.store, "read_image", lambda path, *rest: read.append(path) or read_image(path))
    for index in (0, 1, 0, 1):
        plain.load(index)
    assert len(read) == 4
    read.clear()
    plain.remember(2)
    first = plain.load(0)
    plain.load(1)
    assert plain.load(0) is first  # now 1 is the oldest
    plain.load(2)
    assert len(read) == 3
    assert plain.load(0) is first
    plain.load(1)
    assert len(read) == 4


def test_whether_all_images_are_kept_is_known(files, no_automatic_cache):
    assert store(files, "ram").keeps_all
    assert not store(files).keeps_all
    assert not store(files, "disk").keeps_all


# -- decoded at a fraction of their size ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [((480, 640), (480, 640), 1), ((480, 640), (241, 320), 1), ((480, 640), (240, 320), 2),
     ((1080, 1920), (360, 640), 2), ((3000, 4000), (480, 640), 4), ((3000, 4000), (240, 320), 8),
     ((9000, 9000), (64, 64), 8), ((1, 900), (1, 64), 1)],
)  # fmt: skip
def test_images_are_never_decoded_smaller_than_they_are_needed(original, size, expected):
    assert largest_reduction(original, size) == expected


@pytest.fixture
def photographs(shared):
    """Real ones, of JPEG, of odd sizes too."""
    paths = sorted(map(str, (shared / "data/bccd/images/val").glob("*.jpg")))[:4]
    assert len(paths) == 4
    return paths, np.array([image_size(path) for path in paths], dtype=np.int32)


@pytest.mark.parametrize("size", [(320, 320), (160, 160), (77, 77), (64, 200)])
def test_for_training_large_photographs_are_decoded_smaller_and_look_the_same(photographs, size, no_automatic_cache):
    paths, _ = photographs
    training = store(photographs, size=size)
    for index, path in enumerate(paths):
        loaded = training.load(index)
        whole = read_image(path)
        smooth = cv2.resize(whole, loaded.image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert loaded.image.shape[:2] == fitted_size(whole.shape[:2], size)
        assert loaded.original == whole.shape[:2]
        assert abs(loaded.image.astype(int) - smooth).mean() < 3


def test_for_training_only_a_fraction_is_decoded_and_for_evaluation_all(photographs, no_automatic_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(data.store, "read_image", lambda path, *rest: asked.append(rest) or read_image(path, *rest))
    store(photographs, size=(160, 160)).load(0)
    store(photographs, "ram", size=(320, 320)).load(0)
    assert asked == [(4,), (2,)]  # 640 x 480 at 160 x 120, and at 320 x 240
    asked.clear()
    ImageStore(*photographs, (160, 160), smooth=True, cache="", where="val").load(0)
    assert asked == [()]


def test_what_cannot_be_decoded_at_a_fraction_is_decoded_once(files, no_automatic_cache, monkeypatch):
    read = []
    monkeypatch.setattr(data.store, "read_image", lambda path, *rest: read.append(path) or read_image(path, *rest))
    loaded = store(files, size=(12, 16)).load(0)  # of PNG
    assert len(read) == 1
    np.testing.assert_array_equal(loaded.image, cv2.resize(read_image(files[0][0]), (16, 12)))


def test_a_file_that_is_no_longer_of_its_size_is_decoded_whole(photographs, tmp_path, no_automatic_cache):
    path = tmp_path / "a.jpg"
    path.write_bytes(data.store.Path(photographs[0][0]).read_bytes())
    loaded = store(([str(path)], np.array([[900, 1200]], dtype=np.int32)), size=(64, 64)).load(0)
    assert loaded.original == read_image(path).shape[:2]
    np.testing.assert_array_equal(loaded.image, store(([str(path)], np.array([[64, 64]]))).load(0).image)
