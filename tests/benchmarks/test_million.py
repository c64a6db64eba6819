"""How a training on very many images begins: its table, its bounds, and that a small one is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import million
from benchmarks.memory import STATUS
from benchmarks.million import Start
from benchmarks.workers import simulated
from data.spec import read_data
from tests.benchmarks.tables import cells


def test_images_are_spread_over_folders_and_some_are_for_validation(tmp_path: Path) -> None:
    data = read_data(simulated(tmp_path, 10, 1, folders=3, val=2))
    train = data.images("train")
    assert (len(train), len({Path(image).parent for image in train}), len(data.images("val"))) == (10, 3, 2)


def test_the_table_has_a_row_a_start() -> None:
    starts = {"first": Start(100, 120, 130, 150, 1500, 900, 40), "second": Start(10.04, 20, 30, 25, 1000, 800, 40)}
    first, second = map(cells, million.table(starts, 100).splitlines()[2:])
    assert first == ["first", "100.0", "120.0", "130.0", "150.0", "1,500", "900", "40"]
    assert second[1] == "10.0"


def test_what_exceeds_a_bound_is_told() -> None:
    options = million.parser().parse_args(["--most-seconds", "100", "50", "--most-mb", "1200"])
    starts = {"first": Start(0, 99, 0, 0, 1500, 0, 0), "second": Start(0, 51, 0, 0, 1200, 0, 0)}
    slow, large = million.exceeded(starts, options)[::-1]
    assert slow == "second start: 51 s to the first step, expected at most 50"
    assert large == "first start: 1,500 MB at the most, expected at most 1,200"


@pytest.mark.skipif(not STATUS.exists(), reason="private memory is told by Linux alone")
def test_a_start_is_measured(tmp_path: Path) -> None:
    options = million.parser().parse_args(
        ["--images", "6", "--steps", "2", "--batch-size", "2", "--workers", "1", "--imgsz", "64"]
    )
    start = million.begin(simulated(tmp_path, 6, 2, val=2), tmp_path / "record.jsonl", options)
    assert 0 < start.labels < start.first_step <= start.last_step
    assert start.peak > start.main > 10
    assert start.worker > 0.1 and start.busy > 0.1
