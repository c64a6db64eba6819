"""One batch after the other: forward, backward, optimizer, and what is done about numbers that are not finite."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.optim import lay_out_alike
from engine.plan import Plan
from engine.precision import autocast
from utils import dist
from utils.ema import ModelEma
from utils.reproduce import sample_rng
from utils.types import Batch, Progress

log = logging.getLogger(__name__)

FAILURES = 20  # steps in a row that come to nothing; fp16 needs some at the start, until its scale is found
FAILING = 5  # so many, and what comes of it is nothing to go back to


class NotFinite(Exception):
    """So many steps in a row came to nothing."""


class Asked(NamedTuple):
    """What some rank wants to be done after this step."""

    stop: bool = False
    save: bool = False


def nothing() -> Asked:
    return Asked()


class Step(NamedTuple):
    """What a batch came to; the same on all ranks."""

    terms: dict[str, float]  # weighted, means over images and ranks
    skipped: bool  # not finite: nothing of it, and of the batches that waited with it, is left
    moved: bool  # the optimizer has made a step: no gradient waits
    asked: Asked


class Stepper:
    """Makes the steps of a run.

    A loss or gradient that is not finite is no step: parameters, averages and batch statistics are what they were after
    the last one.

    Args:
        task: an nn.Module that keeps the contract in `engine/task.py`; on the device already.
        optimizer: over the task's parameters, groups named as `engine.optim.GROUPS`.
    """

    def __init__(self, task: Any, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.task = task
        self.optimizer = optimizer
        self.plan = plan
        self.ema = ModelEma(task.model)
        self.scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.precision is torch.float16)
        self.count = 0  # steps of the optimizer
        self.rate_factor = 1.0  # on all learning rates
        self.learners: list[list[nn.Parameter]] = task.learners()  # the same through a run
        self._module: nn.Module = task
        self._waiting = 0  # batches whose gradient waits for the optimizer
        self.failed = 0  # batches in a row that came to nothing
        self._buffers: list[Tensor] = []
        self._sound: list[Tensor] = []  # the buffers after the last step

    def begin(self, progress: Progress) -> None:
        """Before the first batch of an epoch, or of what is left of it."""
        self.task.train()
        self.task.at(progress._replace(step=0))
        self._module = wrap(self.task, self.plan.device)
        self._waiting = 0
        self._buffers = list(self.task.buffers())
        self._sound = [buffer.clone() for buffer in self._buffers]

    @property
    def failing(self) -> bool:
        """Whether a checkpoint of now would be in the place of one to go back to."""
        return self.failed >= FAILING

    def __call__(self, batch: Batch, progress: Progress, wishes: Callable[[], Asked] = nothing) -> Step:
        """One batch, and where it is due a step of the optimizer.

        Args:
            wishes: says what this rank wants; asked as late as ranks can still agree on it.

        Raises:
            NotFinite: as often as `FAILURES` in a row.
        """
        self._waiting += 1
        # the last batch of an epoch always steps: no gradient is carried over, so that resume is exact
        last = progress.step + 1 == progress.steps_per_epoch
        due = last or self._waiting >= self.plan.timetable.accumulate(progress)
        terms = self.forward_backward(batch, progress, due)
        return self.finish(terms, progress, due, wishes)

    def forward_backward(self, batch: Batch, progress: Progress, due: bool) -> dict[str, Tensor]:
        """The terms of a batch; their gradient is added to what waits."""
        self.plan.timetable.apply(self.optimizer, progress, self.rate_factor)
        self.task.at(progress)
        batch = batch.to(self.plan.device, torch.channels_last)
        if self.plan.multi_scale:
            batch = rescaled(batch, progress, self.plan)
        if self.plan.compile and self.plan.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # what graphs put out in the step before may be overwritten
        patient = not due and isinstance(self._module, DistributedDataParallel)
        with self._module.no_sync() if patient else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(self.plan.device, self.plan.precision):
                terms: dict[str, Tensor] = self._module(batch)
            # published hyper-parameters are meant for losses summed over the batch; DDP averages over ranks
            loss = torch.stack(list(terms.values())).sum() * (batch.images.shape[0] * dist.world_size())
            if self.plan.quad:
                loss = loss * 4  # a quarter of the images, each four times as large
            self.scaler.scale(loss).backward()
        return terms

    def finish(
        self, terms: Mapping[str, Tensor], progress: Progress, due: bool, wishes: Callable[[], Asked] = nothing
    ) -> Step:
        """Clips and, if all is finite, steps where that is due."""
        norms = self._clip() if due else []
        values, finite, asked = self._agreed(terms, norms, wishes)
        skipped = not finite
        if skipped:
            self._skip(values, progress, due)
        elif due:
            self._move()
        return Step(values, skipped, due or skipped, asked)

    def _clip(self) -> list[Tensor]:
        """Clips all gradients, and gives their norms before."""
        self.scaler.unscale_(self.optimizer)
        # of a teacher that rests there is none; torch's norm of nothing would not be on the device either
        groups = ([one for one in learners if one.grad is not None] for learners in self.learners)
        return [torch.nn.utils.clip_grad_norm_(group, self.plan.clip_gradient) for group in groups if group]

    def _agreed(
        self, terms: Mapping[str, Tensor], norms: Sequence[Tensor], wishes: Callable[[], Asked]
    ) -> tuple[dict[str, float], bool, Asked]:
        """Means over ranks, whether all is finite everywhere, and what anyone asks for: the one host sync of a step."""
        found = torch.stack([*terms.values(), *norms]).detach().float()
        if dist.is_distributed():
            own = [torch.full((), float(wish), device=found.device) for wish in wishes()]
            found = dist.mean(torch.cat((found, torch.stack(own))))  # of ranks, one that is not finite makes all so
            numbers = found.tolist()
            asked = Asked(*(number > 0 for number in numbers[-len(own) :]))
            numbers = numbers[: -len(own)]
        else:
            numbers, asked = found.tolist(), wishes()
        values = dict(zip(terms, numbers, strict=False))  # behind the terms come the norms
        return values, all(map(math.isfinite, numbers)), asked

    def _move(self) -> None:
        self.optimizer.step()  # not by the scaler, which would ask the device once more whether all is finite
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.count += 1
        self._waiting = self.failed = 0
        self.ema.update(self.task.model)
        self.task.after_step()
        if self._buffers:
            torch._foreach_copy_(self._sound, self._buffers)

    def _skip(self, values: Mapping[str, float], progress: Progress, due: bool) -> None:
        if due and self.scaler.is_enabled():
            # by hand: a loss may be too large whose gradient is finite
            state = self.scaler.state_dict()
            self.scaler.update(state["scale"] * state["backoff_factor"])
            self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})
        self.optimizer.zero_grad(set_to_none=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._sound)
        self._waiting = 0
        self.failed += 1
        if self.failed == 1 and dist.is_main():
            log.warning("epoch %d, step %d is skipped: %s", progress.epoch + 1, progress.step + 1, culprits(values))
        if self.failed == FAILURES:
            self.failed = 0
            raise NotFinite(f"epoch {progress.epoch + 1}, step {progress.step + 1}: {culprits(values)}")

    # -- saving and resuming -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that resume needs beside the average; plain data."""
        return {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer_steps": self.count,
            "rate_factor": self.rate_factor,
        }

    def resume(self, average: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continues from what `state` returned and the average saved with it."""
        self.ema.model.load_state_dict(average)
        self.ema.updates = state["ema_updates"]
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, numbers in self.optimizer.state.items():  # which PyTorch does not look at until the first step
            for name, value in numbers.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{name} of shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
        lay_out_alike(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled() and state["scaler"]:  # that of another device may have had none
            self.scaler.load_state_dict(state["scaler"])
        self.count = state["optimizer_steps"]
        self.rate_factor = state.get("rate_factor", 1.0)

    def own_state(self) -> dict[str, Any]:
        """What differs between ranks within an epoch: batch statistics, and chance."""
        state: dict[str, Any] = {
            "buffers": {kind: torch.cat([one.flatten() for one in own]).cpu() for kind, own in self._by_kind().items()},
            "chance": torch.get_rng_state(),
        }
        if self.plan.device.type == "cuda":
            state["device_chance"] = torch.cuda.get_rng_state(self.plan.device)
        return state

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The inverse; behind `begin`, whose wrapping makes all ranks alike."""
        for kind, own in self._by_kind().items():
            parts = state["buffers"][kind].split([buffer.numel() for buffer in own])
            for buffer, part in zip(own, parts, strict=True):
                buffer.copy_(part.view_as(buffer))
        self._sound = [buffer.clone() for buffer in self._buffers]
        torch.set_rng_state(state["chance"])
        if "device_chance" in state and self.plan.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_chance"], self.plan.device)

    def _by_kind(self) -> dict[str, list[Tensor]]:
        """The task's buffers by number format: one tensor each in a checkpoint, of however many ranks."""
        kinds: dict[str, list[Tensor]] = {}
        for buffer in self.task.buffers():
            kinds.setdefault(str(buffer.dtype), []).append(buffer)
        return kinds


def culprits(values: Mapping[str, float]) -> str:
    """The terms that are not finite, or all where it is the gradient."""
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    listed = ", ".join(f"{name} {value:.3g}" for name, value in (broken or values).items())
    return f"{listed} not finite" if broken else f"a gradient is not finite ({listed})"


def rescaled(batch: Batch, progress: Progress, plan: Plan) -> Batch:
    """The batch at a random size, a multiple of the stride; chance depends on (seed, epoch, step)."""
    rng = sample_rng(plan.seed, progress.epoch, progress.step)
    factor, stride = rng.uniform(0.5, 1.5), plan.stride
    # not below two strides: in a map of a single cell, BatchNorm has nothing to average over
    size = [max(2, round(side * factor / stride)) * stride for side in batch.images.shape[2:]]
    return batch._replace(images=F.interpolate(batch.images, size=size, mode="bilinear", align_corners=False))


def wrap(task: nn.Module, device: torch.device) -> nn.Module:
    """The task itself, or under DDP: wrapping the *task* is what makes every learning part of it agree across ranks.

    Buffers are not broadcast at each step but once an epoch, from rank 0 (`dist.broadcast_buffers`).
    """
    if not dist.is_distributed():
        return task
    known = inspect.signature(DistributedDataParallel).parameters
    flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # as it was called
    ours: Any = {flag: False, "device_ids": [device.index] if device.type == "cuda" else None}
    return DistributedDataParallel(task, **ours)
