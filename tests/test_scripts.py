"""The scripts from the outside: what they write, what goes on after a crash, what they answer to a mistake."""

from __future__ import annotations

import csv
import json
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import train
import train_distill
import val
from distill.teacher import Teacher
from engine import checkpoint
from engine.session import Session
from engine.trainer import Trainer
from models.families import read_spec
from models.weights import load_model, read_checkpoint
from models.yolo import Model

ROOT = Path(train.__file__).resolve().parent
NAMES = ("red", "green", "blue")
COLOURS = ((60, 60, 255), (60, 255, 60), (255, 60, 60))  # BGR
SCRATCH = ("--weights", "", "--cfg", "yolov5p")
SMALL = ("--imgsz", 64, "--batch-size", 4, "--workers", 0, "--device", "cpu")
SHORT = (*SMALL, "--epochs", 1, "--noplots")
MAINS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train.main,
    "train_distill": train_distill.main,
    "val": val.main,
}


def run(script: str, project: Path, *words: object) -> Path:
    """Calls a script in this process; gives the run's folder."""
    MAINS[script]([str(word) for word in (*words, "--project", project)])
    return project / "exp"


def draw(folder: Path, names: Sequence[str] = NAMES, images: int = 8) -> Path:
    """A data set of rectangles, a colour each class; gives its YAML file."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(images):
            image, lines = rng.integers(0, 80, (64, 64, 3)).astype(np.uint8), []
            for label in (index % len(names), (index + 1) % len(names)):
                side, corner = rng.integers(12, 28, 2), rng.integers(0, 32, 2)
                (x0, y0), (x1, y1) = corner, corner + side
                image[y0:y1, x0:x1] = COLOURS[label]
                x, y, w, h = (*(corner + side / 2) / 64, *side / 64)
                lines.append(f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n")
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            (folder / "labels" / split / f"{index}.txt").write_text("".join(lines))
    return write(folder / "data.yaml", {"path": str(folder), "train": "images/train", "val": "images/val"} | {
        "names": list(names)
    })  # fmt: skip


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def taught(row: dict[str, str]) -> dict[str, float]:
    """What the teacher's terms came to in an epoch."""
    return {key.removeprefix("train/"): float(value) for key, value in row.items() if "/kd_" in key}


def roles(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["role"]: entry for entry in json.loads((folder / "metrics.json").read_text())}


def state(folder: Path, name: str = "best.pt") -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "weights" / name).state


def stored(path: Path, cfg: Any, names: Sequence[str] | None = NAMES, num_classes: int = 3) -> Path:
    """Our own checkpoint of an untrained model."""
    torch.manual_seed(0)
    model = Model(read_spec(cfg) if isinstance(cfg, str) else cfg, num_classes, names)
    return checkpoint.save(path, model, options={}, hyp={}, metrics={}, half=True)


