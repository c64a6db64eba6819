"""The tables of validation: their arithmetic, and that the parts come to the score that the evaluator gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import validation
from benchmarks.validation import FULL, OURS, YOLOV5, Parts, Whole
from engine import checkpoint
from models.families import read_spec
from models.yolo import Model
from tests.benchmarks.tables import cells, draw


def stored(path: Path, family: str = "yolov5p") -> Path:
    torch.manual_seed(0)
    model = Model(read_spec(family), 1, ("thing",))
    return checkpoint.save(path, model, options={}, hyp={}, metrics={}, half=False)


def words(folder: Path, family: str = "yolov5p") -> list[str]:
    given = ["--weights", stored(folder / "model.pt", family), "--data", draw(folder / "data")]
    return [str(word) for word in (*given, "--imgsz", 64, "--batch-size", 3, "--rounds", 1)]


def test_ratios_are_of_medians_and_the_last_is_of_sums() -> None:
    wholes = {FULL: [Whole(2.0, 0.5), Whole(4.0, 0.5), Whole(3.0, 0.5)], YOLOV5: [Whole(7.5, 0.4)] * 3}
    _, _, ours, theirs = map(cells, validation.whole_table(wholes, 6).splitlines())
    assert ours == [FULL, "3.00", "2.0", "2.50", "0.5000"]
    assert theirs == [YOLOV5, "7.50", "0.8", "-", "0.4000"]

    pieces = {OURS: [Parts([0.02, 0.02, 0.04], 0.5, 9)], YOLOV5: [Parts([0.06, 0.08, 0.02], 0.5, 8)]}
    found = {row[0]: row[1:] for row in map(cells, validation.parts_table(pieces, 2).splitlines())}
    assert found["suppression"] == ["10.00", "30.00", "3.00"]
    assert found["matching"] == ["10.00", "40.00", "4.00"]
    assert found["average precision"] == ["20.00", "10.00", "0.50"]
    assert found["all three"] == ["40.00", "80.00", "2.00"]
    assert found["detections"] == ["9", "8", "-"]


def test_what_is_recorded_are_all_images_with_their_labels_in_pixels(tmp_path: Path) -> None:
    bench = validation.Bench(validation.parser().parse_args(words(tmp_path)))
    assert sum(len(batch) for batch in bench.recorded.decoded) == len(bench.recorded.labels) == 4
    height, width = 64, 96  # 48 x 64 pixels of an image, and half a stride around
    for batch in bench.recorded.decoded:
        cell_counts = [(height // stride) * (width // stride) for stride in (8, 16, 32)]
        assert batch.shape[1:] == (3 * sum(cell_counts), 6)
    for labels in bench.recorded.labels:
        left, top = (width - 64) / 2, (height - 48) / 2
        expected = [[0, left + 64 * 0.3, top + 48 * 0.3, left + 64 * 0.7, top + 48 * 0.7]]
        np.testing.assert_allclose(labels.numpy(), expected, atol=1e-3)

    folder = tmp_path / "recorded"
    folder.mkdir()
    bench.recorded.write(folder)
    back = [torch.from_numpy(np.load(file)) for file in sorted(folder.glob("decoded*.npy"))]
    assert all(torch.equal(one, other) for one, other in zip(back, bench.recorded.decoded, strict=True))


def test_parts_and_evaluator_agree_on_the_score(tmp_path: Path) -> None:
    bench = validation.Bench(validation.parser().parse_args(words(tmp_path)))
    parts, whole = bench.parts(), bench.whole(half=False)
    assert len(parts.seconds) == len(validation.PARTS)
    assert parts.detections > 0
    assert parts.map == pytest.approx(whole.map, abs=1e-3)


def test_a_run_prints_its_tables_without_the_peer(tmp_path: Path, capsys: Any) -> None:
    validation.main(words(tmp_path))
    out = capsys.readouterr().out
    rows = [cells(line)[0] for line in out.splitlines() if line.startswith("| ")]
    assert {FULL, "all three", "detections"} <= set(rows)
    assert "model.pt on 4 images (val), 64 px" in out
    assert "Not measured: yolov5." in out
    assert str(tmp_path) not in out


@pytest.mark.parametrize(("family", "more", "message"), [
    ("yolo26n", [], "needs no suppression"),
    ("yolov5p", ["--peer", "ultralytics=python"], "validation is measured beside yolov5 alone"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    family: str, more: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as left:
        validation.main([*words(tmp_path, family), *more])
    assert left.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_the_peers_snippet_is_python() -> None:
    compile(validation.SNIPPET.replace("THREADS", "1"), "snippet", "exec")
