"""val.py from the outside: recorded scores of published weights, tables, files of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import val
from engine import checkpoint
from engine.options import ValOptions, val_options
from utils import metrics
from utils.types import DecodedRows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small photographs of noise with one bright rectangle each."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for index in range(4):
        image = rng.integers(0, 80, (48 + 16 * index, 96, 3)).astype(np.uint8)
        image[8:40, 20:60] = 220
        cv2.imwrite(str(folder / "images" / "val" / f"{index}.jpg"), image)
        height = image.shape[0]
        line = f"{index % 2} {40 / 96:.6f} {24 / height:.6f} {40 / 96:.6f} {32 / height:.6f}\n"
        (folder / "labels" / "val" / f"{index}.txt").write_text(line)
    content = {"path": str(folder), "train": "images/val", "val": "images/val", "names": ["bright", "brighter"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own checkpoint of an untrained model."""
    from models.families import read_spec
    from models.yolo import Model

    torch.manual_seed(0)
    model = Model(read_spec("yolov5p"), 2, ("bright", "brighter"))
    path = tmp_path_factory.mktemp("weights") / "own.pt"
    return checkpoint.save(path, model, options={}, hyp={}, metrics={}, half=True)


def run(tmp_path: Path, *words: object) -> tuple[Path, list[dict]]:
    """The run folder and its metrics.json."""
    common = ("--project", tmp_path, "--name", "run", "--device", "cpu", "--workers", 0)
    val.main([str(word) for word in (*words, *common)])
    folder = tmp_path / "run"
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("weights", "teacher", "expected"),
    [
        (("a",), "", ["student"]),
        (("a", "b"), "", ["student", "teacher"]),
        (("a", "b", "c"), "", ["student", "baseline", "teacher"]),
        (("a",), "t", ["student", "teacher"]),
        (("a", "b"), "t", ["student", "baseline", "teacher"]),
        ((), "t", ["teacher"]),
    ],
)
def test_who_is_who(weights: tuple[str, ...], teacher: str, expected: list[str]) -> None:
    teachers = (teacher,) if teacher else ()
    found = val.roles(ValOptions(weights=weights, t_weights=teachers, cfg="n", t_cfg=("s",)))
    assert [role for role, _, _ in found] == expected
    assert [name for _, name, _ in found] == [*weights, *teachers]
    assert [cfg for _, _, cfg in found] == ["s" if role == "teacher" else "n" for role in expected]


