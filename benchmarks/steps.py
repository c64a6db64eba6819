r"""What a training step costs, where its time goes, what a teacher adds, and how much memory it takes.

    python benchmarks/steps.py --data bccd.yaml --models yolov5n yolov5s yolov5m yolov8n yolov8s \
        --imgsz 320 --batch-size 8 16 --peer yolov5=PYTHON ultralytics=PYTHON

A row a model and batch size, from scratch; medians over rounds, in each of which everything of the row runs once:

- *ours*: a step of engine/trainer.py itself, from uint8 images to the averaged weights, in the precision of a run
  without flags; *float32*: the same with `--amp off`.
- *yolov5*, *ultralytics*: the same architecture there, on the same batch: its model, its detection loss, SGD, clipped
  gradients, its average of the weights; eager and in float32 on a CPU, with its automatic mixed precision on a GPU.
  Ratios are peer / ours: above 1, ours is faster. A model has the peer that publishes it, if `--peer` says where.
- *with teacher*: ours with the default methods (`--d_output --d_feature`) and a frozen teacher, the next larger model
  (`--teacher` names another); *overhead*: that step over the sum of the student's and of the bare forward pass of the
  teacher.

Every step here ends with one of the optimizer (SGD on both sides); a run of batches smaller than the nominal 64 makes
fewer of these than batches. *Memory*: by how much a fresh process grew, from behind the imports to the peak of three
steps, in megabytes: on a CPU resident memory, on a GPU what was allocated there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.measured import peak_rss
from benchmarks.peers import NONE, Peer, machine, markdown, ratio, read_peers, rounds
from data.loader import train_loader
from data.spec import DataSpec, read_data
from distill.build import build_distillation
from distill.teacher import Teacher
from engine.optim import Timetable, build_optimizer, choose, decay_scale
from engine.plan import Plan
from engine.precision import choose_device, choose_precision, teacher_precision
from engine.start import family_of
from engine.task import DetectionTask
from engine.trainer import Trainer
from losses.build import build_criterion
from models.weights import load_model
from models.yolo import Model
from utils.errors import UserError, exits_cleanly
from utils.family import for_family
from utils.hyp import read_hyp
from utils.reproduce import seed_everything
from utils.types import Batch, Progress

LARGER = {"t": "s", "n": "s", "s": "m", "m": "l", "c": "e", "l": "x"}  # the size of a model -> that of its teacher
PEAK_STEPS = 3  # the second is the first with the optimizer's state in memory, and one more for what settles late

# What both peers are asked, whatever `make` gives: a model, its loss, and an average of its weights.
COMMON = """
import sys, time
import numpy, torch

held = {}

def now(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()

def resident():
    with open("/proc/self/status") as file:
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.startswith("Vm")}
    return found["VmRSS"], found["VmHWM"]

def prepare(name, classes, file, device, threads):
    held.clear()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch = numpy.load(file)
    held["images"], held["targets"] = (torch.from_numpy(batch[key]) for key in ("images", "targets"))
    model, loss, average = make(name, classes, device, max(held["images"].shape[2:]))
    groups = {"weights": [], "norms": [], "biases": []}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "biases" if parameter_name.endswith("bias") else "norms" if parameter.ndim < 2 else "weights"
            groups[kind].append(parameter)
    decays = [{"params": found, "weight_decay": 5e-4 * (kind == "weights")} for kind, found in groups.items()]
    held["optimizer"] = torch.optim.SGD(decays, lr=1e-5, momentum=0.9, nesterov=True)
    held["scaler"] = torch.amp.GradScaler(device.split(":")[0], enabled=device.startswith("cuda"))
    held.update(model=model, loss=loss, average=average, device=device)

def step():
    model, optimizer, scaler, device = (held[name] for name in ("model", "optimizer", "scaler", "device"))
    marks = [now(device)]
    images = held["images"].to(device, non_blocking=True).float() / 255
    with torch.autocast(device.split(":")[0], enabled=device.startswith("cuda"), dtype=torch.float16):
        prediction = model(images)
        marks.append(now(device))
        loss = held["loss"](prediction, images, held["targets"].to(device))
    marks.append(now(device))
    scaler.scale(loss).backward()
    marks.append(now(device))
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    marks.append(now(device))
    held["average"].update(model)
    marks.append(now(device))
    names = ("forward", "loss", "backward", "optimizer", "average")
    parts = {name: after - before for name, before, after in zip(names, marks, marks[1:])}
    return {"step": marks[-1] - marks[0], "teacher": 0.0, **parts}

