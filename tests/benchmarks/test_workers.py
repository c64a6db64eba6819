"""The table of loader memory: its arithmetic, and that a small simulated data set is gone through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import workers
from benchmarks.memory import STATUS
from benchmarks.workers import OURS, Memory
from data.labels import read_labels
from data.spec import read_data
from tests.benchmarks.tables import cells

linux = pytest.mark.skipif(not STATUS.exists(), reason="private memory is told by Linux alone")


def test_growth_is_what_a_pass_adds_to_a_worker() -> None:
    _, _, ours, theirs = map(
        cells, workers.table({OURS: Memory(50, 10, 12), "yolov5": Memory(90, 10, 80)}).splitlines()
    )
    assert ours == [OURS, "50", "10", "12", "2"]
    assert theirs == ["yolov5", "90", "10", "80", "70"]


def test_the_simulated_data_set_has_the_images_and_labels_asked_for(tmp_path: Path) -> None:
    data = read_data(workers.simulated(tmp_path, 6, 3))
    labels = read_labels(data.images("train"), data.num_classes, " ".join(data.train), "train")
    assert (len(labels), len(labels.rows), len(labels.problems)) == (6, 18, 0)


@linux
def test_a_run_prints_its_table_without_peers(tmp_path: Path, capsys: Any) -> None:
    workers.main(["--images", "8", "--boxes", "2", "--imgsz", "32", "--batch-size", "2", "--workers", "1"])
    out = capsys.readouterr().out
    (row,) = (cells(line) for line in out.splitlines() if line.startswith(f"| {OURS}"))
    assert float(row[2]) > 0
    assert "16 labels in 8 images (simulated), 1 workers." in out
    assert "Not measured: yolov5, ultralytics." in out


def test_what_runs_in_peers_is_python() -> None:
    for name, snippet in workers.LOADERS.items():
        compile(snippet + workers.THEIRS, name, "exec")
