"""What the comparison says of known scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill.compare import Contender, beside, class_table, conclude, table, write_metrics
from utils.metrics import ClassResult, Evaluation
from utils.pictures import read, save

# the keys that issue 2 promises
KEYS = {
    *("weights", "role", "precision", "recall", "mAP50", "mAP50-95"),
    *("parameters", "gflops", "ms_per_image", "size_mb", "per_class"),
}  # fmt: skip


def scored(role: str, value: float, classes: int = 3, weights: str = "w.pt") -> Contender:
    per_class = tuple(
        ClassResult(f"class {k}", k, 5, 10 + k, value, value, value, value * (0.5 + 0.01 * k)) for k in range(classes)
    )
    evaluation = Evaluation(value, value, value, value / 2, images=20, labels=33, per_class=per_class)
    return Contender(weights, role, evaluation, 1_872_157, 4.5, 31.25, 3.9)


def row(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(title))
    return line.split()


def test_table_of_student_and_teacher_names_difference_and_share() -> None:
    text = table([scored("student", 0.6), scored("teacher", 0.8)], 0.5)
    assert row(text, "student")[1:9] == ["0.600", "0.600", "0.600", "0.3000", "1,872,157", "4.5", "31.2", "3.9"]
    assert row(text, "difference")[1:5] == ["-0.200", "-0.200", "-0.200", "-0.1000"]
    assert row(text, "share")[1:9] == [*["75%"] * 4, *["100%"] * 4]
    assert "share 50.0% of their boxes" in text
    assert "gap closed" not in text


def test_table_with_a_baseline_names_gain_and_share_of_the_gap_closed() -> None:
    text = table([scored("student", 0.6), scored("baseline", 0.5), scored("teacher", 0.9)])
    assert row(text, "gain")[1:5] == ["+0.100", "+0.100", "+0.100", "+0.0500"]
    assert row(text, "gap closed")[2:6] == ["25%"] * 4


def test_no_share_of_a_gap_that_is_not_there() -> None:
    text = table([scored("student", 0.6), scored("baseline", 0.9), scored("teacher", 0.9)])
    assert row(text, "gap closed")[2:6] == ["-"] * 4


def test_table_fits_a_terminal_and_its_columns_stand_below_each_other() -> None:
    far = "runs/distill/a-very-long-name-of-an-experiment/weights/best.pt"
    contenders = [scored(role, 0.5, 90, far) for role in ("student", "baseline", "teacher")]
    lines = table(contenders, 0.9).splitlines()
    assert max(map(len, lines)) <= 110
    numbers = lines[1:4]
    assert len({line.rstrip().index("1,872,157") for line in numbers}) == 1
    assert all(line.endswith("…riment/weights/best.pt"[-20:]) for line in numbers)


def test_class_differences_are_of_the_classes_that_differ_most_unless_all_are_wanted() -> None:
    pair = [scored("student", 0.5, 40), scored("teacher", 0.9, 40)]
    brief, full = table(pair), table(pair, all_classes=True)
    assert "class 39" in brief
    assert "class 0 " not in brief  # the difference grows with the index
    assert "class 0 " in full
    assert row(full, "class 10")[-3:] == ["0.300", "0.540", "-0.240"]


def test_class_table_has_all_classes_first() -> None:
    lines = class_table(scored("student", 0.5).evaluation).splitlines()
    assert lines[1].split() == ["all", "20", "33", "0.500", "0.500", "0.500", "0.2500"]
    assert lines[2].split() == ["class", "0", "5", "10", "0.500", "0.500", "0.500", "0.2500"]


def test_metrics_file_holds_every_contender_with_the_promised_keys(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "metrics.json", [scored("student", 0.5), scored("teacher", 0.9)])
    student, teacher = json.loads(path.read_text())
    assert set(student) == set(teacher) == KEYS
    assert (student["role"], teacher["role"]) == ("student", "teacher")
    assert student["mAP50-95"] == 0.25
    assert student["parameters"] == 1_872_157
    own = student["per_class"][1]
    assert [own[key] for key in ("name", "images", "labels")] == ["class 1", 5, 11]
    assert [own[key] for key in ("precision", "recall", "mAP50", "mAP50-95")] == [0.5, 0.5, 0.5, pytest.approx(0.255)]


def test_metrics_file_is_json_even_when_a_score_is_not_a_number(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "metrics.json", [scored("student", float("nan"))])
    (student,) = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert student["mAP50"] is None


def test_contender_has_a_known_role() -> None:
    with pytest.raises(ValueError, match="got winner"):
        scored("winner", 0.5)


def test_picture_has_a_column_for_truth_and_each_model_and_rows_with_objects(tmp_path: Path) -> None:
    image = save(np.full((60, 80, 3), 90, dtype=np.uint8), tmp_path / "image.png")
    box, nothing = np.array([[10, 10, 50, 50, 0.9, 0]], np.float32), np.zeros((0, 6), np.float32)

    def seen(found: np.ndarray, objects: int) -> SimpleNamespace:
        return SimpleNamespace(
            path=str(image), found=found, labels=np.array([[0, 10, 10, 50, 50]] * objects, np.float32)
        )

    student = [seen(nothing, 0), seen(box, 1), seen(nothing, 1)]
    teacher = [seen(box, 0), seen(box, 1), seen(box, 1)]
    path = beside({"student": student, "teacher": teacher}, ["x"], tmp_path / "beside.png")
    height, width = read(path).shape[:2]
    assert width == pytest.approx(3 * 480, abs=30)
    assert height == pytest.approx(2 * 360, abs=60)  # the image without objects is not shown


def test_conclusion_is_on_disk_and_returned(tmp_path: Path) -> None:
    image = save(np.full((60, 80, 3), 90, dtype=np.uint8), tmp_path / "image.png")
    boxes = np.array([[10, 10, 50, 50, 0.9, 0], [60, 10, 75, 50, 0.8, 0]], np.float32)
    labels = np.array([[0, 10, 10, 50, 50]], np.float32)
    found = {
        "student": [SimpleNamespace(path=str(image), found=boxes[:1], labels=labels)],
        "teacher": [SimpleNamespace(path=str(image), found=boxes, labels=labels)],
    }
    pair = [scored("student", 0.5), scored("teacher", 0.9)]
    text = conclude(pair, found, ["x"], tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.json", "comparison.txt", "comparison.jpg"}
    assert (tmp_path / "run" / "comparison.txt").read_text().strip() in text
    assert "share 66.7% of their boxes" in text  # one pair of three boxes
    assert all(str(tmp_path / "run" / name) in text for name in ("metrics.json", "comparison.jpg"))

    bare = conclude(pair, {"student": (), "teacher": ()}, ["x"], tmp_path / "bare")
    assert "of their boxes" not in bare
    assert not (tmp_path / "bare" / "comparison.jpg").exists()
