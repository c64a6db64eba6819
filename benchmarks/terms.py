"""What each method's term costs, and how hard it pulls.

    python benchmarks/terms.py --weights yolov5n.pt --t_weights best.pt --data bccd.yaml --imgsz 320 --batch-size 16

A row a method, alone and with its default options:

- *cost*: its own arithmetic as a share of a step of the student alone (forward and backward): losses and adapters,
  from what student and teacher have put out to the gradient on the student's. Timed by itself, right after both have
  run; as a difference of whole steps it would drown in their noise. The teacher's forward pass has a column of its own.
  Medians over rounds, in each of which every variant runs once, so that a machine that slows down slows all of them.
- *pull*: norm of its gradient on the student's body (all but the head) over that of the detection loss, at weight 1
  and at its default weight, for the weights given: early in a training, when most is to be learned.

`--recipe` adds a row for what a recipe names, such as `--recipe finetune distill`; without it the row is what runs
when nobody says anything (`--d_feature` without a recipe).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from data.loader import train_loader
from data.spec import read_data
from distill.build import build_distillation
from distill.course import layers_of
from distill.features import FEATURES
from distill.outputs import OUTPUTS
from distill.task import DistillationTask
from distill.teacher import Teacher, watch
from engine.precision import autocast, choose_device, choose_precision, teacher_precision
from engine.start import family_of
from engine.task import DetectionTask
from losses.build import build_criterion
from models.weights import load_model
from utils.errors import exits_cleanly
from utils.family import for_family
from utils.hyp import Hyp, read_hyp
from utils.registry import find
from utils.reproduce import seed_everything
from utils.types import Batch, Prediction

METHODS = {**OUTPUTS, **FEATURES}


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    for name in options.methods:
        find("method", name, METHODS)
    print(table(Bench(options)))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--weights", required=True)
    made.add_argument("--t_weights", required=True)
    made.add_argument("--data", required=True)
    made.add_argument("--recipe", nargs="+", default=["finetune"])
    made.add_argument("--methods", nargs="*", default=[*METHODS])
    made.add_argument("--imgsz", type=int, default=320)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--device", default="")
    return made


class Bench:
    """Student, teacher and one batch of real images, and a task for each method."""

    def __init__(self, options: argparse.Namespace) -> None:
        seed_everything(0)
        self.options = options
        self.device = choose_device(options.device)
        self.precision = choose_precision(self.device, "auto")
        data, size = read_data(options.data), (options.imgsz, options.imgsz)
        self.student, _ = load_model(options.weights, num_classes=data.num_classes, names=data.names)
        self.teacher, _ = load_model(options.t_weights)
        for model in (self.student, self.teacher):
            model.to(self.device).to(memory_format=torch.channels_last)
        if not (self.student.spec.anchor_free or self.teacher.spec.anchor_free):
            self.student.head.set_anchors_px(self.teacher.head.anchors_px)
        self.hyp = for_family(read_hyp(*options.recipe), family_of(self.student.spec))
        self.criterion = build_criterion(self.student.head, self.hyp, size).to(self.device)
        loader = train_loader(data, self.hyp, image_size=size, batch_size=options.batch_size, stride=32, seed=0)
        self.batch: Batch = next(iter(loader)).to(self.device, torch.channels_last)

    def task(self, **methods: Any) -> DistillationTask:
        hyp: Hyp = replace(self.hyp, teachers=(), phases=(), **methods)
        half = teacher_precision(self.device, self.precision)
        gains: Any = self.criterion.gains
        return build_distillation(
            self.student, self.criterion, [self.teacher], hyp, gains=gains, frozen=lambda model: Teacher(model, half)
        ).train()

    def alone(self, name: str, **options: Any) -> DistillationTask:
        kind, other = ("outputs", "features") if name in OUTPUTS else ("features", "outputs")
        return self.task(**{kind: {name: options}, other: {}})

    def step(self) -> Callable[[], None]:
        """The student alone, forward and backward of one batch."""
        task = DetectionTask(self.student, self.criterion).train()

        def run() -> None:
            with autocast(self.device, self.precision):
                terms = task(self.batch)
            torch.stack(list(terms.values())).sum().backward()
            task.zero_grad(set_to_none=True)

        return run

    def imitate(self, task: DistillationTask) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """The student's forward pass, the teacher's, and what the task does with both, forward and backward."""
        course: Any = task.courses[0]
        layers = layers_of([course])
        seen: dict[str, Any] = {}

        def ask_student() -> None:
            with autocast(self.device, self.precision):
                prediction, found = watch(task.model, self.batch.images, layers)
            assert prediction is not None
            own = Prediction(*(tuple(_as_leaf(level) for level in levels) for levels in prediction))
            seen["own"] = own, {layer: _as_leaf(map_) for layer, map_ in zip(layers, found, strict=True)}

        def ask_teacher() -> None:
            seen["shown"] = course.show(self.batch)

        def compare() -> None:
            with autocast(self.device, self.precision):
                terms = course(*seen["own"], seen["shown"], self.batch)
            torch.stack(list(terms.values())).sum().backward()
            task.zero_grad(set_to_none=True)

        return ask_student, ask_teacher, compare

    def pull(self, task: DistillationTask, names: list[str]) -> float:
        """Norm of the gradient of some terms on the student's body, in float32."""
        terms = task(self.batch)
        last = f"model.{len(self.student.model) - 1}."
        body = [value for name, value in self.student.named_parameters() if not name.startswith(last)]
        total: Tensor = torch.stack([terms[name] for name in names]).sum()
        found = torch.autograd.grad(total, body, allow_unused=True)
        return torch.stack([value.norm() for value in found if value is not None]).norm().item()

    def milliseconds(self, jobs: dict[str, Callable[[], None]]) -> dict[str, float]:
        """Median time of each, all of them once a round."""
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for count in tqdm(range(self.options.rounds + 1), desc="rounds"):
            for name, job in jobs.items():
                started = time.perf_counter()
                job()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                if count:  # the first warms up
                    times[name].append(1000 * (time.perf_counter() - started))
        return {name: statistics.median(values) for name, values in times.items()}


