"""The table of what reaches a device: its arithmetic, and that every way shows every image of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import feeding
from benchmarks.feeding import WAYS, Passes
from data.device_loader import DeviceLoader
from data.loader import train_loader
from data.spec import read_data
from tests.benchmarks.tables import cells, draw
from utils.errors import UserError
from utils.hyp import Hyp

CPU = torch.device("cpu")


def test_speeds_are_medians_and_ratios_those_to_the_loader() -> None:
    speeds = {(640, 16): dict(zip(WAYS, ([90.0, 100.0, 500.0], [200.0], [300.0, 310.0]), strict=True))}
    head, _, row = map(cells, feeding.table(speeds).splitlines())
    assert head == ["px", "batch", *WAYS, "device / loader", "device, pack there / loader"]
    assert row == ["640", "16", "100", "200", "305", "2.00", "3.05"]


def test_every_way_is_measured(tmp_path: Path) -> None:
    options = feeding.parser().parse_args(["--data", str(draw(tmp_path)), "--workers", "0", "--rounds", "2"])
    found = feeding.measure(read_data(options.data), Hyp(), (64, 2), CPU, options)
    assert tuple(found) == WAYS
    assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in found.values())


def test_a_pass_is_a_new_epoch_with_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"image_size": (64, 64), "batch_size": 3, "stride": 32, "seed": 0, "cache": "packed"}
    loader = DeviceLoader(train_loader(read_data(draw(tmp_path)), Hyp(), **given), CPU)
    seconds = iter((0.0, 2.0, 2.0, 3.0))
    monkeypatch.setattr(feeding.time, "perf_counter", lambda: next(seconds))
    run = Passes(loader, CPU)
    assert (run(), run()) == (2.0, 4.0)  # four images in two seconds, then in one
    assert loader.sampler.epoch == 1


def test_a_recipe_that_no_device_draws_is_refused(tmp_path: Path) -> None:
    options = feeding.parser().parse_args(["--data", str(draw(tmp_path)), "--workers", "0"])
    with pytest.raises(UserError, match="paste_in"):
        feeding.measure(read_data(options.data), Hyp(paste_in=0.5), (64, 2), CPU, options)
