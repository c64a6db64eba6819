"""The table of waiting times, and that a training is watched until its optimizer has stepped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import startup
from benchmarks.startup import OURS
from data.spec import read_data
from tests.benchmarks.tables import cells, draw
from utils.errors import UserError


def bench(folder: Path) -> startup.Bench:
    words = ["--data", "d.yaml", "--imgsz", "64", "--batch-size", "2"]
    (folder / "runs").mkdir()
    return startup.Bench(folder / "runs", read_data(draw(folder / "data")), startup.parser().parse_args(words))


def test_a_row_has_medians_and_how_many_times_a_peer_takes_longer() -> None:
    figures = {
        OURS: {"import torch": [2.0], "help": [0.1, 0.4, 0.2], "first step": [4.0]},
        "yolov5": {"import torch": [2.0], "help": [3.0, 3.0, 5.0], "first step": [5.0]},
    }
    full = {side: {**{figure: [1.0] for figure in startup.FIGURES}, **found} for side, found in figures.items()}
    del full["yolov5"]["first batch"]  # of a training that could not be watched so closely
    rows = {row[0]: row[1:] for row in map(cells, startup.table(full).splitlines())}
    assert rows["help"] == ["0.20", "3.00", "15.00"]
    assert rows["first step"] == ["4.00", "5.00", "1.25"]
    assert rows["first batch"] == ["1.00", "-", "-"]


def test_a_training_here_is_ended_at_its_first_step(tmp_path: Path) -> None:
    made = bench(tmp_path)
    found = made.first_step(OURS, sys.executable)
    assert 0 < found["first batch"] < found["behind torch"] < found["first step"]
    assert not list(made.folder.rglob("best.pt"))


def test_the_demonstration_is_started_as_a_user_does(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    asked = []

    def run(self: startup.Bench, side: str, words: list[str]) -> str:
        asked.append(words[-1])
        assert self.options.batch_size == 8  # by which the first batch is known
        (self.folder / f"{side}.json").write_text('{"torch": 1.0, "batch": 2.0, "step": 3.0}')
        return ""

    monkeypatch.setattr(startup.Bench, "spent", lambda *_: 1.0)
    monkeypatch.setattr(startup.Bench, "run", run)
    monkeypatch.setattr(startup, "read_data", lambda name: read_data(draw(tmp_path)) if name == "demo.yaml" else None)
    startup.main(["--demo", "--rounds", "1"])
    assert "train.main()" in asked[0]
    assert not [flag for flag in ("--data", "--cfg", "--weights") if flag in asked[0]]
    assert "The demonstration, 192 px, batches of 8." in capsys.readouterr().out


def test_what_fails_says_how(tmp_path: Path) -> None:
    made = bench(tmp_path)
    with pytest.raises(UserError, match="yolov5: ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        made.spent("yolov5", [sys.executable, "-c", "import nothing_of_this_name"])


@pytest.mark.parametrize("side", startup.SIDES)
def test_every_side_trains_the_same_data_at_the_same_size(side: str, tmp_path: Path) -> None:
    made = bench(tmp_path)
    words = " ".join(made.training(side)).replace("=", " ").replace("batch-size", "batch").replace("--", "")
    for setting in (f"data {made.data}", "imgsz 64", "batch 2", "workers 0", "device cpu", "epochs 1"):
        assert setting in words
    code = startup.TRAIN[side].format(root="", words=made.training(side))
    compile(startup.WATCHED.replace("RECORD", "'r'").replace("BATCH", "2") + code, side, "exec")


def test_a_run_prints_its_table_without_peers(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(startup.Bench, "spent", lambda *_: 1.0)
    steps = {"first step": 3.0, "behind torch": 2.0, "first batch": 1.0}
    monkeypatch.setattr(startup.Bench, "first_step", lambda *_: steps)
    startup.main(["--data", str(draw(tmp_path)), "--rounds", "1"])
    out = capsys.readouterr().out
    assert "| behind torch | 2.00 |" in out
    assert "Not measured: yolov5, ultralytics." in out
    assert str(tmp_path) not in out