def table(bench: Bench) -> str:
    """Markdown."""
    tasks = {name: bench.alone(name) for name in bench.options.methods}
    tasks[f"recipe {' '.join(bench.options.recipe)}"] = bench.task()
    jobs: dict[str, Callable[[], None]] = {"student": bench.step()}
    for name, task in tasks.items():
        parts = bench.imitate(task)
        jobs |= dict(zip((f"student for {name}", f"teacher for {name}", name), parts, strict=True))
    times = bench.milliseconds(jobs)
    one = next(iter(tasks.values()))
    detection = bench.pull(one, [name for name in one(bench.batch) if name not in one.term_names])
    step = times["student"]
    lines = [
        f"{bench.device}, {bench.precision or torch.float32}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; {bench.options.weights} <- {bench.options.t_weights}, {bench.options.imgsz} px, batch "
        f"{bench.options.batch_size}; a student's step is {step:.0f} ms",
        "",
        "| method | cost | teacher | pull at weight 1 | default weight | pull |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in tasks.items():
        cost, watched = times[name] / step, times[f"teacher for {name}"] / step
        pulled, weight = bench.pull(task, list(task.term_names)) / detection, default_weight(name)
        lines.append(
            f"| {name} | {cost:.1%} | {watched:.0%} | "
            f"{'' if weight is None else f'{pulled / weight:.3g}'} | {weight or ''} | {pulled:.2f} |"
        )
    return "\n".join(lines)


def _as_leaf(value: Tensor) -> Tensor:
    """The same values, where a gradient ends."""
    return value.detach().requires_grad_()


def default_weight(name: str) -> float | None:
    method = METHODS.get(name)
    return None if method is None else method.default_weight


if __name__ == "__main__":
    main()
