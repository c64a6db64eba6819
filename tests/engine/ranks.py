"""What each of two gloo ranks does in test_distributed.py: run by torchrun, writes what it saw to a folder."""

from __future__ import annotations

import os
import signal
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
from engine.evaluator import Evaluator
from engine.optim import Recipe, Timetable, build_optimizer
from engine.plan import Plan
from engine.stepper import wrap
from engine.trainer import Trainer
from losses.anchor import AnchorLoss
from losses.build import build_criterion
from models.families import read_spec
from models.weights import Checkpoint, read_checkpoint
from models.yolo import Model
from utils.hyp import Balance, Hyp, Schedule, TeacherRole
from utils.interruption import Interrupted
from utils.phases import Phase
from utils.types import Batch, Frame, Progress

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
        self.first = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        return (half(10 * self.rank + step) for step in range(self.first, 5))

    def set_epoch(self, epoch: int, mosaic: bool = True, first: int = 0) -> None:
        """Every epoch is the same."""
        self.first = first


def optimizer(task: torch.nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(task, Recipe("SGD", 0.01, 0.9, 0.1), 5e-4)


class Unlabelled(FiveSteps):
    """One of the ranks has no labels at all."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            yield batch._replace(targets=batch.targets[:0]) if self.rank == 1 else batch


def evaluator(rank: int, world_size: int) -> Evaluator:
    """Over three batches, of which each rank has those of its turns."""
    frame = Frame(SIZE, SIZE, 1, 1, 0, 0)
    batches = [half(n)._replace(paths=(f"{n}a", f"{n}b"), frames=(frame, frame)) for n in range(3)]
    return Evaluator(batches[rank::world_size], CPU, names=("a", "b"), collect=True)


def scores(rank: int, world_size: int) -> dict[str, Any]:
    """What a student comes to, every number of it."""
    task = distillation()
    report = evaluator(rank, world_size)(task.model, task.criterion, progress=False)
    found, losses = report.evaluation, report.losses or {}
    return {
        "map": found.map,
        "means": [found.precision, found.recall, found.map50, *losses.values()],
        "classes": [list(vars(result).values()) for result in found.per_class],
        "curves": torch.from_numpy(found.curves.precision_at_recall),
        "confusion": torch.from_numpy(report.confusion.matrix),
        "images": [report.images, found.images, found.labels],
        "paths": [one.path for one in report.detections],
        "found": torch.cat([torch.from_numpy(one.found) for one in report.detections]),
    }


def validated(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Student, average and fitness of a run that is validated, and of which one rank has no labels."""
    task = distillation(schedule=Schedule())
    own = trainer(task, Unlabelled(rank), folder, epochs=1, evaluator=evaluator(rank, world_size))
    outcome = own.fit()
    return {"task": task.state_dict(), "average": own.ema.model.state_dict(), "fitness": outcome.best_fitness}


def trainer(
    task: DistillationTask, loader: FiveSteps, folder: Path, epochs: int, evaluator: Evaluator | None = None
) -> Trainer:
    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_epochs=0), "linear", batch_size=32)
    plan = Plan(folder, epochs, CPU, None, timetable, stride=32)
    return Trainer(task, optimizer(task), loader, evaluator, plan)


def train(task: DistillationTask, rank: int, folder: Path, epochs: int) -> dict[str, Any]:
    """The task's state after so many epochs."""
    trainer(task, FiveSteps(rank), folder, epochs).fit()
    return task.state_dict()


class Told(FiveSteps):
    """One of the ranks gets a signal while it makes its third batch; the other learns of it."""

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(super().__iter__()):
            if step == 2 and self.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


class Poisoned(FiveSteps):
    """One of the ranks has a batch that is not a number."""

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(super().__iter__()):
            yield batch._replace(images=batch.images * float("nan")) if (step, self.rank) == (1, 1) else batch


def interrupted(rank: int, folder: Path) -> tuple[tuple[int, int], dict[str, Any]]:
    """Epoch and step at which a run ends that is told to, and its state after it has gone on to its end."""
    try:
        trainer(distillation(), Told(rank), folder, epochs=2).fit()
    except Interrupted:
        saved = distributed_checkpoint(folder)
    assert saved.training is not None
    again = trainer(distillation(), FiveSteps(rank), folder, epochs=2)
    again.resume(saved.state, saved.training)
    stopped = (again.start_epoch, again.passed.step)
    again.fit()
    return stopped, again.task.state_dict()


def distributed_checkpoint(folder: Path) -> Checkpoint:
    """last.pt, once rank 0 has written it."""
    distributed.barrier()
    return read_checkpoint(folder / "weights/last.pt")


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
    seen["stopped"], seen["went on"] = interrupted(rank, folder / "interrupted")
    poisoned = trainer(distillation(schedule=Schedule()), Poisoned(rank), folder / "poisoned", epochs=1)
    poisoned.fit()
    seen["poisoned"], seen["poisoned steps"] = poisoned.task.state_dict(), poisoned.stepper.count
    seen["scores"] = scores(rank, 2)
    seen["validated"] = validated(rank, 2, folder / "validated")
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
