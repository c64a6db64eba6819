"""What each of two gloo ranks does in test_distributed.py: run by torchrun, writes what it saw to a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from distill.build import build_distillation
from distill.task import DistillationTask
from engine.compiled import compile_networks
from engine.optim import Recipe, Timetable, build_optimizer
from engine.plan import Plan
from engine.trainer import Trainer, wrap
from losses.anchor import AnchorLoss
from losses.build import build_criterion
from models.families import read_spec
from models.yolo import Model
from utils.hyp import Balance, Hyp, Schedule, TeacherRole
from utils.phases import Phase
from utils.types import Batch, Progress

CPU = torch.device("cpu")
SIZE = 64
# in three epochs: the deepest features alone, all features, everything with weights that have moved
MOVING: dict[str, Any] = {
    "outputs": {"kl": {}},
    "features": {"cwd": {}},
    "teachers": (TeacherRole("online", ema=0.9),),
    "phases": (Phase(1, terms=("features",)), Phase(1)),
    "schedule": Schedule(deepest_first=1),
    "balance": Balance("dwa"),
}


def distillation(**recipe: Any) -> DistillationTask:
    """A small student and a bigger teacher, the same on every rank."""
    torch.manual_seed(0)
    hyp = Hyp(**{"schedule": Schedule(kind="cosine", end=0.1, off_epochs=1), **recipe})
    student, teacher = (Model(read_spec(name), 2, ("a", "b")) for name in ("yolov5p", "yolov5n"))
    criterion = build_criterion(student.head, hyp, (SIZE, SIZE))

    def criterion_of(model: Model) -> AnchorLoss:
        return build_criterion(model.head, hyp, (SIZE, SIZE))

    teachers = [] if any(role.kind == "self" for role in hyp.teachers) else [teacher]
    return build_distillation(student, criterion, teachers, hyp, gains=criterion.gains, criterion_of=criterion_of)


def half(index: int) -> Batch:
    """Two images with three boxes each; `index` chooses which."""
    generator = torch.Generator().manual_seed(100 + index)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    centres, sides = (torch.rand(6, 2, generator=generator) * 0.4 + low for low in (0.3, 0.1))
    targets = torch.cat((torch.arange(6).view(6, 1) % 2, torch.arange(6).view(6, 1) // 3, centres, sides), 1)
    return Batch(images, targets.float(), torch.ones(2, dtype=torch.bool))


class FiveSteps:
    """Epochs of five steps; each rank has its own images."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        return (half(10 * self.rank + step) for step in range(5))

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Every epoch is the same."""


def optimizer(task: torch.nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(task, Recipe("SGD", 0.01, 0.9, 0.1), 5e-4)


def train(task: DistillationTask, rank: int, folder: Path, epochs: int) -> dict[str, Any]:
    """The task's state after so many epochs."""
    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_epochs=0), "linear", batch_size=32)
    plan = Plan(folder, epochs, CPU, None, timetable, stride=32)
    Trainer(task, optimizer(task), FiveSteps(rank), None, plan).fit()
    return task.state_dict()


def gradients(task: torch.nn.Module, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    task.train()
    task.at(Progress(0, 0, 4, 10))
    torch.stack(list(module(batch).values())).sum().backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def main(folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    seen: dict[str, object] = {}

    task = distillation()
    seen["halves"] = gradients(task, wrap(task, CPU), half(rank))
    task = distillation()
    module = wrap(task, CPU)
    task.train()
    task.at(Progress(0, 0, 4, 10))
    terms = module(half(0))
    torch.stack(list(terms.values())).sum().backward()
    seen["same"] = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    seen["terms"] = {name: value.detach() for name, value in terms.items()}

    seen["after"] = train(distillation(), rank, folder / "run", epochs=2)  # in the second the teacher is off
    seen["moving"] = train(distillation(**MOVING), rank, folder / "moving", epochs=3)
    task = distillation()
    compile_networks(task.networks(), one_shape=True, graphs=False, backend="eager")
    seen["compiled"] = train(task, rank, folder / "compiled", epochs=2)
    seen["graphs"] = counters["stats"]["unique_graphs"]
    distributed.barrier()
    torch.save(seen, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