@pytest.fixture(autouse=True)
def talkative(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a run of train.py."""
    words = ("--weights", "", "--cfg", "yolov5n", "--data", data, *SMALL, "--epochs", 2)
    return run("train", tmp_path_factory.mktemp("trained"), *words)


@pytest.fixture(scope="module")
def teacher(trained: Path) -> Path:
    return trained / "weights" / "best.pt"


DISTILL = (*SCRATCH, *SMALL, "--epochs", 2, "--d_feature", "--baseline")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: Path) -> Path:
    """The folder of a run of train_distill.py, with a baseline."""
    words = (*DISTILL, "--data", data, "--t_weights", teacher)
    return run("train_distill", tmp_path_factory.mktemp("distilled"), *words)


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_training_leaves_options_recipe_table_weights_metrics_and_figures(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        *("opt.yaml", "hyp.yaml", "environment.yaml", "results.csv", "metrics.json", "weights"),
        *("labels.png", "train_batch0.jpg", "results.png", "val_predictions.jpg", "confusion_matrix.png"),
        *("PR_curve.png", "F1_curve.png"),
    }  # fmt: skip
    assert {path.name for path in (trained / "weights").iterdir()} == {"best.pt", "last.pt"}
    assert yaml.safe_load((trained / "opt.yaml").read_text())["epochs"] == 2
    assert [row["epoch"] for row in rows(trained)] == ["1", "2"]
    assert all(float(row["train/box"]) > 0 for row in rows(trained))
    assert roles(trained).keys() == {"student"}


def test_tensorboard_has_every_column(trained: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(trained))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(rows(trained)[0]) - {"epoch"}


def test_distillation_compares_student_teacher_and_baseline(distilled: Path, teacher: Path) -> None:
    found = roles(distilled)
    assert found.keys() == {"student", "teacher", "baseline"}
    assert found["teacher"]["weights"] == str(teacher)
    assert found["student"]["parameters"] == found["baseline"]["parameters"] < found["teacher"]["parameters"]
    assert "gap closed" in (distilled / "comparison.txt").read_text()
    assert (distilled / "comparison.jpg").stat().st_size > 1000


def test_every_term_of_the_teacher_has_a_column_and_is_not_zero(distilled: Path) -> None:
    names = {"kd_bckd", "kd_cwd_layer17", "kd_cwd_layer20", "kd_cwd_layer23"}
    for row in rows(distilled):
        assert taught(row).keys() == names
        assert min(taught(row).values()) > 0
    assert taught(rows(distilled / "baseline")[0]) == {}


def test_finished_weights_hold_a_student_alone(distilled: Path) -> None:
    names = Model(read_spec("yolov5p"), 3).state_dict().keys()
    for name in ("best.pt", "last.pt"):
        content = torch.load(distilled / "weights" / name, weights_only=True)
        assert "training" not in content
        assert content["model"].keys() == names
        assert content["model"]["model.0.conv.weight"].dtype == torch.float16


def test_val_scores_three_weights_of_a_run(tmp_path: Path, data: Path, distilled: Path, teacher: Path) -> None:
    weights = [distilled / "weights/best.pt", distilled / "baseline/weights/best.pt", teacher]
    folder = run("val", tmp_path, "--weights", *weights, "--data", data, "--imgsz", 64, "--workers", 0, "--noplots")
    again, before = roles(folder), roles(distilled)
    assert again.keys() == before.keys()
    for role, entry in again.items():
        assert entry["mAP50-95"] == pytest.approx(before[role]["mAP50-95"], abs=1e-6)


@pytest.mark.parametrize("words", [("--augment", "--half"), ("--no-rect", "--single-cls"), ("--task", "train")])
def test_val_takes(words: tuple[str, ...], tmp_path: Path, data: Path, teacher: Path) -> None:
    words = ("--weights", str(teacher), *words, "--imgsz", "64", "96", "--workers", "0", "--noplots")
    assert roles(run("val", tmp_path, "--data", data, *words))["student"]["mAP50"] >= 0


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--rect", "--imgsz", 64, 96),
        ("--multi-scale", "--close-mosaic", 1, "--optimizer", "auto"),
        ("--image-weights", "--label-smoothing", 0.1, "--adam", "--cos-lr"),
        ("--quad", "--cache"),
        ("--cache", "disk", "--amp", "off", "--poly-lr", "--sync-bn", "--noautoanchor"),
        ("--img-size", 33, "--batch", 3, "--notest", "--hyp", "data/hyps/hyp.scratch-med.yaml"),
    ],
    ids=lambda words: words[0],
)
def test_train_takes(words: tuple[object, ...], tmp_path: Path, data: Path) -> None:
    folder = run("train", tmp_path, *SCRATCH, "--data", data, *SHORT, *words)
    (row,) = rows(folder)
    assert all(np.isfinite(float(value)) for value in row.values())


def test_single_class_makes_a_model_of_one_class(tmp_path: Path, data: Path) -> None:
    folder = run("train", tmp_path, *SCRATCH, "--data", data, *SHORT, "--single-cls")
    assert read_checkpoint(folder / "weights" / "best.pt").num_classes == 1


def test_frozen_layers_stay_as_they_are(tmp_path: Path, data: Path, teacher: Path) -> None:
    words = ("--weights", teacher, "--data", data, *SHORT, "--freeze", 10, "--optimizer", "AdamW")
    moved, start = state(run("train", tmp_path, *words)), read_checkpoint(teacher).state
    weights = [key for key in start if key.endswith("conv.weight")]
    changed = {key for key in weights if not torch.equal(start[key], moved[key])}
    assert changed == {key for key in weights if int(key.split(".")[1]) >= 10}


def test_without_validation_and_saving_the_end_is_validated_and_saved(tmp_path: Path, data: Path) -> None:
    words = (*SCRATCH, "--data", data, *SHORT, "--epochs", 2, "--noval", "--nosave", "--save-period", 1)
    folder = run("train", tmp_path, *words)
    first, last = rows(folder)
    assert not first["metrics/mAP50"]
    assert last["metrics/mAP50"]
    assert {path.name for path in (folder / "weights").iterdir()} == {"best.pt", "last.pt", "epoch1.pt"}
    assert not list(folder.glob("*.jpg")) + list(folder.glob("*.png"))  # --noplots


def test_an_old_best_is_not_taken_for_the_new_one(tmp_path: Path, data: Path, teacher: Path) -> None:
    weights = tmp_path / "exp" / "weights"
    weights.mkdir(parents=True)
    (weights / "best.pt").write_bytes(teacher.read_bytes())
    folder = run("train", tmp_path, *SCRATCH, "--data", data, *SHORT, "--exist-ok", "--nosave", "--epochs", 2)
    assert len(state(folder)["model.0.conv.weight"]) == 8  # of yolov5p; the teacher has 16


def test_a_recipe_with_distillation_keys_is_trained_without_them(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hyp = write(tmp_path / "hyp.yaml", {"features": {"cwd": {"weight": 1.0}}, "schedule": {"kind": "cosine"}})
    folder = run("train", tmp_path, *SCRATCH, "--data", data, *SHORT, "--hyp", hyp)
    assert "no teacher: features, schedule of the recipe are ignored" in caplog.text
    assert taught(rows(folder)[0]) == {}


def test_layers_are_shown_with_the_numbers_that_recipes_use(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("train", tmp_path, *SCRATCH, "--data", data, *SHORT)
    assert "yolov5p: 25 layers, " in caplog.text
    run("train", tmp_path, *SCRATCH, "--data", data, *SHORT, "--verbose")
    head = next(line.split() for line in caplog.text.splitlines() if "Detect" in line)
    assert head[:4] == ["24", "17,", "20,", "23"]


# -- teachers ----------------------------------------------------------------------------------------------------------

OUTPUTS, FEATURES = {"kd_bckd"}, {f"kd_cwd_layer{layer}" for layer in (17, 20, 23)}


@pytest.mark.parametrize(
    ("flags", "recipe", "terms"),
    [
        ((), {}, OUTPUTS),
        (("--d_output",), {"features": {"cwd": {"weight": 2.0}}}, OUTPUTS),
        (("--d_feature", "--d_output"), {}, OUTPUTS | FEATURES),
        ((), {"outputs": {}}, FEATURES),
        (("--d_feature",), {"outputs": {"kl": {"temperature": 2.0}}, "features": {}}, {"kd_kl"}),
        (
            ("--d_feature",),
            {"student_kd_layers": [9], "teacher_kd_layers": [23], "outputs": {}, "features": {"mimic": {}}},
            {"kd_mimic_layer9"},
        ),
    ],
)
def test_flags_and_recipe_choose_the_terms(
    flags: tuple[str, ...], recipe: dict, terms: set[str], tmp_path: Path, data: Path, teacher: Path
) -> None:
    hyp = write(tmp_path / "hyp.yaml", {"lr0": 0.01, **recipe})
    words = (*SCRATCH, "--t_weights", teacher, "--data", data, *SHORT, "--hyp", hyp, *flags)
    (row,) = rows(run("train_distill", tmp_path, *words))
    assert taught(row).keys() == terms
    assert min(taught(row).values()) > 0


def test_in_the_last_epochs_the_teacher_is_off_and_not_run(
    tmp_path: Path, data: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = Teacher.forward
    monkeypatch.setattr(Teacher, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    hyp = write(tmp_path / "hyp.yaml", {"schedule": {"kind": "linear", "off_epochs": 1}})
    words = (*SCRATCH, "--t_weights", teacher, "--data", data, *SHORT, "--epochs", 2, "--d_feature", "--hyp", hyp)
    first, last = rows(run("train_distill", tmp_path, *words))
    assert len(calls) == 2  # eight images, four a batch
    assert min(taught(first).values()) > 0
    assert taught(first).keys() == taught(last).keys()
    assert max(taught(last).values()) == 0


@pytest.mark.parametrize("names", [("green", "Red"), ("blue", "green", "red", "yellow")], ids=["fewer", "more"])
def test_the_teacher_may_know_other_classes_too(
    names: tuple[str, ...], tmp_path: Path, data: Path, teacher: Path
) -> None:
    content = yaml.safe_load(data.read_text()) | {"names": list(names)}
    own = write(tmp_path / "own.yaml", content)
    words = (*SCRATCH, "--t_weights", teacher, "--data", own, *SHORT, "--d_feature")
    folder = run("train_distill", tmp_path, *words)
    assert min(taught(rows(folder)[0]).values()) > 0
    assert read_checkpoint(folder / "weights" / "best.pt").names == names


def test_a_teacher_of_features_may_know_nothing_of_the_students_classes(
    tmp_path: Path, data: Path, teacher: Path
) -> None:
    own = write(tmp_path / "own.yaml", yaml.safe_load(data.read_text()) | {"names": ["cat", "dog"]})
    hyp = write(tmp_path / "hyp.yaml", {"outputs": {}})
    words = (*SCRATCH, "--t_weights", teacher, "--data", own, *SHORT, "--hyp", hyp, "--baseline")
    assert roles(run("train_distill", tmp_path, *words)).keys() == {"student", "baseline"}


def test_student_and_baseline_take_the_teachers_anchors(tmp_path: Path, data: Path) -> None:
    spec = read_spec("yolov5p")
    wider = replace(spec, anchors=tuple(tuple(1.5 * side for side in level) for level in spec.anchors))
    teacher = stored(tmp_path / "teacher.pt", wider)
    words = (*SCRATCH, "--t_weights", teacher, "--data", data, *SHORT, "--baseline")
    folder = run("train_distill", tmp_path, *words)
    expected = read_checkpoint(teacher).state["model.24.anchors"]
    assert not torch.equal(expected, Model(spec, 3).state_dict()["model.24.anchors"])
    for one in (folder, folder / "baseline"):
        torch.testing.assert_close(state(one)["model.24.anchors"], expected)


def test_estimated_anchors_reach_student_and_baseline(tmp_path: Path, data: Path, teacher: Path) -> None:
    hyp = write(tmp_path / "hyp.yaml", {"anchors": 2, "outputs": {}})
    words = (*SCRATCH, "--t_weights", teacher, "--data", data, *SHORT, "--hyp", hyp, "--baseline")
    folder = run("train_distill", tmp_path, *words)
    own, plain = (state(one)["model.24.anchors"] for one in (folder, folder / "baseline"))
    assert own.shape == (3, 2, 2)
    assert torch.equal(own, plain)
    sides = own * torch.tensor([8.0, 16.0, 32.0]).view(3, 1, 1)
    assert 10 < sides.min() < sides.max() < 40  # the rectangles have sides of 12 to 27 pixels, mosaic apart


@pytest.mark.parametrize("six", ["student", "teacher"])
def test_a_model_of_four_levels_and_one_of_three_meet_where_strides_agree(
    six: str, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = replace(read_spec("yolov5n6"), width_multiple=0.125, name="six")
    four, three = stored(tmp_path / "four.pt", large), stored(tmp_path / "three.pt", "yolov5p")
    student, teacher = (four, three) if six == "student" else (three, four)
    words = ("--weights", student, "--t_weights", teacher, "--data", data, *SHORT, "--imgsz", 128, "--d_feature")
    folder = run("train_distill", tmp_path, *words)
    assert len(taught(rows(folder)[0])) == 4  # outputs, and the features of three levels
    assert "no level of stride 64" in caplog.text
    own, other = (read_checkpoint(path).state for path in (folder / "weights/best.pt", teacher))
    anchors = [next(value for key, value in one.items() if key.endswith(".anchors")) for one in (own, other)]
    torch.testing.assert_close(anchors[0][:3], anchors[1][:3])


def test_a_bare_state_dict_is_a_teacher_with_its_model_file(tmp_path: Path, data: Path) -> None:
    spec = replace(read_spec("yolov5p"), width_multiple=0.1875, name="mine")
    cfg = write(tmp_path / "mine.yaml", spec.to_dict())
    torch.save(Model(spec, 3).state_dict(), tmp_path / "bare.pt")
    words = (*SCRATCH, "--t_weights", tmp_path / "bare.pt", "--t_cfg", cfg, "--data", data, *SHORT)
    assert roles(run("train_distill", tmp_path, *words)).keys() == {"student", "teacher"}


def test_methods_may_be_named_on_the_command_line(tmp_path: Path, data: Path, teacher: Path) -> None:
    words = (*SCRATCH, "--t_weights", teacher, "--data", data, *SHORT, "--d_output", "bckd", "kl", "--d_feature", "pkd")
    folder = run("train_distill", tmp_path, *words)
    assert taught(rows(folder)[0]).keys() == {"kd_bckd", "kd_kl", *(f"kd_pkd_layer{i}" for i in (17, 20, 23))}
    written = yaml.safe_load((folder / "hyp.yaml").read_text())
    assert written["outputs"].keys() == {"bckd", "kl"}
    assert written["features"].keys() == {"pkd"}


def test_two_teachers_of_different_sizes(tmp_path: Path, data: Path, teacher: Path) -> None:
    small = stored(tmp_path / "small.pt", "yolov5p")
    words = (*SCRATCH, "--t_weights", teacher, small, "--data", data, *SHORT, "--d_output", "kl")
    folder = run("train_distill", tmp_path, *words)
    assert taught(rows(folder)[0]).keys() == {"kd_kl", "kd_kl_t2"}
    entries = json.loads((folder / "metrics.json").read_text())
    assert [(one["role"], one["weights"]) for one in entries] == [
        ("student", str(folder / "weights" / "best.pt")),
        ("teacher", str(teacher)),
        ("teacher", str(small)),
    ]


def test_a_teacher_may_start_from_its_architecture_and_learn_along(tmp_path: Path, data: Path) -> None:
    words = (*SCRATCH, "--t_cfg", "yolov5n", "--t_kind", "online", "--data", data, *SHORT, "--d_feature")
    folder = run("train_distill", tmp_path, *words)
    (row,) = rows(folder)
    assert float(row["train/teacher"]) > 0
    assert min(taught(row).values()) > 0
    assert roles(folder).keys() == {"student", "teacher"}
    learned = read_checkpoint(folder / "weights" / "teacher.pt").state
    assert len(learned["model.0.conv.weight"]) == 16
    assert len(state(folder)["model.0.conv.weight"]) == 8


def test_the_student_may_be_its_own_teacher(tmp_path: Path, data: Path) -> None:
    words = (*SCRATCH, "--t_kind", "self", "--data", data, *SHORT, "--d_output", "kl", "--d_feature", "mimic")
    folder = run("train_distill", tmp_path, *words)
    assert taught(rows(folder)[0]).keys() == {"kd_kl", *(f"kd_mimic_layer{i}" for i in (17, 20, 23))}
    assert roles(folder).keys() == {"student"}


def test_a_teacher_may_see_larger_images(tmp_path: Path, data: Path, teacher: Path) -> None:
    words = (*SCRATCH, "--t_weights", teacher, "--t_imgsz", 128, "--data", data, *SHORT, "--d_feature")
    assert min(taught(rows(run("train_distill", tmp_path, *words))[0]).values()) > 0


def test_a_recipe_of_phases_is_as_long_as_they_are(tmp_path: Path, data: Path, teacher: Path) -> None:
    phases = [{"epochs": 1, "lr0": 1.0e-4, "terms": ["features"]}, {"epochs": 1}, {"epochs": 1, "terms": ["detection"]}]
    hyp = write(tmp_path / "phases.yaml", {"phases": phases, "warmup_epochs": 0})
    words = (*SCRATCH, "--t_weights", teacher, "--data", data, *SMALL, "--noplots", "--d_feature", "--baseline")
    folder = run("train_distill", tmp_path, *words, "--hyp", "scratch-low", hyp)
    found = rows(folder)
    assert [float(row["train/box"]) > 0 for row in found] == [False, True, True]
    assert [float(row["train/kd_bckd"]) > 0 for row in found] == [False, True, False]
    assert [float(row["train/kd_cwd_layer17"]) > 0 for row in found] == [True, True, False]
    assert [float(row["lr/weights"]) for row in found] == pytest.approx([1e-4, 0.01, 0.01])
    plain = rows(folder / "baseline")
    assert [float(row["lr/weights"]) for row in plain] == pytest.approx([0.01, 0.0067, 0.0034], rel=1e-3)


def test_unlabelled_images_learn_from_the_teacher_alone(
    tmp_path: Path, data: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(data.parent / "images" / "val", pool)
    content = yaml.safe_load(data.read_text()) | {"unlabelled": str(pool)}
    own = write(tmp_path / "own.yaml", content)
    hyp = write(tmp_path / "hyp.yaml", {"pseudo_labels": 0.001})
    words = (*SCRATCH, "--t_weights", teacher, "--data", own, *SHORT, "--hyp", hyp, "--d_output", "kl")
    folder = run("train_distill", tmp_path, *words)
    assert "unlabelled: 8 images" in caplog.text
    assert min(taught(rows(folder)[0]).values()) > 0
    run("train", tmp_path / "plain", *SCRATCH, "--data", own, *SHORT)
    assert "are not used; they take a teacher" in caplog.text


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pull_plug(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """pull_plug(n): Ctrl-C in the first step behind n more epochs, of whatever trainings, once."""
    epoch_of = Trainer._epoch

    def arm(left: int) -> None:
        begun = []

        def interrupted(trainer: Trainer, epoch: int) -> Any:
            begun.append(epoch)
            if len(begun) > left:
                monkeypatch.setattr(Trainer, "_epoch", epoch_of)
                os.kill(os.getpid(), signal.SIGINT)
            return epoch_of(trainer, epoch)

        monkeypatch.setattr(Trainer, "_epoch", interrupted)

    return arm


def resume(script: str, project: Path, *words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(script, project, *words)
    return int(stopped.value.code or 0)


def assert_same_run(ours: Path, other: Path) -> None:
    for name in ("best.pt", "last.pt"):
        mine, theirs = state(ours, name), state(other, name)
        assert [key for key in theirs if not torch.equal(mine[key], theirs[key])] == []
    for mine, theirs in zip(rows(ours), rows(other), strict=True):
        assert {**mine, "seconds": ""} == {**theirs, "seconds": ""}


def test_interrupted_training_goes_on_as_if_nothing_had_been(
    trained: Path, tmp_path: Path, data: Path, pull_plug: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    pull_plug(1)
    words = ("--weights", "", "--cfg", "yolov5n", "--data", data, *SMALL, "--epochs", 2, "--noplots")
    assert resume("train", tmp_path, *words) == 130
    assert f"--resume {tmp_path / 'exp'}" in caplog.text
    assert_same_run(run("train", tmp_path, "--resume"), trained)


def test_distillation_goes_on_from_its_baseline_and_from_its_student(
    distilled: Path, tmp_path: Path, data: Path, teacher: Path, pull_plug: Callable
) -> None:
    pull_plug(1)
    assert resume("train_distill", tmp_path, *DISTILL, "--noplots", "--data", data, "--t_weights", teacher) == 130
    folder = tmp_path / "exp"
    assert not (folder / "weights").exists()  # it was the baseline
    pull_plug(2)  # the baseline's second, the student's first
    assert resume("train_distill", tmp_path, "--resume", folder) == 130
    assert read_checkpoint(folder / "weights" / "last.pt").training is not None
    run("train_distill", tmp_path, "--resume")
    assert_same_run(folder, distilled)
    assert_same_run(folder / "baseline", distilled / "baseline")
    assert roles(folder).keys() == {"student", "teacher", "baseline"}


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda training: training.clear(),
    "another optimizer": lambda training: training["optimizer"].update(state={}, param_groups=[]),
    "numbers of another shape": lambda training: [
        numbers.update(momentum_buffer=torch.zeros(3)) for numbers in training["optimizer"]["state"].values()
    ],
    "another student": lambda training: training["task"].popitem(),
    "a word for a number": lambda training: training.update(ema_updates="many", task=[]),
}


def test_a_run_folder_that_does_not_fit_is_told_in_one_line(
    tmp_path: Path, data: Path, pull_plug: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    pull_plug(1)
    words = (*SCRATCH, "--data", data, *SMALL, "--epochs", 3, "--noplots")
    assert resume("train", tmp_path / "whole", *words) == 130
    for name, forge in FORGED.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole" / "exp", folder)
        last = folder / "weights" / "last.pt"
        content = torch.load(last, weights_only=True)
        forge(content["training"])
        torch.save(content, last)
        capsys.readouterr()
        assert resume("train", tmp_path, "--resume", folder) == 2, name
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        assert re.search(rf"error: {re.escape(str(last))}.*(start anew|no run can go on)", errors), errors


def test_a_table_that_somebody_has_changed_ends_no_run(tmp_path: Path, data: Path, pull_plug: Callable) -> None:
    pull_plug(1)
    words = (*SCRATCH, "--data", data, *SMALL, "--epochs", 2, "--noplots")
    assert resume("train", tmp_path, *words) == 130
    table = tmp_path / "exp" / "results.csv"
    table.write_bytes(table.read_bytes() + b"mean;of;all\n,,,\n\xff,1,2" + 100 * b",3" + b"\n")
    run("train", tmp_path, "--resume")
    assert [row["epoch"] for row in rows(tmp_path / "exp")] == ["1", "2"]


def test_what_an_earlier_run_has_left_says_nothing_of_one_in_its_place(
    tmp_path: Path, data: Path, pull_plug: Callable
) -> None:
    old = tmp_path / "exp" / "baseline" / "weights" / "last.pt"
    old.parent.mkdir(parents=True)
    old.touch()
    write(tmp_path / "exp" / "metrics.json", "[]")
    pull_plug(0)
    assert resume("train", tmp_path, *SCRATCH, "--data", data, *SHORT, "--exist-ok") == 130
    assert not old.exists()
    assert not (tmp_path / "exp" / "metrics.json").exists()


def test_a_complete_run_is_not_trained_again(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (trained / "weights" / "best.pt").read_bytes()
    run("train", trained.parent, "--resume", trained / "weights" / "last.pt", "--noplots")
    assert "is complete: nothing to resume" in caplog.text
    assert (trained / "weights" / "best.pt").read_bytes() == before
    assert len(rows(trained)) == 2


def test_ctrl_c_before_training_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Session, stride: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "load_data", interrupted)
    assert resume("train", tmp_path, *SCRATCH, "--data", data, *SHORT) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []


# -- mistakes ----------------------------------------------------------------------------------------------------------


class Hostile:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data: Path, teacher: Path) -> Path:
    """A folder of things that are not right."""
    folder = tmp_path_factory.mktemp("place")
    whole = teacher.read_bytes()
    for name, content in {
        "page.pt": b"<!DOCTYPE html>\n<html></html>",
        "cut.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "raw.pt": pickle.dumps(Hostile(folder / "boom")),
    }.items():
        (folder / name).write_bytes(content)
    torch.save({"model": Hostile(folder / "boom")}, folder / "hostile.pt")
    stored(folder / "strangers.pt", "yolov5p", ("cat", "dog"), 2)
    stored(folder / "nameless.pt", "yolov5p", None, 5)
    content = yaml.safe_load(data.read_text())
    for name, changes in {
        "names.yaml": {"names": None},
        "nc.yaml": {"nc": 4},
        "lost.yaml": {"train": "images/trian"},
        "noval.yaml": {"val": None},
        "empty.yaml": {"path": str(folder / "nothing"), "train": ".", "val": "."},
        "bad.yaml": {"path": str(folder / "bad"), "train": "images", "val": "images"},
    }.items():
        write(folder / name, {key: value for key, value in (content | changes).items() if value is not None})
    (folder / "nothing").mkdir()
    (folder / "bad" / "images").mkdir(parents=True)
    (folder / "bad" / "images" / "a.png").write_bytes(b"no picture")
    write(folder / "broken.yaml", "path: [\n")
    write(folder / "key.yaml", {"lr_0": 0.1})
    write(folder / "type.yaml", {"lr0": "fast"})
    write(folder / "method.yaml", {"features": {"cdw": {}}})
    write(folder / "option.yaml", {"features": {"cwd": {"tau": 1.0}}})
    write(folder / "layers.yaml", {"student_kd_layers": [17], "teacher_kd_layers": [20]})
    write(folder / "layer.yaml", {"student_kd_layers": [99], "teacher_kd_layers": [20]})
    write(folder / "nothing.yaml", {"outputs": {}, "features": {}})
    rows_of = {"nc": 3, "anchors": 3, "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Cnov", [16]]]}
    write(folder / "model.yaml", rows_of | {"head": [[[1], 1, "Detect", ["nc", "anchors"]]]})
    write(folder / "row.yaml", rows_of | {"backbone": [[-1, 1, "Conv"]], "head": [[[0], 1, "Detect", []]]})
    return folder


# script, words ({} is the folder of wrong things, {data} and {teacher} are right), what the answer says
MISTAKES = [
    ("train", "--epcohs 3", "train.py has no flag --epcohs; did you mean '--epochs'?"),
    ("train", "--evolve", "--evolve: there is no evolution of hyper-parameters here"),
    ("train", "stray", "'stray' belongs to no flag"),
    ("train", "--batch-size 0", "--batch-size: got '0', expected a whole number of at least 1"),
    ("train", "--imgsz 31", "--imgsz: got '31', expected a whole number of at least 32"),
    ("train", "--imgsz 32", "--imgsz 32 leaves the coarsest map a single cell; train with at least 64"),
    ("train", "--optimizer adamm", "--optimizer: got 'adamm'; did you mean 'Adam'?"),
    ("train", "--device gpu", "--device: got 'gpu', expected cpu"),
    ("train", "--freeze 99", "--freeze: layer 98 is to be frozen, but the model has layers 0 to 24"),
    ("train", "--weights {}/none.pt", "no weights file {}/none.pt"),
    ("train", "--weights {}/yolov5q.pt", "did you mean 'yolov5"),
    ("train", "--weights {}/page.pt", "{}/page.pt is a web page, not a weights file; delete it and get it again"),
    ("train", "--weights {}/cut.pt", "{}/cut.pt is damaged or cut short; delete it and get it again"),
    ("train", "--weights {}/empty.pt", "{}/empty.pt is empty; delete it and get it again"),
    ("train", "--weights {}/raw.pt", "{}/raw.pt is not a weights file"),
    ("train", "--weights {}/hostile.pt", "{}/hostile.pt refers to posix.mkdir; it was not loaded"),
    ("train", "--weights {}", "{} is a folder, not a weights file"),
    ("train", "--weights {teacher} --cfg yolov5s6", "nothing of the weights fits yolov5s6"),
    ("train", "--cfg yolo5p", "no model of that name; did you mean 'yolov5p'?"),
    ("train", "--cfg {}/model.yaml", "layer 1 [-1, 1, Cnov, [16]]: no block is called 'Cnov'; did you mean 'Conv'?"),
    ("train", "--cfg {}/row.yaml", "{}/row.yaml: backbone row 0: a row is [from, number, module, args]; got"),
    ("train", "--data {}/none.yaml", "--data {}/none.yaml: no such file; ours: "),
    ("train", "--data coco18", "--data coco18: no such file; did you mean 'coco128'?"),
    ("train", "--data {}", "--data {}: is a folder, expected a YAML file"),
    ("train", "--data {}/broken.yaml", "{}/broken.yaml: line 2: "),
    ("train", "--data {}/names.yaml", "{}/names.yaml: missing: names"),
    ("train", "--data {}/nc.yaml", "{}/nc.yaml: nc is 4 but there are 3 names"),
    ("train", "--data {}/lost.yaml", "images/trian"),
    ("train", "--data {}/noval.yaml", "{}/noval.yaml: has no 'val' images"),
    ("train", "--data {}/empty.yaml", "{}/empty.yaml: train: no images in {}/nothing"),
    ("train", "--data {}/bad.yaml", "train: none of its 1 images can be used; the first: {}/bad/images/a.png"),
    ("train", "--hyp scrach-low", "--hyp scrach-low: no such file; did you mean 'scratch-low'?"),
    ("train", "--hyp {}/key.yaml", "{}/key.yaml: unknown key 'lr_0'; did you mean 'lr0'?"),
    ("train", "--hyp {}/type.yaml", "{}/type.yaml: lr0: got 'fast', expected a number above 0"),
    ("train", "--project {}/key.yaml", "--project {}/key.yaml: no folder {}/key.yaml/exp can be made"),
    ("train_distill", "", "--t_weights is missing: name the teacher's weights"),
    ("train_distill", "--t_weights {}/none.pt", "no weights file {}/none.pt"),
    ("train_distill", "--t_weights {}/hostile.pt", "{}/hostile.pt refers to posix.mkdir; it was not loaded"),
    ("train_distill", "--t_weights {}/strangers.pt", "no class of the teacher (cat, dog) is one of the student's"),
    ("train_distill", "--t_weights {}/nameless.pt", "the student has 3 classes and the teacher 5"),
    ("train_distill", "--t_weights {teacher} --d_feature --hyp {}/method.yaml", "no feature loss is called 'cdw'; did"),
    (
        "train_distill",
        "--t_weights {teacher} --d_feature --hyp {}/option.yaml",
        "'cwd' has no option tau; it takes: te",
    ),
    (
        "train_distill",
        "--t_weights {teacher} --d_feature --hyp {}/layers.yaml",
        "student layer 17 has stride 8 but tea",
    ),
    ("train_distill", "--t_weights {teacher} --d_feature --hyp {}/layer.yaml", "there is no layer 99; the student has"),
    (
        "train_distill",
        "--t_weights {teacher} --d_feature --hyp {}/nothing.yaml",
        "there is nothing to learn from the t",
    ),
    ("train_distill", "--t_weights {teacher} --d_output --hyp {}/nothing.yaml", "so nothing is left; name a method"),
    ("val", "", "--weights is missing"),
    ("val", "--weights {teacher} {}/none.pt", "no weights file {}/none.pt"),
    ("val", "--weights {teacher} --task tset", "--task: got 'tset'; did you mean 'test'?"),
    ("val", "--weights {teacher} --task test", "data.yaml: has no 'test' images"),
    ("val", "--weights {teacher} --conf-thres 2", "--conf-thres: got '2', expected a number in [0, 1]"),
    ("val", "--weights {teacher} --epochs 3", "--epochs is a flag of train.py and train_distill.py, not of val.py"),
    ("val", "--weights {teacher} {}/strangers.pt", "{}/strangers.pt: the weights know 2 classes (cat, dog)"),
    ("val", "--weights {teacher} --project {}/key.yaml", "no folder {}/key.yaml/exp can be made"),
]


@pytest.mark.parametrize(("script", "words", "answer"), MISTAKES, ids=lambda part: str(part)[:40])
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing(
    script: str, words: str, answer: str, tmp_path: Path, data: Path, teacher: Path, place: Path, capsys: Any
) -> None:
    def filled(text: str) -> str:
        return text.replace("{}", str(place)).replace("{teacher}", str(teacher))

    given = [filled(word) for word in words.split()]
    usual = ["--data", data, "--project", tmp_path / "runs", *SMALL]
    usual += [] if script == "val" else [*SCRATCH, "--epochs", 1, "--noplots", *["--baseline"] * (script != "train")]
    with pytest.raises(SystemExit) as stopped:
        MAINS[script]([*map(str, usual), *given])  # of a flag given twice the last counts
    lines = capsys.readouterr().err.strip().splitlines()
    (at,) = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    assert stopped.value.code == 2
    assert filled(answer) in "\n".join(lines[at:])
    assert len(lines) - at <= (1 if "trian" not in answer else 2)  # which lists the places it looked at
    assert not (tmp_path / "runs" / "exp").exists()
    assert not (place / "boom").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--resume",), "no weights/last.pt under"),
        (
            ("--resume", "nowhere"),
            "--resume nowhere: no such file or folder; expected a run folder or its weights/last",
        ),
        (("--resume", "{distilled}"), "a run of train_distill.py; resume it there"),
        (("--resume", "{trained}", "--epochs", "5"), "--resume goes on with the run's own options: leave out --epochs"),
        (("--resume", "{teacher}.yaml"), "no such file or folder"),
    ],
)
def test_what_cannot_be_resumed_is_said(
    words: tuple[str, ...], answer: str, tmp_path: Path, trained: Path, distilled: Path, capsys: Any
) -> None:
    places = {"{distilled}": str(distilled), "{trained}": str(trained)}
    assert resume("train", tmp_path, *(places.get(word, word) for word in words)) == 2
    assert answer in capsys.readouterr().err


def test_a_download_that_fails_says_where_to_put_the_file(
    tmp_path: Path, data: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    path = tmp_path / "yolov5m.pt"
    assert resume("train", tmp_path, "--weights", path, "--data", data, *SHORT) == 2
    assert re.search(rf"get it from https://\S+/yolov5m.pt and put it at {path}$", capsys.readouterr().err.strip())
    assert list(tmp_path.iterdir()) == []


def test_bad_images_and_rows_are_listed_and_the_rest_is_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = draw(tmp_path / "mit Leerzeichen, ünd 图")
    images, labels = own.parent / "images" / "train", own.parent / "labels" / "train"
    (images / "0.png").write_bytes(b"no picture")
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:100])
    (labels / "2.txt").write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n0 0.5\n")
    folder = run("train", tmp_path / "läufe hier", *SCRATCH, "--data", own, *SHORT)
    assert (folder / "weights" / "best.pt").exists()
    assert "train: 6 images" in caplog.text
    assert "skipped 2 corrupt images and 2 rows" in caplog.text
    assert f"{labels / '2.txt'}:2: class 7" in caplog.text


# -- other processes ---------------------------------------------------------------------------------------------------


def test_scripts_find_their_files_from_any_folder(tmp_path: Path, data: Path) -> None:
    words = ["--weights", "", "--cfg", "models/yolov5p.yaml", "--hyp", "data/hyps/hyp.scratch-low.yaml"]
    words += ["--data", str(data), *map(str, SHORT)]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "train" / "exp" / "weights" / "best.pt").exists()
    assert "results: runs/train/exp" in done.stdout


def test_two_processes_distil_one_student(tmp_path: Path, data: Path, teacher: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    words = ["--t_weights", teacher, "--data", data, *SCRATCH, *SHORT, "--d_feature", "--project", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(ROOT / "train_distill.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.iterdir()
    (row,) = rows(folder)
    assert len(taught(row)) == 4
    assert min(taught(row).values()) > 0
    assert roles(folder).keys() == {"student", "teacher"}
    assert load_model(str(folder / "weights" / "best.pt"))[0].num_classes == 3