def peak(count, **options):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # what the imports took for a moment is no peak of a step
    before = resident()[0]
    prepare(**options)
    for _ in range(count):
        step()
    if options["device"].startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resident()[1] - before
"""

SNIPPETS = {
    # gains as its published hyper-parameters, scaled as it says: by levels, classes and image size
    "yolov5": COMMON
    + """
import pathlib
import yolov5
from yolov5.models.yolo import Model
from yolov5.utils.loss import ComputeLoss
from yolov5.utils.torch_utils import ModelEMA

def make(name, classes, device, size):
    folder = pathlib.Path(yolov5.__file__).parent / "models"
    model = Model(str(folder / f"{name}.yaml"), ch=3, nc=classes).to(device).train()
    model.hyp = {
        "box": 0.05, "cls": 0.5 * classes / 80, "obj": (size / 640) ** 2, "cls_pw": 1.0, "obj_pw": 1.0,
        "anchor_t": 4.0, "fl_gamma": 0.0, "label_smoothing": 0.0,
    }
    compute = ComputeLoss(model)
    return model, lambda prediction, images, targets: compute(prediction, targets)[0].sum(), ModelEMA(model)
""",
    "ultralytics": COMMON
    + """
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import ModelEMA

def make(name, classes, device, size):
    model = DetectionModel(f"{name}.yaml", nc=classes, verbose=False).to(device).train()
    model.args = get_cfg()
    def loss(prediction, images, targets):
        batch = {"img": images, "batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:]}
        return model.loss(batch, prediction)[0].sum()
    return model, loss, ModelEMA(model)
""",
}


class Parts(NamedTuple):
    """Seconds of one step. What is in none of the parts belongs to the step all the same."""

    step: float
    teacher: float  # its forward pass, 0 without one
    forward: float  # of the student, with the batch's way to the device
    loss: float  # detection and imitation
    backward: float
    optimizer: float  # clipping, step, zeroing
    average: float  # of the weights (EMA)


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    pythons = read_peers(options.peer)
    if options.peak_of:
        print(json.dumps({"peak": own_peak(options)}))
        return
    device = choose_device(options.device)
    precision = choose_precision(device, options.amp)
    rows = []
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        peers = {name: stack.enter_context(Peer(name, path, SNIPPETS[name])) for name, path in pythons.items()}
        for name in options.models:
            for size in options.batch_size:
                rows.append(measure(Job(name, size, options, device, precision, Path(folder)), peers))
                print(f"{name}, batch {size}: {1000 * rows[-1].ours:.0f} ms a step", file=sys.stderr)
    memory = [] if options.no_memory else [peaks(name, options, words, pythons, device) for name in options.models]
    print(report(rows, memory, list(pythons), f"{machine('steps.py', words, precision or torch.float32)}"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="steps.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", required=True, help="the batch is the first one of its training images")
    made.add_argument("--models", nargs="+", default=["yolov5n", "yolov5s", "yolov5m"], help="architectures")
    made.add_argument("--teacher", default="", help="architecture or weights; the default is one size larger")
    made.add_argument("--imgsz", type=int, default=320)
    made.add_argument("--batch-size", type=int, nargs="+", default=[8, 16])
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    made.add_argument("--amp", default="auto", help="as in train.py")
    made.add_argument("--device", default="")
    made.add_argument("--no-memory", action="store_true")
    made.add_argument("--peak-of", choices=("student", "teacher"), help=argparse.SUPPRESS)  # a fresh process of its own
    return made


# -- one step of ours --------------------------------------------------------------------------------------------------


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

    def __init__(self, job: Job, batch: Batch, data: DataSpec, teacher: str, precision: torch.dtype | None) -> None:
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
        recipe = replace(choose("SGD", hyp, 1, data.num_classes), momentum=0.9)
        optimizer = build_optimizer(task, recipe, hyp.weight_decay * decay_scale(job.batch_size, hyp.nominal_batch))
        timetable = Timetable(recipe, hyp, "linear", job.batch_size)
        plan = Plan(job.folder, 100, device, precision, timetable, model.stride)
        self.trainer = Trainer(task, optimizer, None, None, plan)
        self.batch, self.device, self.count = batch, device, 0
        self.asked: tuple[Any, Any] = ((), {})
        self.clock = Clock(device)
        for name, module in (("task", task), ("model", model), ("teacher", self.guide)):
            if module is not None:
                self.clock.watch(name, module)
        if self.guide is not None:
            self.guide.register_forward_pre_hook(self._remember, with_kwargs=True)
        average: Any = WatchedAverage(self.trainer.ema, self.clock)
        self.trainer.ema = average
        task.train()

    def __call__(self) -> Parts:
        trainer, clock = self.trainer, self.clock
        # a run of many long epochs, in whose warm-up we are: no step moves the weights far
        progress = Progress(0, self.count % 1000, 100, 1000)
        self.count += 1
        clock.marks.clear()
        trainer.plan.timetable.apply(trainer.optimizer, progress)
        self._wait()
        started = time.perf_counter()
        clock.mark("start")
        trainer._forward_backward(trainer.task, self.batch, progress, True)
        clock.mark("backward out")
        trainer._step()
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


# -- rows --------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """All rounds of one model and batch size."""

    job: Job
    parts: dict[str, list[Parts]]  # of "ours", "float32", "with teacher", and of a peer by its name
    bare: list[float]  # seconds of the teacher's forward pass alone
    peer: str  # '' for none

    @property
    def ours(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds("ours"))

    @property
    def overhead(self) -> float:
        """Step with teacher ÷ (student's step + bare forward pass of the teacher), of medians."""
        together = statistics.median(self.seconds("with teacher"))
        return together / (self.ours + statistics.median(self.bare))

    def seconds(self, name: str) -> list[float]:
        return [parts.step for parts in self.parts[name]]


def measure(job: Job, peers: dict[str, Peer]) -> Row:
    data = read_data(job.options.data)
    batch = first_batch(data, job.batch_size, job.options.imgsz)
    ours = Step(job, batch, data, "", job.precision)
    taught = Step(job, batch, data, job.teacher, job.precision)
    jobs: dict[str, Callable[[], Any]] = {"ours": ours, "with teacher": taught, "teacher alone": taught.teach}
    if job.precision is not None:
        jobs["float32"] = Step(job, batch, data, "", None)
    peer = publisher(job.model, list(peers))
    if peer:
        peers[peer].ask("prepare", **wishes(job, batch, data))
        jobs[peer] = lambda: Parts(**peers[peer].ask("step"))
    found = rounds(jobs, job.options.rounds, warm_up=2)
    return Row(job, found, found.pop("teacher alone"), peer)


def publisher(model: str, peers: Sequence[str]) -> str:
    """Which of these peers has this architecture; '' for none."""
    wanted = "yolov5" if re.fullmatch(r"yolov5[nsmlx]", model) else "ultralytics"
    known = wanted == "yolov5" or re.fullmatch(r"yolo(v8|11|12|26)[nsmlx]|yolov9[tsmce]|yolov10[nsmblx]", model)
    return wanted if wanted in peers and known else ""


def wishes(job: Job, batch: Batch, data: DataSpec) -> dict[str, Any]:
    """What a peer needs to make the same step, the batch in a file."""
    file = job.folder / "batch.npz"
    np.savez(file, images=batch.images.numpy(), targets=batch.targets.numpy())
    return {
        "name": job.model,
        "classes": data.num_classes,
        "file": str(file),
        "device": str(job.device),
        "threads": torch.get_num_threads(),
    }


# -- memory ------------------------------------------------------------------------------------------------------------


class Peaks(NamedTuple):
    """Bytes by which a fresh process grew."""

    job: Job
    student: float
    taught: float
    peer: float | None


def peaks(
    name: str, options: argparse.Namespace, words: list[str], pythons: dict[str, str], device: torch.device
) -> Peaks:
    """Of steps with the largest batch."""
    job = Job(name, max(options.batch_size), options, device, None, Path())
    student, taught = (_in_a_fresh_process(job, words, kind) for kind in ("student", "teacher"))
    peer = publisher(name, list(pythons))
    if not peer:
        return Peaks(job, student, taught, None)
    data = read_data(options.data)
    batch = first_batch(data, job.batch_size, options.imgsz)
    with tempfile.TemporaryDirectory() as folder, Peer(peer, pythons[peer], SNIPPETS[peer]) as one:
        found = one.ask("peak", count=PEAK_STEPS, **wishes(job._replace(folder=Path(folder)), batch, data))
    return Peaks(job, student, taught, found)


def _in_a_fresh_process(job: Job, words: list[str], kind: str) -> float:
    """This script, asked for one number."""
    only = ["--models", job.model, "--batch-size", str(job.batch_size), "--peer", "--peak-of", kind]
    command = [sys.executable, str(Path(__file__).resolve()), *words, *only]  # of a flag given twice, the last counts
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"memory of {job.model}: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


def own_peak(options: argparse.Namespace) -> int:
    """Bytes by which this process grows in a few steps."""
    device = choose_device(options.device)
    data = read_data(options.data)
    batch = first_batch(data, options.batch_size[0], options.imgsz)  # before: a peer gets it ready, too
    forget_peak()
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        precision = choose_precision(device, options.amp)
        job = Job(options.models[0], options.batch_size[0], options, device, precision, Path(folder))
        step = Step(job, batch, data, job.teacher if options.peak_of == "teacher" else "", job.precision)
        for _ in range(PEAK_STEPS):
            step()
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resident(peak=True) - before


def resident(peak: bool = False) -> int:
    """Bytes of this process, now or at the most.

    `resource` counts in what the parent had when it started us, so on Linux the system's own file is read.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_rss()
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else peak_rss()


def forget_peak() -> None:
    """What the imports took for a moment is no peak of a step. Linux alone can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# -- tables ------------------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], memory: Sequence[Peaks], peers: Sequence[str], where: str) -> str:
    """Markdown."""
    absent = ", ".join(sorted(set(SNIPPETS) - set(peers)))
    parts = [
        where,
        *([f"Not given by --peer, so not measured: {absent}."] if absent else []),
        "Training step, milliseconds (medians); peer / ours above 1: ours is faster.",
        speed_table(rows),
        "A step with the default methods and a frozen teacher, milliseconds.",
        teacher_table(rows),
        "Where the time goes, milliseconds (medians of each, so that they need not add up).",
        parts_table(rows),
    ]
    if memory:
        parts += [f"Growth of a fresh process to the peak of {PEAK_STEPS} steps, megabytes.", memory_table(memory)]
    return "\n\n".join(parts)


def speed_table(rows: Sequence[Row]) -> str:
    head = ["model", "batch", "ours", "float32", "float32 / ours", "peer", "its step", "peer / ours", "peer / float32"]
    cells = []
    for row in rows:
        plain = row.seconds("float32") if "float32" in row.parts else row.seconds("ours")
        other = row.seconds(row.peer) if row.peer else []
        cells.append(
            [
                *(row.job.model, str(row.job.batch_size), _ms(row.seconds("ours")), _ms(plain)),
                f"{ratio(plain, row.seconds('ours')):.2f}",
                *(row.peer or NONE, _ms(other)),
                *(f"{ratio(other, own):.2f}" if other else NONE for own in (row.seconds("ours"), plain)),
            ]
        )
    return markdown(head, cells)


def teacher_table(rows: Sequence[Row]) -> str:
    head = ["student", "teacher", "batch", "student alone", "teacher alone", "together", "overhead"]
    return markdown(
        head,
        [
            [
                *(row.job.model, Path(row.job.teacher).name, str(row.job.batch_size), _ms(row.seconds("ours"))),
                *(_ms(row.bare), _ms(row.seconds("with teacher")), f"{row.overhead:.3f}"),
            ]
            for row in rows
        ],
    )


def parts_table(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        for name, found in row.parts.items():
            columns = [statistics.median(column) for column in zip(*found, strict=True)]
            cells.append([row.job.model, str(row.job.batch_size), name, *(f"{1000 * value:.1f}" for value in columns)])
    return markdown(["model", "batch", "whose", *Parts._fields], cells)


def memory_table(memory: Sequence[Peaks]) -> str:
    cells = []
    for one in memory:
        peer = [NONE, NONE] if one.peer is None else [f"{one.peer / 1e6:.0f}", f"{one.peer / one.student:.2f}"]
        values = [f"{one.student / 1e6:.0f}", f"{one.taught / 1e6:.0f}"]
        cells.append([one.job.model, Path(one.job.teacher).name, str(one.job.batch_size), *values, *peer])
    return markdown(["student", "teacher", "batch", "student alone", "with teacher", "peer", "peer / ours"], cells)


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f}" if seconds else NONE


if __name__ == "__main__":
    main()
