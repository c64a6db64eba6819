"""Compiled networks train as they are."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from engine.compiled import compile_networks, require_compiler
from engine.task import DetectionTask
from losses.anchor import AnchorLoss
from models.spec import ModelSpec
from models.yolo import Model
from utils.errors import UserError
from utils.hyp import Hyp

CPU = torch.device("cpu")
TINY = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 8]], [-1, 1, "Conv", [8, 3, 1]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    specification = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("ranks.py"))
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def afresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def compiles() -> bool:
    try:
        require_compiler(CPU)
    except UserError:
        return False
    return True


def tiny() -> DetectionTask:
    torch.manual_seed(0)
    model = Model(ModelSpec.from_dict(TINY, "tiny", "here"), 2)
    return DetectionTask(model, AnchorLoss(model.head, Hyp(), (64, 64)))


def losses(task: Any, ranks: ModuleType) -> list[float]:
    """Of four steps."""
    optimizer, found = ranks.optimizer(task), []
    task.train()
    for step in range(4):
        loss = torch.stack(list(task(ranks.half(step % 2)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.skipif(not compiles(), reason="needs a C++ compiler")
def test_compiled_code_has_the_loss_curve_of_the_plain_network(ranks: ModuleType) -> None:
    plain, task = losses(tiny(), ranks), tiny()
    compile_networks(task.networks(), one_shape=True, graphs=True)
    assert losses(task, ranks) == pytest.approx(plain, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert len(set(plain)) == 4  # it moves


def test_student_and_teacher_are_compiled_whole_and_distil_alike(ranks: ModuleType, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"outputs": {}, "features": {"cwd": {}}}  # both: see test_distributed.py
    plain = ranks.train(ranks.distillation(**recipe), 0, tmp_path, epochs=2)
    task = ranks.distillation(**recipe)
    names = list(task.state_dict())
    compile_networks(task.networks(), one_shape=True, graphs=False, backend="eager")
    compiled = ranks.train(task, 0, tmp_path, epochs=2)
    assert list(compiled) == names
    assert all(torch.equal(plain[name], compiled[name]) for name in names if isinstance(plain[name], Tensor))
    assert counters["stats"]["unique_graphs"] == 3  # teacher, student, and the student in the epoch without teacher
    assert not counters["graph_break"]


def test_copies_of_a_compiled_network_are_plain(ranks: ModuleType) -> None:
    task = tiny()
    compile_networks(task.networks(), one_shape=True, graphs=False, backend="eager")
    task(ranks.half(0))
    seen = counters["stats"]["unique_graphs"]
    copied = copy.deepcopy(task.model)
    copied(torch.rand(1, 3, 32, 32))
    assert seen == 1
    assert counters["stats"]["unique_graphs"] == seen


def test_without_a_compiler_it_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(UserError, match=r"--compile: there is no C.. compiler here .no-such-compiler., which PyTorch"):
        require_compiler(CPU)


def test_on_a_gpu_it_takes_triton_and_the_compiler_that_triton_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--compile: Triton is not installed"):
        require_compiler(torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"there is no C compiler here .gcc or clang."):
        require_compiler(torch.device("cuda"))
