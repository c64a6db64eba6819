"""Where a step waits for the device: every such place costs a GPU its head start.

On a CPU nothing waits, so what would is counted: operations whose result's size depends on values, and numbers read.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.optim import Recipe, Timetable, build_optimizer
from engine.plan import Plan
from engine.task import DetectionTask
from engine.trainer import Trainer
from losses.build import build_criterion
from models.families import read_spec
from models.yolo import Model
from utils.files import ROOT
from utils.hyp import Hyp
from utils.types import Batch, Progress

READS = {"tolist", "numpy", "cpu"}  # of Python; `item`, `float`, `bool` end in the first of these operations
SIZES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave", "equal"}


class Waits(TorchDispatchMode):
    """Counts operations by their place in this repository; a mask as index is a `nonzero`."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        masks = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        if name in SIZES or any(isinstance(mask, Tensor) and mask.dtype is torch.bool for mask in masks):
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """The same of what Python reads without an operation."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


def place() -> str:
    """The innermost file of ours, tests aside."""
    files = [Path(frame.filename) for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
    ours = [file.relative_to(ROOT) for file in files]
    return str([file for file in ours if file.parts[0] != "tests"][-1])


def waits(task: nn.Module, folder: Path) -> Counter[str]:
    """Of the second step of the trainer."""
    recipe = Recipe("SGD", 0.01, 0.9, 0.1)
    timetable = Timetable(recipe, Hyp(warmup_iterations=4), "linear", batch_size=64)
    plan = Plan(folder, 3, torch.device("cpu"), None, timetable, stride=32)
    trainer = Trainer(task, build_optimizer(task, recipe, 5e-4), None, None, plan)
    targets = torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.3], [1, 1, 0.4, 0.6, 0.2, 0.5]])
    batch = Batch(torch.rand(2, 3, 64, 64), targets, torch.ones(2, dtype=torch.bool))
    trainer.stepper.begin(Progress(0, 0, 3, 10))
    found: Counter[str] = Counter()
    for _ in range(2):
        found.clear()
        with Reads(found), Waits(found):
            trainer.stepper(batch, Progress(0, 0, 3, 10))
    return found


class Quiet(nn.Module):
    """A loss that asks for nothing."""

    def forward(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
        return {"all": torch.stack([level.square().mean() for level in prediction.levels]).sum()}


def test_the_loop_reads_one_number_a_step(tmp_path: Path) -> None:
    task = DetectionTask(Model(read_spec("yolov5p"), 2), Quiet())
    assert waits(task, tmp_path) == {"engine/stepper.py": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolov5p", {"losses/matching.py": 3}),  # which targets are matched, a level
        ("yolov8n", {"losses/assignment.py": 4, "losses/tal.py": 3}),
    ],
)
def test_what_a_loss_waits_for_is_known(name: str, expected: dict[str, int], tmp_path: Path) -> None:
    model = Model(read_spec(name), 2)
    task = DetectionTask(model, build_criterion(model.head, Hyp(), (64, 64)))
    assert waits(task, tmp_path) == {"engine/stepper.py": 1, **expected}
