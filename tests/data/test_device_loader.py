"""Batches drawn by the device beside those drawn by the CPU: the same labels, and pictures that nobody tells apart."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data.device_loader
from data.device_loader import DeviceLoader, ahead, draws_on_device
from data.geometry import GREY
from data.loader import train_loader
from data.spec import read_data
from utils.errors import UserError
from utils.hyp import Hyp

CPU = torch.device("cpu")
STRAIGHT = Hyp(flipud=0.5, mixup=0.5, mosaic=0.7)
TURNED = replace(STRAIGHT, degrees=10, shear=5, perspective=0.0005)


def training(file, hyp=STRAIGHT, **options):
    options = {"image_size": (64, 64), "batch_size": 3, "stride": 32, "seed": 0, "cache": "packed", **options}
    return train_loader(read_data(file), hyp, **options)


def epochs(loader, count=2, mosaic=True):
    found = []
    for epoch in range(count):
        loader.set_epoch(epoch, mosaic)
        found += list(loader)
    return found


def assert_alike(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert one.paths == other.paths
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.labelled, other.labelled)
        difference = (one.images.int() - other.images.int()).abs().float()
        # OpenCV's weights have eleven bits; a level of brightness is then more by the shift of colours
        assert difference.mean() < 0.5
        assert difference.flatten().quantile(0.99) <= 3


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("hyp", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_batches_are_those_of_the_cpu(make_data, hyp, resident):
    file = make_data()
    on_cpu, on_device = training(file, hyp), DeviceLoader(training(file, hyp), CPU, resident)
    assert len(on_device) == len(on_cpu) == 3
    assert_alike(epochs(on_device), epochs(on_cpu))


@pytest.mark.parametrize(
    "given",
    [
        {"hyp": Hyp(letterbox=False, mosaic=0.5)},
        {"hyp": Hyp(fixed_crop=(0.1, 0.0, 0.9, 0.8), mosaic=0.5)},
        {"hyp": Hyp(hsv_h=0, hsv_s=0, hsv_v=0, mosaic=0, translate=0, scale=0)},
        {"rect": True, "image_size": (96, 96)},
        {"image_weights": True},
        {"single_class": True},
        {"rank": 1, "world_size": 2},
        {"workers": 2},
    ],
    ids=lambda given: "-".join(given),
)
def test_so_they_are_however_the_data_are_shown(make_data, given):
    given = {"hyp": STRAIGHT, **given}
    file = make_data()
    assert_alike(epochs(DeviceLoader(training(file, **given), CPU)), epochs(training(file, **given)))


def test_so_they_are_without_mosaics(make_data):
    file = make_data()
    assert_alike(epochs(DeviceLoader(training(file), CPU), mosaic=False), epochs(training(file), mosaic=False))


def test_photographs_differ_by_less_than_a_level(bccd):
    given = {"image_size": (160, 160), "batch_size": 8}
    pairs = zip(DeviceLoader(training(bccd, Hyp(), **given), CPU), training(bccd, Hyp(), **given), strict=True)
    one, other = next(pairs)
    difference = (one.images.int() - other.images.int()).abs().float()
    assert torch.equal(one.targets, other.targets)
    assert difference.mean() < 0.3
    assert difference.flatten()[::7].quantile(0.99) <= 2
    assert one.images.float().std() > 10


def test_unlabelled_images_are_told_apart(make_data, write_image, tmp_path):
    for index in range(3):
        write_image(tmp_path / f"images/pool/{index}.png", (40, 60), 50 + index)
    file = make_data(extra="unlabelled: images/pool\n")
    batches = epochs(DeviceLoader(training(file, unlabelled=True), CPU))
    assert_alike(batches, epochs(training(file, unlabelled=True)))
    assert sum(int((~batch.labelled).sum()) for batch in batches) == 2 * 3


def test_batches_are_bytes_in_the_order_of_channels_that_convolutions_like(make_data):
    for batch in DeviceLoader(training(make_data()), CPU):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 64, 64)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.to("cpu", torch.channels_last).images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_can_be_read_again(make_data):
    loader = DeviceLoader(training(make_data()), CPU)
    for one, other in zip(epochs(loader), epochs(loader), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


def test_an_epoch_that_is_left_early_does_no_harm(make_data):
    loader = DeviceLoader(training(make_data()), CPU)
    first = next(iter(loader))
    before = threading.active_count()
    assert torch.equal(next(iter(loader)).images, first.images)
    assert threading.active_count() <= before


def test_a_batch_that_is_drawn_in_pieces_is_the_same(make_data, monkeypatch):
    file = make_data()
    whole = epochs(DeviceLoader(training(file), CPU))
    monkeypatch.setattr(data.device_loader, "CPU_AT_ONCE", 64 * 64)
    pieces = DeviceLoader(training(file), CPU)
    assert len(next(iter(pieces._loader)).sketches) == 3
    for one, other in zip(whole, epochs(pieces), strict=True):
        assert torch.equal(one.images, other.images)


def test_a_file_that_went_bad_is_grey_and_has_no_labels(make_data, tmp_path):
    still = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
    file = make_data()
    training(file, cache="")  # labels are checked and kept
    bad = tmp_path / "images/train/5.png"
    stamp = bad.stat()
    bad.write_bytes(b"x" * stamp.st_size)
    os.utime(bad, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    seen = {}
    for batch in DeviceLoader(training(file, still), CPU):
        for index, path in enumerate(batch.paths):
            seen[Path(path).name] = (batch.images[index], int((batch.targets[:, 0] == index).sum()))
    assert len(seen) == 7
    assert (seen["5.png"][0] == GREY).all()
    assert seen["5.png"][1] == 0
    assert all(count == 3 and image.float().std() > 5 for name, (image, count) in seen.items() if name != "5.png")


class Stream:
    """Stands in for a GPU's: events are numbers."""

    def __init__(self):
        self.waited, self.recorded = [], 0

    def record_event(self):
        self.recorded += 1
        return self.recorded

    def wait_event(self, event):
        self.waited.append(event)


