"""--batch-size -1: the largest batch that fits into memory, found by a few real steps."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from data.labels import Labels
from data.picture import Size
from engine.optim import Recipe, Timetable, parameter_groups
from engine.options import Options
from engine.plan import Plan
from engine.stepper import Stepper
from engine.task import DetectionTask
from utils import dist
from utils.errors import UserError
from utils.faults import find_fault
from utils.hyp import Hyp
from utils.memory import forget_peak, free_memory, resident
from utils.types import Batch, Progress

if TYPE_CHECKING:
    from engine.session import Session

log = logging.getLogger(__name__)

OF_FREE_MEMORY = (
    0.8  # of the free memory; batches with many labels, validation, and whatever else runs there take the rest
)
MEASURED = {"cuda": 4, "cpu": 2}  # steps at least, of 2, 4, 8 ... images; a CPU takes seconds for one
SEEN = 32e6  # bytes by which a process has grown when it has used up what it had to spare
SMALLER = 0.8  # what is tried next where a step with the batch that was found does not fit after all
GREY = 114


class Memory(Protocol):
    """What steps take of a device's memory."""

    free: float  # bytes, before the first of them

    def forget(self) -> None:
        """What was taken so far is no longer the peak."""

    def peak(self) -> float:
        """Bytes beyond what was taken before, at the most."""


