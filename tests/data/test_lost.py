from __future__ import annotations

import logging
import multiprocessing
import shutil

import numpy as np
import pytest

import data.lost
import data.store
from data.loader import eval_loader, train_loader
from data.lost import IN_A_ROW, Lost
from data.spec import read_data
from utils.errors import MachineFault, said
from utils.hyp import Hyp


def lost(count=1000):
    return Lost([f"/data/images/{index}.jpg" for index in range(count)], "train")


def test_a_few_are_named_and_more_are_counted(caplog):
    images = lost(100_000)
    for index in range(100):
        images.missed(index)
        images.found(99_999)  # in between, others can be read
    assert len(caplog.messages) == 5  # 1, 2, 3, 10, 100
    assert "train: /data/images/0.jpg cannot be read any more (No such file or directory)" in caplog.messages[0]
    assert "100 of 100000 so far" in caplog.messages[-1]


def test_one_that_is_missed_again_is_counted_once_and_one_that_is_back_no_more(caplog):
    images = lost()
    for _ in range(3 * IN_A_ROW):
        images.missed(7)
    assert images.lost.sum() == 1
    assert len(caplog.messages) == 1
    images.found(7)
    assert not images.lost.any()


@pytest.mark.parametrize("count", [1, 1000])
def test_many_in_a_row_end_the_run(count):
    images = lost(count)
    few = min(IN_A_ROW, count) - 1
    for index in range(few):
        images.missed(index)
    with pytest.raises(MachineFault, match=rf"train: {few + 1} of {count} images .* is the disk of /data/images still"):
        images.missed(few)


def test_more_than_a_share_ends_the_run():
    images = lost(1000)
    with pytest.raises(MachineFault, match="train: 101 of 1000 images cannot be read any more"):
        for index in range(200):
            images.missed(index)
            images.found(999)
    assert images.lost.sum() == 101


@pytest.mark.parametrize(("count", "most"), [(6, 3), (40, 20), (64, 32), (200, 32)])
def test_of_a_small_set_half_may_be_missed(count, most):
    images = lost(count)
    for index in range(most):
        images.missed(index)
        images.found(count - 1)
    with pytest.raises(MachineFault, match=f"train: {most + 1} of {count} images"):
        images.missed(most)


def test_processes_count_together():
    images = lost()
    images.lost = data.store.shared_memory(1000).view(np.bool_)
    child = multiprocessing.get_context("fork").Process(target=images.missed, args=(3,))
    child.start()
    child.join(timeout=60)
    assert images.lost.nonzero()[0].tolist() == [3]


def test_a_file_that_is_there_and_no_image_is_told_apart(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert data.lost.reason(str(tmp_path / "a.jpg")) == "it is no whole image now"


# -- in loaders -------------------------------------------------------------------------------------------------------


def loaders(file, workers):
    common = {"image_size": (64, 64), "batch_size": 3, "stride": 32, "workers": workers}
    spec = read_data(file)
    return train_loader(spec, Hyp(mosaic=0), seed=0, **common), eval_loader(spec, "val", **common)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_is_grey_and_without_labels(make_data, tmp_path, workers):
    for loader, split in zip(loaders(make_data(), workers), ("train", "val"), strict=True):
        (tmp_path / f"images/{split}/2.png").unlink()
        found = {}
        for batch in loader:
            for number, path in enumerate(batch.paths):
                found[path.rsplit("/", 1)[1]] = (batch.images[number], (batch.targets[:, 0] == number).sum().item())
        image, labels = found["2.png"]
        assert labels == 0 and len(image.unique()) <= 2
        assert sum(labels > 0 for _, labels in found.values()) == 6
        assert loader.dataset.store._lost.lost.nonzero()[0].tolist() == [2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_vanishes_ends_the_run(make_data, tmp_path, workers):
    (loader, _), folder = loaders(make_data(14), workers), tmp_path / "images/train"
    shutil.rmtree(folder)
    with pytest.raises(MachineFault) as stopped:
        for epoch in range(3):
            loader.set_epoch(epoch)
            list(loader)
    assert f"of 14 images cannot be read any more, the last {folder}" in said(stopped.value)
    assert f"(No such file or directory); is the disk of {folder} still there?" in said(stopped.value)


def test_a_disk_cache_that_cannot_be_written_is_one_warning(make_data, monkeypatch, caplog):
    monkeypatch.setattr(data.store, "SMALL", 0)
    tried = []

    def full(path, *_, **__):
        tried.append(path)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(data.store, "write_atomically", full)
    loader = train_loader(
        read_data(make_data()), Hyp(mosaic=0), seed=0, image_size=(64, 64), batch_size=3, stride=32, cache="disk"
    )
    with caplog.at_level(logging.WARNING):
        assert len(list(loader)) == 3
    assert len(tried) == 1
    assert caplog.text.count("No space left on device; nothing more is cached") == 1