def test_the_stream_that_asks_waits_for_its_batch_alone_and_keeps_its_memory(make_data, monkeypatch):
    drawing, asking, kept = Stream(), Stream(), []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: asking)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((tensor, stream)))
    loader = DeviceLoader(training(make_data()), CPU)
    loader._stream = drawing
    for number, batch in enumerate(loader, start=1):
        assert asking.waited == list(range(1, number + 1))
        assert [tensor is own for (tensor, _), own in zip(kept, batch[:3], strict=True)] == [True] * 3
        assert all(stream is asking for _, stream in kept)
        kept.clear()
    assert drawing.recorded == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("hyp", [STRAIGHT, TURNED], ids=["straight", "turned"])
def test_a_gpu_draws_the_same_while_it_works(make_data, hyp, resident):
    """Memory that is read must not be drawn into: the GPU is kept busy with each batch while the next are drawn."""
    file, gpu = make_data(), torch.device("cuda", torch.cuda.current_device())
    expected = epochs(DeviceLoader(training(file, hyp, batch_size=1), CPU), count=4)
    busy, found = torch.ones(2048, 2048, device=gpu), []
    loader = DeviceLoader(training(file, hyp, batch_size=1), gpu, resident)
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in loader:
            for _ in range(20):
                busy = (busy @ busy).clamp(-1, 1)
            found.append(batch.images.float().add(0).to(torch.uint8))  # read behind that work
            del batch
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu().int() - other.images.int()).abs().float().mean() < 0.01


# -- the choice -------------------------------------------------------------------------------------------------------


def test_by_itself_a_cpu_draws_with_opencv(make_data):
    assert not draws_on_device(training(make_data()), "auto", CPU, quad=False)
    assert draws_on_device(training(make_data()), "device", CPU, quad=False)


def test_by_itself_a_gpu_draws_what_is_packed(make_data):
    gpu = torch.device("cuda")
    file = make_data()
    assert draws_on_device(training(file), "auto", gpu, quad=False)
    assert not draws_on_device(training(file), "cpu", gpu, quad=False)
    assert not draws_on_device(training(file, cache="ram"), "auto", gpu, quad=False)


def test_without_opencv_a_cpu_draws_with_tensors(make_data, monkeypatch):
    monkeypatch.setattr(data.device_loader, "AVAILABLE", False)
    assert draws_on_device(training(make_data()), "auto", CPU, quad=False)
    for given, choice, named in (({"cache": "ram"}, "auto", "--cache packed"), ({}, "cpu", "--augment-on cpu")):
        with pytest.raises(UserError, match=f"without OpenCV.*{named}"):
            draws_on_device(training(make_data(), **given), choice, CPU, quad=False)


OBSTACLES = [
    ({"cache": "ram"}, "--cache packed"),
    ({"quad": True}, "--quad"),
    ({"hyp": Hyp(paste_in=0.1)}, "paste_in"),
    ({"hyp": Hyp(photometric=0.5, expand=0.5)}, "photometric, expand"),
    ({"hyp": Hyp(min_iou_crop=(0.1,))}, "min_iou_crop"),
    ({"augment": False}, "without augmentation"),
]


@pytest.mark.parametrize(("given", "named"), OBSTACLES)
def test_what_the_device_cannot_draw_is_named(make_data, given, named):
    loader = training(make_data(), **given)
    with pytest.raises(UserError, match=named):
        draws_on_device(loader, "device", CPU, given.get("quad", False))


@pytest.mark.parametrize(("given", "named"), OBSTACLES[1:])
def test_by_itself_the_cpu_draws_what_the_device_cannot(make_data, given, named, caplog):
    loader = training(make_data(), **given)
    with caplog.at_level(logging.INFO, "data.device_loader"):
        caplog.clear()
        assert not draws_on_device(loader, "auto", torch.device("cuda"), given.get("quad", False))
    (line,) = [record.getMessage() for record in caplog.records]
    assert named in line


def test_outlines_that_are_pasted_are_an_obstacle_only_where_there_are_any(make_data):
    hyp = Hyp(copy_paste=0.5)
    assert draws_on_device(training(make_data(), hyp), "device", CPU, quad=False)
    outlined = make_data(2, ["0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.7\n"] * 2)
    with pytest.raises(UserError, match="copy_paste"):
        draws_on_device(training(outlined, hyp), "device", CPU, quad=False)


# -- ahead ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_the_next_items_are_made_meanwhile_and_no_other(count):
    made = []

    def items():
        for number in range(4):
            made.append((number, threading.current_thread() is threading.main_thread()))
            yield number

    found = []
    for item in ahead(items(), count):
        found.append(item)
        assert len(made) <= item + 1 + count
    assert found == [0, 1, 2, 3]
    assert made == [(number, False) for number in range(4)]


def test_a_mistake_while_the_next_item_is_made_is_heard_of():
    def items():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(ahead(items()))


def test_nothing_has_nothing_ahead():
    assert list(ahead(iter(()))) == []
    np.testing.assert_equal(list(ahead(iter([1]))), [1])