def test_single_weights_leave_metrics_figures_and_label_files(
    tmp_path: Path, data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--weights", weights, "--data", data, "--imgsz", 64, "--save-txt", "--save-conf", "--save-json")
    folder, (own,) = run(tmp_path, *words)
    assert own["role"] == "student"
    assert own["weights"] == str(weights)
    assert own["size_mb"] == pytest.approx(weights.stat().st_size / 1e6)
    assert [result["name"] for result in own["per_class"]] == ["bright", "brighter"]
    assert {path.name for path in folder.iterdir()} >= {
        *("PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"),
        *("val_predictions.jpg", "predictions.json", "ground_truth.json", "labels", "metrics.json"),
    }  # fmt: skip
    assert len(list((folder / "labels").iterdir())) == 4
    shown = capsys.readouterr().out
    assert "brighter" in shown
    assert str(folder) in shown


def test_a_student_is_compared_with_its_teacher(
    tmp_path: Path, data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--weights", weights, "--t_weights", weights, "--data", data, "--imgsz", 64)
    folder, metrics = run(tmp_path, *words)
    assert [one["role"] for one in metrics] == ["student", "teacher"]
    text = (folder / "comparison.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "difference" in text
    assert "share 100.0% of their boxes" in text  # a model agrees with itself
    assert (folder / "comparison.jpg").stat().st_size > 1000


def test_speed_task_leaves_metrics_alone(tmp_path: Path, data: Path, weights: Path) -> None:
    folder, (own,) = run(tmp_path, "--weights", weights, "--data", data, "--imgsz", 64, "--task", "speed")
    assert own["ms_per_image"] > 0
    assert [path.name for path in folder.iterdir()] == ["metrics.json"]


def test_with_nms_the_other_branch_is_scored(
    tmp_path: Path, data: Path, weights: Path, anchor_free_cfg: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import evaluator
    from models.families import read_spec
    from models.yolo import Model

    model = Model(read_spec(str(anchor_free_cfg(end2end=True))), 2, ("bright", "brighter"))
    own = checkpoint.save(tmp_path / "two.pt", model, options={}, hyp={}, metrics={}, half=False)
    suppressed: list[float] = []

    def recorded(decoded: DecodedRows, conf: float, iou: float, *rest: object, **more: object) -> list[torch.Tensor]:
        suppressed.append(iou)
        return [torch.zeros(0, 6)] * decoded.images

    monkeypatch.setattr(evaluator, "suppressed", recorded)
    words = ("--data", data, "--imgsz", 64, "--noplots", "--exist-ok")
    run(tmp_path, "--weights", own, *words)
    assert not suppressed
    run(tmp_path, "--weights", own, *words, "--nms")
    assert set(suppressed) == {0.7}
    run(tmp_path, "--weights", own, *words, "--augment")  # passes at several sizes overlap
    assert len(suppressed) == 2
    run(tmp_path, "--weights", weights, *words, "--nms")  # of one branch: nothing else than without
    assert set(suppressed) == {0.6, 0.7}


def test_nms_scores_what_the_one_to_many_branch_puts_out(anchor_free_cfg: Callable[..., Path], tmp_path: Path) -> None:
    from models.families import read_spec
    from models.yolo import Model

    model = Model(read_spec(str(anchor_free_cfg(end2end=True))), 2, ("bright", "brighter"))
    own = checkpoint.save(tmp_path / "two.pt", model, options={}, hyp={}, metrics={}, half=False)
    images = torch.rand(1, 3, 64, 64)
    expected = model.train()(images)
    for nms, levels in ((False, expected.levels), (True, expected.aux)):
        (one,) = val.load(ValOptions(weights=(str(own),), nms=nms), torch.device("cpu"))
        found = one.model.train()  # batch statistics, as above; the branch that stays is the one in use
        found.model[-1].fuse()
        assert all(torch.equal(a, b) for a, b in zip(found(images).levels, levels, strict=True))


def test_weights_of_other_classes_are_a_users_mistake(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models.families import read_spec
    from models.yolo import Model

    model = Model(read_spec("yolov5p"), 3, ("x", "y", "z"))
    path = checkpoint.save(tmp_path / "other.pt", model, options={}, hyp={}, metrics={}, half=True)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--weights", path, "--data", data, "--imgsz", 64)
    assert stopped.value.code == 2
    assert "know 3 classes (x, y, z) and the data has 2 (bright, brighter)" in capsys.readouterr().err


def test_published_weights_score_what_was_recorded(shared: Path, tmp_path: Path) -> None:
    coco = shared / "data" / "coco"
    recorded = json.loads((coco / "recorded_metrics.json").read_text())["metrics"]["yolov5n"]
    words = ("--weights", shared / "weights" / "yolov5n.pt", "--data", coco / "data.yaml", "--noplots", "--save-json")
    words += ("--batch-size", 16)  # as recorded: the shape of a rectangular batch depends on who is in it
    folder, (own,) = run(tmp_path, *words)
    assert own["mAP50-95"] == pytest.approx(recorded["mAP50-95"], abs=0.002)
    assert own["mAP50"] == pytest.approx(recorded["mAP50"], abs=0.002)
    assert own["precision"] == pytest.approx(recorded["precision"], abs=0.01)
    assert own["recall"] == pytest.approx(recorded["recall"], abs=0.01)
    assert own["parameters"] == pytest.approx(1_872_157, abs=0)
    assert len(json.loads((folder / "predictions.json").read_text())) > 1000


def test_all_weights_of_a_table_are_counted_as_the_first_ones_family(
    anchor_free_cfg: Callable[..., Path], weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import tally
    from models.families import read_spec
    from models.yolo import Model

    counted: list[str] = []

    def evaluate(stats: Any, names: Any, metric: Any) -> Any:
        counted.append(metric)
        return metrics.evaluate(stats, names, metric)

    monkeypatch.setattr(tally, "evaluate", evaluate)
    model = Model(read_spec(str(anchor_free_cfg())), 2, ("bright", "brighter"))
    free = checkpoint.save(tmp_path / "free.pt", model, options={}, hyp={}, metrics={}, half=False)
    words = ("--data", data, "--imgsz", 64, "--noplots", "--exist-ok")
    run(tmp_path, "--weights", free, "--t_weights", weights, *words)
    run(tmp_path, "--weights", weights, "--t_weights", free, *words)
    run(tmp_path, "--weights", weights, "--t_weights", free, *words, "--metric", "ultralytics")
    assert counted == ["ultralytics"] * 2 + ["yolov5"] * 2 + ["ultralytics"] * 2


@pytest.mark.parametrize("nms, name", [((), "one-to-one"), (("--nms",), "one-to-many, NMS")])
def test_both_branches_of_yolo26_score_what_was_recorded(
    nms: tuple[str, ...], name: str, shared: Path, tmp_path: Path
) -> None:
    coco = shared / "data" / "coco"
    recorded = json.loads((coco / "recorded_metrics.json").read_text())["anchor_free"]["metrics"][f"yolo26n {name}"]
    words = ("--weights", shared / "weights" / "yolo26n.pt", "--data", coco / "data.yaml", "--noplots", *nms)
    _, (own,) = run(tmp_path, *words, "--batch-size", 16)
    assert own["mAP50-95"] == pytest.approx(recorded["mAP50-95"], abs=0.001)
    assert own["mAP50"] == pytest.approx(recorded["mAP50"], abs=0.001)


def test_pycocotools_counts_nearly_the_same(shared: Path) -> None:
    pytest.importorskip("pycocotools")
    from engine.coco import coco_scores, ground_truth, image_ids, predictions

    coco = shared / "data" / "coco"
    words = ["--weights", str(shared / "weights" / "yolov5n.pt"), "--data", str(coco / "data.yaml"), "--imgsz", "320"]
    options = val_options([*words, "--workers", "0"])
    from data.spec import read_data

    data = read_data(options.data)
    (candidate,) = val.load(options, torch.device("cpu"))
    evaluator = val.build_evaluator(options, data, torch.device("cpu"), stride=32)
    report = evaluator(candidate.model, progress=False)
    found = report.detections
    truth, results = ground_truth(found, data.names), predictions(found, data.names)
    theirs = coco_scores(truth, results, image_ids([one.path for one in found]))
    # they differ by definition (interpolation, 100 instead of 300 detections an image): models.md has 0.4830 and 0.4848
    assert (report.evaluation.map, report.evaluation.map50) == pytest.approx(theirs, abs=0.01)


@pytest.fixture(scope="module")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOv7 that was trained on images stretched to size, of which the middle was shown."""
    from models.families import read_spec
    from models.yolo import Model

    torch.manual_seed(0)
    model = Model(read_spec("yolov7-tiny"), 2, ("bright", "brighter"))
    path = tmp_path_factory.mktemp("weights") / "v7.pt"
    hyp = {"letterbox": False, "fixed_crop": [0.1, 0.0, 0.9, 1.0]}
    return checkpoint.save(path, model, options={}, hyp=hyp, metrics={}, half=True)


def test_images_are_shown_as_the_weights_were_trained(data: Path, weights: Path, stretched: Path) -> None:
    from data.spec import read_data
    from data.view import View

    for name, expected in ((weights, View()), (stretched, View((0.1, 0.0, 0.9, 1.0), True))):
        options = val_options(["--weights", str(name), "--data", str(data), "--imgsz", "64", "--workers", "0"])
        candidates = val.load(options, torch.device("cpu"))
        hyp = val.shown_alike(candidates)
        evaluator = val.build_evaluator(options, read_data(options.data), torch.device("cpu"), 32, hyp=hyp)
        assert evaluator.loader.dataset.view == expected


def test_models_of_different_families_are_compared(
    tmp_path: Path, data: Path, weights: Path, stretched: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--weights", weights, "--t_weights", stretched, "--data", data, "--imgsz", 64)
    folder, metrics = run(tmp_path, *words)
    assert [one["parameters"] > 2e6 for one in metrics] == [False, True]
    assert (folder / "comparison.jpg").exists()
    assert (
        f"{stretched} was trained with another fixed_crop or letterbox; all see images as {weights} did" in caplog.text
    )
