"""Growth of memory: its arithmetic, and that what is noted is of this training and its loader processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import linregress, t

from benchmarks import soak, watched
from benchmarks.memory import STATUS
from benchmarks.soak import Growth, Series, flat, growth
from benchmarks.watched import Sample
from engine.session import Session
from tests.benchmarks.tables import cells, draw
from utils.errors import UserError

linux = pytest.mark.skipif(not STATUS.exists(), reason="private memory is told by Linux alone")


def held(values: list[float]) -> Series:
    return Series("training process", [50 * (index + 1) for index in range(len(values))], values)


def samples(main: list[float]) -> list[Sample]:
    return [
        Sample(index + 1, 0.0, 0.0, value, (1.0, 2.0), value + 3, 20, 0.0, value) for index, value in enumerate(main)
    ]


def test_growth_is_per_thousand_steps() -> None:
    found = growth(held([500 + 0.1 * index for index in range(200)]))  # 0.1 MB every 50 steps
    assert found.slope == pytest.approx(2.0)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_the_interval_is_that_of_a_regression_over_blocks() -> None:
    values = np.random.default_rng(0).normal(500, 3, 200)
    places = np.arange(1, 201) * 50 / 1000
    line = linregress(places.reshape(20, 10).mean(axis=1), values.reshape(20, 10).mean(axis=1))
    found = growth(held(values.tolist()))
    assert found.slope == pytest.approx(line.slope)
    assert found.error == pytest.approx(t.ppf(0.975, 18) * line.stderr)


def test_what_may_grow_by_more_than_the_bound_is_not_flat() -> None:
    assert flat(Growth(0.5, 0.4), 1.0)
    assert flat(Growth(-5, 0.4), 1.0)
    assert not flat(Growth(0.5, 0.6), 1.0)


def test_the_warm_up_does_not_count() -> None:
    (process, *_) = soak.series(samples([1000.0] * 25 + [10.0] * 75), warm_up=0.25)
    assert process.values == [10.0] * 75
    assert process.steps[0] == 26


def test_too_few_samples_are_no_line() -> None:
    with pytest.raises(UserError, match=r"8 samples after the warm-up, expected at least 20"):
        soak.series(samples([1.0] * 10), warm_up=0.2)


def test_the_table_tells_what_grows() -> None:
    lines = soak.table({"alone": [held([float(index) for index in range(40)]), held([7.0] * 40)]}, 1.0).splitlines()
    grows, still = map(cells, lines[2:])
    assert grows == ["alone", "training process", "0.0", "39.0", "39.0", "+20.00 ± 0.00", "**no**"]
    assert still[2:] == ["7.0", "7.0", "7.0", "+0.00 ± 0.00", "yes"]


@linux
def test_a_training_is_watched_with_its_loader_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "watchers", Session.watchers)  # put back afterwards
    given = [
        "--data",
        str(draw(tmp_path / "data")),
        "--steps",
        "8",
        "--batch-size",
        "1",
        "--imgsz",
        "64",
        "--workers",
        "1",
    ]
    words = soak.training("alone", soak.parser().parse_args(given), tmp_path)
    assert words[words.index("--epochs") + 1] == "2"  # of four batches
    record = tmp_path / "record.jsonl"
    watched.main([str(record), "2", "0", *words, "--noplots"])
    found = watched.read(record)
    assert [one.step for one in found] == [1, 2, 4, 6, 8]
    assert all(one.peak > one.main > 10 and one.files > 3 and one.all > one.main for one in found)
    assert [len(one.workers) for one in found] == [1, 1, 1, 2, 2]  # from the first validation on its own, too
    assert all(worker > 0.1 for one in found for worker in one.workers)