class Line(NamedTuple):
    """Bytes that a step takes."""

    base: float
    image: float

    def images(self, room: float) -> int:
        """So many fit."""
        return int(max(0.0, room - self.base) // max(self.image, 1.0))


# -- of a run ---------------------------------------------------------------------------------------------------------


def settle_batch(session: Session[Any], task: nn.Module) -> int:
    """The batch size of a run, over all ranks.

    It is measured with the task itself, which is as it was afterwards, and its teachers where they are. No more is
    taken than the recipe's nominal batch: that many images make a step of the optimizer anyway, larger batches make
    fewer of them. Several ranks may have the default batch each even where this is more.

    Raises:
        UserError: not even the smallest batch fits, or this system does not say how much memory is free.
    """
    ranks, unit = dist.world_size(), 4 if session.options.quad else 1
    nominal, images = session.hyp.nominal_batch, len(session.loader.dataset)
    most = max(unit, min(max(nominal, Options.batch_size * ranks), images) // ranks)
    memory = memory_of(session.device)
    if memory is None:
        raise UserError("--batch-size -1: this system does not say how much memory is free; name a number, such as 16")
    with _quiet(session.device):
        line, fits = _largest(session, task, memory, unit, most)
    least = dist.smallest(min(fits, most))
    if least < unit:
        height, width = session.image_size
        raise UserError(
            f"--batch-size -1: {unit} of {height} x {width} pixels do not fit into the {memory.free / 1e9:.1f} GB that "
            "are free; take a smaller --imgsz or a smaller model"
        )
    size = in_equal_parts(least * ranks, nominal, unit * ranks)
    log.info(
        "--batch-size -1: %d (%.2f GB and %.3f GB an image, of %.1f GB that are free%s)",
        *(size, line.base / 1e9, line.image / 1e9, memory.free / 1e9, " for each rank" if ranks > 1 else ""),
    )
    return size


def _largest(session: Session[Any], task: nn.Module, memory: Memory, unit: int, most: int) -> tuple[Line, int]:
    """What steps take, and how many images of this rank fit."""
    rehearsal, kind = Rehearsal(session, task), session.device.type
    line = fitted(measured(rehearsal, memory, unit, most, MEASURED[kind]))
    if kind == "cpu":  # where batches wait that the loader has ready
        line = line._replace(image=line.image + (2 * session.options.workers + 1) * 3 * math.prod(rehearsal.size))
    fits = line.images(OF_FREE_MEMORY * memory.free)
    while kind == "cuda" and min(fits, most) > 0 and not _fits(rehearsal, min(fits, most)):
        fits = int(SMALLER * min(fits, most))
    return line, fits


def in_equal_parts(fits: int, nominal: int, unit: int) -> int:
    """The largest batch of those that fit of which some make up the nominal batch, if not quite; in multiples of
    `unit`."""
    if fits < nominal:
        fits = nominal // math.ceil(nominal / fits)
    return max(unit, fits // unit * unit)


@contextlib.contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """Leaves no trace in chance, in the log, and in the device's memory."""
    before, devices = logging.root.manager.disable, [device] if device.type == "cuda" else []
    logging.disable(max(before, logging.INFO))
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        logging.disable(before)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)


def _fits(step: Callable[[int], None], images: int, prepare: Callable[[], object] = gc.collect) -> bool:
    prepare()
    try:
        step(images)
    except Exception as error:
        fault = find_fault(error)
        if fault is None or not fault.memory:
            raise
        return False
    return True


# -- steps ------------------------------------------------------------------------------------------------------------


class Rehearsal:
    """Makes the steps of a run with a copy of its task, an optimizer with two numbers a weight, and an average.

    Of a distillation, other terms may count in other epochs: the first, the middle, and the last have a step each.
    """

    def __init__(self, session: Session[Any], task: nn.Module) -> None:
        options, hyp = session.options, replace(session.hyp, phases=())
        clock = Timetable(Recipe("AdamW", 0.0, 0.9, 0.0), hyp, options.lr_decay, hyp.nominal_batch)
        self.plan: Plan = replace(session.plan(session.folder, clock), multi_scale=False, compile=False)
        self.labels: Labels = session.loader.dataset.labels
        self.seed = options.seed
        self.shown = images_in_one(hyp, options.rect)
        factor = 1.5 if options.multi_scale else 1.0
        height, width = (round(factor * side / self.plan.stride) * self.plan.stride for side in session.image_size)
        self.size: Size = (height, width)
        last = 0 if isinstance(task, DetectionTask) else self.plan.epochs - 1
        self.epochs = sorted({0, last // 2, last})
        own = copy.deepcopy(task)
        own.train()
        self.stepper = Stepper(own, torch.optim.AdamW(parameter_groups(own, 0.0)), self.plan)
        # gradients are stepped with as they come, and scaled ones overflow
        self.stepper.scaler = torch.amp.GradScaler(self.plan.device.type, enabled=False)

    def __call__(self, images: int) -> None:
        """Steps with so many images, of this rank."""
        rng = np.random.default_rng(self.seed)
        whole = (max(1, images // 4), 2) if self.plan.quad else (images, 1)
        batch = batch_like(self.labels, *whole, self.size, self.shown, rng)
        try:
            for epoch in self.epochs:
                self.stepper.forward_backward(batch, Progress(epoch, 0, self.plan.epochs, 1000), due=True)
            self.stepper.optimizer.step()
        finally:
            self.stepper.optimizer.zero_grad(set_to_none=True)


def images_in_one(hyp: Hyp, rect: bool) -> int:
    """Of so many images a sample has the labels."""
    if rect or not hyp.mosaic:
        return 1
    return 8 if hyp.mixup else 4


def batch_like(labels: Labels, images: int, tiles: int, size: Size, shown: int, rng: np.random.Generator) -> Batch:
    """A batch with the labels of images of the data set, and without their pixels, which take no other memory.

    Args:
        tiles: samples side by side, and one above the other, that make an image.
        shown: images that a sample is made of.
    """
    height, width = (tiles * side for side in size)
    rows = [
        np.concatenate([labels[int(index)] for index in rng.integers(labels.labelled, size=shown * tiles**2)])
        for _ in range(images)
    ]
    numbers = np.repeat(np.arange(images), [len(own) for own in rows]).astype(np.float32)
    return Batch(
        images=torch.full((images, 3, height, width), GREY, dtype=torch.uint8),
        targets=torch.from_numpy(np.column_stack((numbers, np.concatenate(rows)))),
        labelled=torch.ones(images, dtype=torch.bool),
        paths=("",) * images,
    )


# -- memory -----------------------------------------------------------------------------------------------------------


def measured(step: Callable[[int], None], memory: Memory, unit: int, most: int, count: int) -> list[tuple[int, float]]:
    """(images, peak in bytes) of twice `unit`, or of `unit`, and then ever twice as many, as long as they fit.

    So many steps at least, and as many as it takes until the last two have been seen to take memory: a process that has
    some to spare, left by what it did before, does not grow until that is used up.
    """
    found: list[tuple[int, float]] = []
    # the first step of all leaves what stays from then on, such as the optimizer's numbers
    images = next((images for images in (min(2 * unit, most), unit) if _fits(step, images)), 0)
    if not images:
        return found
    while _fits(step, images, memory.forget):
        found.append((images, memory.peak()))
        if images == most or (len(found) >= max(2, count) and found[-2][1] > SEEN):
            break
        images = min(2 * images, most)
    return found


def fitted(found: Sequence[tuple[int, float]]) -> Line:
    """The line through the last two steps; through one alone it begins at 0; where none fits, nothing does."""
    if not found:
        return Line(math.inf, 1.0)
    (images, peak), (fewer, less) = found[-1], found[-2] if len(found) > 1 else (0, 0.0)
    image = max(0.0, (peak - less) / (images - fewer))
    return Line(max(0.0, peak - images * image), image)


def memory_of(device: torch.device) -> Memory | None:
    """None where it cannot be measured."""
    if device.type == "cuda":
        return DeviceMemory(device)
    free, now = free_memory(), resident()
    if device.type != "cpu" or free is None or now is None:
        return None
    return HostMemory(free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")), now)


class DeviceMemory:
    """Of a GPU, as its allocator reserves it. Written without one at hand: this branch has not been run."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self.device = device
        self.before = torch.cuda.memory_reserved(device)
        self.free: float = torch.cuda.mem_get_info(device)[0]

    def forget(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        return torch.cuda.max_memory_reserved(self.device) - self.before


class HostMemory:
    """Of this process.

    Args:
        free: bytes that it may take.
        before: bytes that it has.
    """

    def __init__(self, free: float, before: int) -> None:
        self.free = free
        self.before = before

    def forget(self) -> None:
        forget_peak()

    def peak(self) -> float:
        return max(0, (resident(peak=True) or 0) - self.before)
