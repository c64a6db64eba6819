"""The table of whole trainings, and that ours runs to its end under the same numbers as a peer's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import runs
from benchmarks.startup import OURS, Bench
from data.spec import read_data
from engine.options import train_options
from tests.benchmarks.tables import cells, draw

WORDS = ["--data", "d.yaml", "--imgsz", "64", "--batch-size", "2", "--epochs", "3", "--workers", "0", "--rounds", "1"]


def bench(folder: Path) -> Bench:
    (folder / "runs").mkdir()
    return Bench(folder / "runs", read_data(draw(folder / "data")), runs.parser().parse_args(WORDS))


def test_ratios_are_of_medians_and_an_epoch_more_is_without_the_start() -> None:
    seconds = {
        (OURS, "yolov5n", 1): [10.0, 12.0, 11.0],
        (OURS, "yolov5n", 5): [20.0, 19.0, 40.0],
        ("yolov5", "yolov5n", 1): [20.0],
        ("yolov5", "yolov5n", 5): [60.0],
        (OURS, "yolov8n", 1): [1.0],
        (OURS, "yolov8n", 5): [9.0],
    }
    five, eight = map(cells, runs.table(seconds, 5).splitlines()[2:])
    assert five == ["yolov5n", "yolov5", "20.0", "60.0", "3.00", "2.2", "10.0", "4.44"]
    assert eight == ["yolov8n", "ultralytics", "9.0", "-", "-", "2.0", "-", "-"]


@pytest.mark.parametrize("side", [OURS, "yolov5"])
def test_ours_and_yolov5_get_the_same_words(tmp_path: Path, side: str) -> None:
    options = train_options(runs.command(bench(tmp_path), side, "yolov8n", 7))
    assert (options.cfg, options.weights, options.epochs, options.batch_size) == ("yolov8n.yaml", "", 7, 2)
    assert (options.imgsz, options.workers, options.noval, options.device) == ((64, 64), 0, False, "cpu")


def test_ultralytics_gets_the_same_numbers(tmp_path: Path) -> None:
    words = runs.command(bench(tmp_path), "ultralytics", "yolov8n", 7)
    assert {"model=yolov8n.yaml", "epochs=7", "batch=2", "imgsz=64", "workers=0", "val=True"} <= set(words)


def test_a_training_here_is_run_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "MODELS", {"yolov5": "yolov5n"})
    runs.main([*WORDS[2:], "--epochs", "2", "--data", str(draw(tmp_path))])
    printed = capsys.readouterr().out
    assert "Not measured: yolov5, ultralytics" in printed
    (row,) = (cells(line) for line in printed.splitlines() if line.startswith("| yolov5n"))
    assert float(row[2]) > 1 and row[3:5] == ["-", "-"]
    assert sys.executable not in printed
