"""What an epoch came to, and those who watch it."""

from __future__ import annotations

import csv
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.callbacks import Callback, EpochRecord, Outcome
from engine.loggers.console import Console
from engine.loggers.dispensable import Dispensable
from engine.loggers.figures import Figures
from engine.loggers.table import CsvTable
from engine.loggers.tensorboard import TensorBoard
from utils.types import Batch, Progress

TERMS = {"box": 0.5, "kd_cwd_layer17": 0.25}


def record(epoch: int, validated: bool = True) -> EpochRecord:
    evaluation = SimpleNamespace(precision=0.1, recall=0.2, map50=0.3, map=0.4)
    report: Any = SimpleNamespace(evaluation=evaluation, losses={"box": 0.6}) if validated else None
    return EpochRecord(epoch, 3, TERMS, report, {"weights": 0.01}, 0.4 if validated else None, True, 2.0, 7)


def trainer(start_epoch: int = 0) -> Any:
    labels = SimpleNamespace(rows=np.array([[0, 0.5, 0.5, 0.2, 0.3], [1, 0.2, 0.3, 0.1, 0.1]], dtype=np.float32))
    return SimpleNamespace(start_epoch=start_epoch, loader=SimpleNamespace(dataset=SimpleNamespace(labels=labels)))


def outcome(folder: Path) -> Outcome:
    return Outcome(folder, folder / "best.pt", folder / "last.pt", 1, 0.4, 2, 4.0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_every_term_and_score() -> None:
    assert record(0).row() == {
        "train/box": 0.5,
        "train/kd_cwd_layer17": 0.25,
        "metrics/precision": 0.1,
        "metrics/recall": 0.2,
        "metrics/mAP50": 0.3,
        "metrics/mAP50-95": 0.4,
        "val/box": 0.6,
        "lr/weights": 0.01,
        "skipped": 0,
        "seconds": 2.0,
    }


def test_a_row_without_validation_has_no_scores() -> None:
    without = {"train/box", "train/kd_cwd_layer17", "lr/weights", "skipped", "seconds"}
    assert set(record(0, validated=False).row()) == without


def test_a_callback_may_ignore_everything(tmp_path: Path) -> None:
    watcher = Callback()
    watcher.on_fit_start(trainer())
    watcher.on_epoch_end(trainer(), record(0))
    watcher.on_fit_end(trainer(), outcome(tmp_path))


def test_the_table_takes_columns_that_come_late(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "results.csv")
    table.on_fit_start(trainer())
    table.on_epoch_end(trainer(), record(0, validated=False))
    table.on_epoch_end(trainer(), record(1))
    first, second = rows(tmp_path / "results.csv")
    assert (first["epoch"], first["metrics/mAP50"], second["metrics/mAP50"]) == ("1", "", "0.3")


def test_a_resumed_table_goes_on_where_the_last_saved_epoch_ended(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    before = CsvTable(path)
    for epoch in range(3):
        before.on_epoch_end(trainer(), record(epoch))
    resumed = CsvTable(path)
    resumed.on_fit_start(trainer(start_epoch=2))  # the third epoch is done again
    resumed.on_epoch_end(trainer(), record(2))
    assert [row["epoch"] for row in rows(path)] == ["1", "2", "3"]


def test_the_console_marks_the_best_epoch_and_says_where_results_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        Console().on_epoch_end(trainer(), record(0))
        Console().on_epoch_end(trainer(), record(1, validated=False))
        Console().on_fit_end(trainer(), outcome(tmp_path))
    assert len(caplog.messages) == 2
    assert "mAP50 0.300  mAP50-95 0.4000 *" in caplog.messages[0]
    assert "best epoch 2" in caplog.messages[1]
    assert str(tmp_path) in caplog.messages[1]


def test_every_column_is_a_tensorboard_scalar(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoard(tmp_path)
    board.on_epoch_end(trainer(), record(0))
    board.on_fit_end(trainer(), outcome(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(record(0).row())
    assert events.Scalars("train/kd_cwd_layer17")[0].value == pytest.approx(0.25)


def test_figures_are_labels_first_batches_and_curves(tmp_path: Path) -> None:
    figures, table = Figures(tmp_path, ("a", "b")), CsvTable(tmp_path / "results.csv")
    batch = Batch(torch.rand(2, 3, 64, 64), torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.2]]), torch.ones(2))
    for step in range(5):
        figures.on_step_end(trainer(), Progress(0, step, 3, 5), batch, TERMS)
    table.on_epoch_end(trainer(), record(0))
    figures.on_fit_end(trainer(), outcome(tmp_path))
    drawn = {path.name for path in tmp_path.iterdir()} - {"results.csv"}
    assert drawn == {"labels.png", "results.png", *(f"train_batch{step}.jpg" for step in range(3))}


def test_a_figure_that_cannot_be_drawn_is_told_once_and_a_full_disk_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    for name in ("label_statistics", "batch_mosaic", "results_curves"):
        monkeypatch.setattr(f"engine.loggers.figures.{name}", fail)
    batch = Batch(torch.rand(2, 3, 64, 64), torch.zeros(0, 6), torch.ones(2))
    (tmp_path / "results.csv").write_text("nonsense")
    error: Exception = ValueError("no such glyph")
    figures = Figures(tmp_path, ("a",))
    for step in range(3):
        figures.on_step_end(trainer(), Progress(0, step, 3, 5), batch, TERMS)
    figures.on_fit_end(trainer(), outcome(tmp_path))
    (told,) = caplog.messages
    assert told == f"{tmp_path / 'labels.png'} cannot be drawn (ValueError: no such glyph); training goes on without"
    error = OSError(28, "No space left on device", "a.png")
    with pytest.raises(OSError, match="No space left"):
        figures.on_fit_end(trainer(), outcome(tmp_path))


def test_what_the_machine_refuses_a_watcher_is_told_once_and_a_bug_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    class Watcher(Callback):
        def on_epoch_end(self, trainer: Any, record: EpochRecord) -> None:
            raise {0: OSError(28, "No space left on device", "a.csv"), 1: KeyError("bug")}[record.epoch % 2]

    watcher = Dispensable(Watcher())
    for epoch in (0, 2, 4):
        watcher.on_epoch_end(trainer(), record(epoch))
    assert caplog.messages == ["a.csv: the disk is full; make room there; training goes on without"]
    with pytest.raises(KeyError):
        watcher.on_epoch_end(trainer(), record(1))


def test_every_event_reaches_a_dispensable_watcher(tmp_path: Path) -> None:
    heard: list[str] = []
    events = [name for name in vars(Callback) if name.startswith("on_")]
    watcher = Callback()
    for event in events:
        setattr(watcher, event, lambda *_, event=event: heard.append(event))
    for event in events:
        arguments = getattr(Callback, event).__code__.co_argcount - 1
        getattr(Dispensable(watcher), event)(*[None] * arguments)
    assert heard == events


def test_tensorboard_that_cannot_write_is_told_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = pytest.importorskip("tensorboard.summary.writer.record_writer").RecordWriter
    of_threads: list[str] = []  # tracebacks
    monkeypatch.setattr(threading, "excepthook", lambda arguments: of_threads.append(str(arguments.exc_value)))
    board = Dispensable(TensorBoard(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", "events")

    def bug() -> None:
        raise KeyError("of another thread")

    monkeypatch.setattr(written, "write", refuse)
    for epoch in range(3):
        board.on_epoch_end(trainer(), record(epoch))
    board.on_fit_end(trainer(), outcome(tmp_path))
    other = threading.Thread(target=bug)
    other.start()
    other.join()
    assert caplog.messages == ["events: the disk is full; make room there; training goes on without"]
    assert of_threads == ["'of another thread'"]
