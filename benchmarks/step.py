"""One training step of ours: the trainer's own, on one batch, with a clock at its joints."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data.loader import train_loader
from data.spec import DataSpec
from distill.build import build_distillation
from distill.teacher import Teacher
from engine.compiled import compile_networks
from engine.optim import Timetable, build_optimizer, choose, decay_scale
from engine.plan import Plan
from engine.precision import teacher_precision
from engine.start import family_of
from engine.task import DetectionTask
from engine.trainer import Trainer
from losses.build import build_criterion
from models.weights import load_model
from models.yolo import Model
from utils.errors import UserError
from utils.family import for_family
from utils.hyp import read_hyp
from utils.reproduce import seed_everything
from utils.types import Batch, Progress

LARGER = {"t": "s", "n": "s", "s": "m", "m": "l", "c": "e", "l": "x"}  # the size of a model -> that of its teacher


class Parts(NamedTuple):
    """Seconds of one step. What is in none of the parts belongs to the step all the same."""

    step: float
    teacher: float  # its forward pass, 0 without one
    forward: float  # of the student, with the batch's way to the device
    loss: float  # detection and imitation
    backward: float
    optimizer: float  # clipping, step, zeroing
    average: float  # of the weights (EMA)


class Job(NamedTuple):
    """What one row measures."""

    model: str
    batch_size: int
    options: argparse.Namespace
    device: torch.device
    precision: torch.dtype | None
    folder: Path

    @property
    def teacher(self) -> str:
        return self.options.teacher or larger(self.model)


class Clock:
    """Notes moments of a step at the borders of modules; on a GPU on its own time line, so that nobody waits."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: dict[str, Any] = {}

    def mark(self, name: str, *_: Any) -> None:
        moment: Any = time.perf_counter()
        if self.on_gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self.marks[name] = moment

    def watch(self, name: str, module: nn.Module) -> None:
        """Notes when a module is entered and left."""
        module.register_forward_pre_hook(lambda *_: self.mark(f"{name} in"))
        module.register_forward_hook(lambda *_: self.mark(f"{name} out"))

    def between(self, first: str, second: str) -> float:
        """Seconds; 0 where one was not reached."""
        before, after = self.marks.get(first), self.marks.get(second)
        if before is None or after is None:
            return 0.0
        return float(before.elapsed_time(after)) / 1000 if self.on_gpu else float(after - before)


class WatchedAverage:
    """The trainer's average, between two marks."""

    def __init__(self, average: Any, clock: Clock) -> None:
        self.model, self.average, self.clock = average.model, average, clock

    def update(self, model: nn.Module) -> None:
        self.clock.mark("average in")
        self.average.update(model)
        self.clock.mark("average out")


class Step:
    """A model in the real loop, on one batch. Called, it makes a step and tells what took how long.

    Args:
        teacher: architecture or weights, '' for none.
        precision: of the step, None for float32.
    """

    def __init__(
        self,
        job: Job,
        batch: Batch,
        data: DataSpec,
        teacher: str,
        precision: torch.dtype | None,
        compiled: bool = False,
    ) -> None:
        seed_everything(0)
        model, device = made(job.model, data), job.device
        family = family_of(model.spec)
        hyp = for_family(read_hyp(family.recipe), family)
        criterion = build_criterion(model.head, hyp, _size(batch)).to(device)
        model.to(device).to(memory_format=torch.channels_last)
        self.guide: Any = None
        task: Any = DetectionTask(model, criterion)
        if teacher:
            frozen = partial(Teacher, half=teacher_precision(device, precision))
            guide = made(teacher, data).to(device)
            gains: Any = criterion.gains
            task = build_distillation(model, criterion, [guide], hyp, gains=gains, frozen=frozen)
            self.guide = task.courses[0].guide
        task = task.to(device)
        if compiled:
            compile_networks(task.networks(), one_shape=True, graphs=True)
        recipe = replace(choose("SGD", hyp, 1, data.num_classes), momentum=0.9)
        optimizer = build_optimizer(task, recipe, hyp.weight_decay * decay_scale(job.batch_size, hyp.nominal_batch))
        timetable = Timetable(recipe, hyp, "linear", job.batch_size)
        plan = Plan(job.folder, 100, device, precision, timetable, model.stride, compile=compiled)
        self.trainer = Trainer(task, optimizer, None, None, plan)
        self.batch, self.device, self.count = batch, device, 0
        self.asked: tuple[Any, Any] = ((), {})
        self.clock = Clock(device)
        for name, module in (("task", task), ("model", model), ("teacher", self.guide)):
            if module is not None and not compiled:  # a clock within breaks what is compiled into pieces
                self.clock.watch(name, module)
        if self.guide is not None:
            self.guide.register_forward_pre_hook(self._remember, with_kwargs=True)
        self.trainer.stepper.begin(Progress(0, 0, 100, 1000))
        average: Any = WatchedAverage(self.trainer.ema, self.clock)
        self.trainer.stepper.ema = average

    def __call__(self) -> Parts:
        stepper, clock = self.trainer.stepper, self.clock
        # a run of many long epochs, in whose warm-up we are: no step moves the weights far
        progress = Progress(0, self.count % 1000, 100, 1000)
        self.count += 1
        clock.marks.clear()
        self._wait()
        started = time.perf_counter()
        clock.mark("start")
        terms = stepper.forward_backward(self.batch, progress, True)
        clock.mark("backward out")
        stepper.finish(terms, progress, True)
        clock.mark("end")
        self._wait()
        return self._parts(time.perf_counter() - started)

    def teach(self) -> float:
        """Seconds of the teacher's forward pass alone, asked as in the last step."""
        args, kwargs = self.asked
        self._wait()
        started = time.perf_counter()
        self.guide(*args, **kwargs)
        self._wait()
        return time.perf_counter() - started

    def _parts(self, step: float) -> Parts:
        between = self.clock.between
        teacher, student = between("teacher in", "teacher out"), between("model in", "model out")
        average = between("average in", "average out")
        return Parts(
            step=step,
            teacher=teacher,
            forward=between("start", "task in") + student,
            loss=between("task in", "task out") - student - teacher,
            backward=between("task out", "backward out"),
            optimizer=between("backward out", "end") - average,
            average=average,
        )

    def _remember(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.asked = (args, kwargs)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def made(name: str, data: DataSpec) -> Model:
    """A model of weights or, from scratch, of an architecture."""
    if Path(name).suffix in (".pt", ".pth"):
        return load_model(name)[0]
    return load_model("", name, num_classes=data.num_classes, names=data.names)[0]


def larger(name: str) -> str:
    """The architecture one size above, such as yolov5m of yolov5s.

    Raises:
        UserError: the name does not say its size, or there is none above.
    """
    size = re.search(rf"[{''.join(LARGER)}]$", name)
    if size is None:
        raise UserError(f"--models: no size above '{name}' is known; name the teacher, such as --teacher yolov5x")
    return name[:-1] + LARGER[size[0]]


def first_batch(data: DataSpec, batch_size: int, imgsz: int) -> Batch:
    """Augmented images, uint8, and their targets."""
    size = (imgsz, imgsz)
    loader = train_loader(data, read_hyp("scratch-low"), image_size=size, batch_size=batch_size, stride=32, seed=0)
    loader.set_epoch(0)
    batch: Batch = next(iter(loader))
    return batch


def _size(batch: Batch) -> tuple[int, int]:
    height, width = batch.images.shape[2:]
    return height, width
