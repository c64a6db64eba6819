"""Our checkpoint files: what is in them, and which of them an epoch writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import checkpoint
from engine.callbacks import EpochRecord
from engine.optim import Recipe, Timetable
from engine.plan import Plan
from models.families import read_spec
from models.weights import read_checkpoint
from models.yolo import Model
from utils.hyp import Hyp

COMMON: dict[str, Any] = {"options": {"epochs": 3}, "hyp": {"lr0": 0.01}, "metrics": {"metrics/mAP50": 0.5}}


@pytest.fixture(scope="module")
def model() -> Model:
    model = Model(read_spec("yolov5p"), 2, ("a", "b"))
    model.head.set_anchors_px(model.head.anchors_px * 1.0003)  # no number of half precision
    return model


def record(epoch: int, best: bool = False) -> EpochRecord:
    return EpochRecord(epoch, 3, {"box": 1.0}, None, {"weights": 0.1}, None, best, 1.0, 5)


def plan(folder: Path, **changes: Any) -> Plan:
    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(), "linear", 16)
    return replace(Plan(folder, 3, torch.device("cpu"), None, timetable, stride=32), **changes)


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_plain_data_with_a_student_alone(model: Model, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "a.pt", model, half=False, training={"epoch": 2}, **COMMON)
    content = torch.load(path, weights_only=True)
    assert content["model"].keys() == model.state_dict().keys()
    assert content["training"] == {"epoch": 2}
    assert (content["names"], content["named"]) == (["a", "b"], True)
    assert {key: content[key] for key in COMMON} == COMMON


def test_half_precision_spares_the_anchors(model: Model, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "a.pt", model, half=True, **COMMON)
    state = torch.load(path, weights_only=True)["model"]
    assert torch.equal(state["model.24.anchors"], model.head.anchors)
    others = {value.dtype for key, value in state.items() if key != "model.24.anchors"}
    assert others == {torch.float16, torch.int64}
    assert path.stat().st_size < 1e6 + 2 * sum(value.numel() for value in state.values())


def test_what_is_saved_is_read_back(model: Model, tmp_path: Path) -> None:
    back = read_checkpoint(checkpoint.save(tmp_path / "a.pt", model, half=False, **COMMON))
    assert back.names == ("a", "b")
    assert back.training is None
    assert all(torch.equal(back.state[key], value) for key, value in model.state_dict().items())


def test_the_best_is_written_only_when_it_is(model: Model, tmp_path: Path) -> None:
    checkpoint.save_epoch(tmp_path, model, record(0, best=True), plan(tmp_path))
    first = (tmp_path / "best.pt").read_bytes()
    checkpoint.save_epoch(tmp_path, Model(model.spec, 2), record(1), plan(tmp_path))
    assert (tmp_path / "best.pt").read_bytes() == first
    assert written(tmp_path) == {"best.pt"}


def test_last_holds_what_resume_needs(model: Model, tmp_path: Path) -> None:
    checkpoint.save_last(tmp_path, model, plan(tmp_path), {"epoch": 2})
    assert torch.load(tmp_path / "last.pt", weights_only=True)["training"] == {"epoch": 2}


def test_the_last_epoch_leaves_half_precision_weights_alone(model: Model, tmp_path: Path) -> None:
    checkpoint.save_epoch(tmp_path, model, record(2), plan(tmp_path))
    checkpoint.save_last(tmp_path, model, plan(tmp_path), None, record(2))
    for name in ("last.pt", "best.pt"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert "training" not in content
        assert content["model"]["model.0.conv.weight"].dtype == torch.float16


def test_every_nth_epoch_stays(model: Model, tmp_path: Path) -> None:
    for epoch in range(4):
        checkpoint.save_epoch(tmp_path, model, record(epoch), plan(tmp_path, save_period=2))
    assert written(tmp_path) == {"best.pt", "epoch1.pt", "epoch3.pt"}
