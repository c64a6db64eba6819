"""The one training loop. It knows a task, an optimizer and a clock; it knows no loss and no teacher."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from engine import checkpoint
from engine.callbacks import Callback, EpochRecord, Outcome
from engine.evaluator import Evaluator
from engine.optim import lay_out_alike
from engine.plan import Plan
from engine.precision import autocast
from utils import dist
from utils.ema import ModelEma
from utils.errors import UserError
from utils.metrics import fitness
from utils.reproduce import sample_rng
from utils.types import Batch, Progress

log = logging.getLogger(__name__)


@dataclass
class Best:
    """The best epoch so far."""

    fitness: float = -1.0
    epoch: int = -1


class Trainer:
    """Fits a task: `fit()` trains, validates, saves, and returns what came of it.

    Args:
        task: an nn.Module that keeps the contract in `engine/task.py`; on the device already.
        optimizer: over the task's parameters, groups named as `engine.optim.GROUPS`.
        loader: yields `Batch`, has `set_epoch(epoch, mosaic)`.
        evaluator: validates the averaged student on rank 0; None there means no validation.
        plan: numbers of the run.
        callbacks: watchers, called on rank 0.
    """

    def __init__(
        self,
        task: Any,
        optimizer: torch.optim.Optimizer,
        loader: Any,
        evaluator: Evaluator | None,
        plan: Plan,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task = task
        self.optimizer = optimizer
        self.loader = loader
        self.evaluator = evaluator
        self.validates = bool(dist.from_main(evaluator is not None))
        self.plan = plan
        self.callbacks = tuple(callbacks) if dist.is_main() else ()
        self.ema = ModelEma(task.model)
        self.scaler = torch.amp.GradScaler(plan.device.type, enabled=plan.precision is torch.float16)
        self.best = Best()
        self.start_epoch = 0
        self.optimizer_steps = 0
        self.learners: list[list[nn.Parameter]] = task.learners()  # the same through a run
        self.class_maps: Tensor | None = None  # of the last validation, for image weights

    @property
    def weights(self) -> Path:
        return self.plan.folder / "weights"

    # -- the run -------------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains from `start_epoch` to the end, to `patience`, or to the first loss that is not finite (UserError)."""
        started = time.perf_counter()
        self._tell("on_fit_start")
        epoch, stopped = self.start_epoch - 1, False
        for epoch in range(self.start_epoch, self.plan.epochs):
            record = self._epoch(epoch)
            stopped = self._patience_is_over(record)
            final = stopped or epoch + 1 == self.plan.epochs
            self._save(record, final)
            self._tell("on_epoch_end", record)
            if final:
                break
        outcome = Outcome(
            folder=self.plan.folder,
            best=self.weights / "best.pt",
            last=self.weights / "last.pt",
            best_epoch=self.best.epoch,
            best_fitness=self.best.fitness,
            epochs_run=epoch + 1 - self.start_epoch,
            seconds=time.perf_counter() - started,
            stopped_early=stopped and epoch + 1 < self.plan.epochs,
        )
        self._tell("on_fit_end", outcome)
        return outcome

    def _epoch(self, epoch: int) -> EpochRecord:
        started = time.perf_counter()
        steps = len(self.loader)
        mosaic = epoch < self.plan.epochs - self.plan.close_mosaic
        if self.plan.image_weights:
            self._weigh_images()
        self.loader.set_epoch(epoch, mosaic)
        # what losses draw depends on seed, epoch and rank alone, so that resume needs nothing
        torch.manual_seed(int(sample_rng(self.plan.seed, epoch, dist.rank()).integers(2**62)))
        self.task.train()
        self.task.at(Progress(epoch, 0, self.plan.epochs, steps))
        module = wrap(self.task, self.plan.device)

        sums: dict[str, float] = {}
        waiting = 0  # batches whose gradient waits for the optimizer
        bar = self._bar(epoch, steps)
        for step, batch in enumerate(bar):
            progress = Progress(epoch, step, self.plan.epochs, steps)
            waiting += 1
            # the last batch of an epoch always steps: no gradient is carried over, so that resume is exact
            due = waiting >= self.plan.timetable.accumulate(progress) or step + 1 == steps
            self.plan.timetable.apply(self.optimizer, progress)
            terms = self._forward_backward(module, batch, progress, due)
            if due:
                self._step()
                waiting = 0
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            if not bar.disable:
                bar.set_postfix_str(shown({name: value / (step + 1) for name, value in sums.items()}), False)
            self._tell("on_step_end", progress, batch, terms)

        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        dist.broadcast_buffers(self.task)
        over_ranks = dist.mean(torch.tensor(list(sums.values()), dtype=torch.float64, device=self.plan.device)) / steps
        report, score = self._validate(epoch)
        best = score is not None and score > self.best.fitness
        if best and score is not None:
            self.best = Best(score, epoch)
        return EpochRecord(
            epoch=epoch,
            epochs=self.plan.epochs,
            terms=dict(zip(sums, over_ranks.tolist(), strict=True)),
            report=report,
            learning_rates=rates,
            fitness=score,
            best=best or (not self.validates and epoch + 1 == self.plan.epochs),
            seconds=time.perf_counter() - started,
            optimizer_steps=self.optimizer_steps,
        )

    def _forward_backward(self, module: nn.Module, batch: Batch, progress: Progress, due: bool) -> dict[str, float]:
        """One batch: forward, backward, and the one host sync of the step (the finite check)."""
        self.task.at(progress)
        batch = batch.to(self.plan.device, torch.channels_last)
        if self.plan.multi_scale:
            batch = self._rescaled(batch, progress)
        if self.plan.compile and self.plan.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # what graphs put out in the step before may be overwritten
        patient = not due and isinstance(module, DistributedDataParallel)
        with module.no_sync() if patient else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(self.plan.device, self.plan.precision):
                terms = module(batch)
            # published hyper-parameters are meant for losses summed over the batch; DDP averages over ranks
            loss = torch.stack(list(terms.values())).sum() * (batch.images.shape[0] * dist.world_size())
            if self.plan.quad:
                loss = loss * 4  # a quarter of the images, each four times as large
            self.scaler.scale(loss).backward()
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            listed = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            raise UserError(
                f"loss is not finite at epoch {progress.epoch + 1}, step {progress.step + 1}: {listed}. "
                "Lower lr0, or check the labels"
            )
        return values

    def _step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        for parameters in self.learners:
            torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        self.ema.update(self.task.model)
        self.task.after_step()

    def _rescaled(self, batch: Batch, progress: Progress) -> Batch:
        """The batch at a random size, a multiple of the stride; chance depends on (seed, epoch, step)."""
        rng = sample_rng(self.plan.seed, progress.epoch, progress.step)
        factor, stride = rng.uniform(0.5, 1.5), self.plan.stride
        # not below two strides: in a map of a single cell, BatchNorm has nothing to average over
        size = [max(2, round(side * factor / stride)) * stride for side in batch.images.shape[2:]]
        return batch._replace(images=F.interpolate(batch.images, size=size, mode="bilinear", align_corners=False))

    # -- validation, saving, resuming ----------------------------------------------------------------------------------

    def _validate(self, epoch: int) -> tuple[Any, float | None]:
        """The report (rank 0) and the fitness (every rank)."""
        plan = self.plan
        last = epoch + 1 == plan.epochs
        if not self.validates or not (last or (plan.validate and (epoch + 1) % plan.val_period == 0)):
            return None, None
        report, value = None, 0.0
        if self.evaluator is not None:
            report = self.evaluator(self.ema.model, criterion=self.task.criterion)
            value = fitness(report.evaluation)
            if plan.image_weights:
                self.class_maps = torch.zeros(self.task.model.num_classes)
                for result in report.evaluation.per_class:  # of the classes that val shows
                    self.class_maps[result.index] = result.map
        told = dist.from_main((value, self.class_maps) if dist.is_main() else None)
        value, self.class_maps = told  # type: ignore[misc]
        return report, value

    def _patience_is_over(self, record: EpochRecord) -> bool:
        waited = record.epoch - self.best.epoch
        if not self.validates or self.plan.patience <= 0 or self.best.epoch < 0 or waited < self.plan.patience:
            return False
        best = self.best.epoch + 1
        log.info("stopping early: no better fitness in the last %d epochs; best was epoch %d", waited, best)
        return True

    def _save(self, record: EpochRecord, final: bool) -> None:
        """Rank 0 writes the epoch's files; nothing but the final ones with --nosave."""
        if dist.is_main() and (self.plan.save or final):
            training = None if final else self.training_state(record.epoch + 1)
            checkpoint.save_epoch(self.weights, self.ema.model, record, self.plan, training)

    def training_state(self, next_epoch: int) -> dict[str, Any]:
        """Everything that resume needs beside the average; plain data."""
        return {
            "epoch": next_epoch,
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer_steps": self.optimizer_steps,
            "best_fitness": self.best.fitness,
            "best_epoch": self.best.epoch,
            "class_maps": self.class_maps,
        }

    def resume(self, average: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continues from what `training_state` returned and the average saved with it."""
        self.ema.model.load_state_dict(average)
        self.ema.updates = state["ema_updates"]
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_alike(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.optimizer_steps = state["optimizer_steps"]
        self.best = Best(state["best_fitness"], state["best_epoch"])
        self.class_maps = state["class_maps"]
        self.start_epoch = state["epoch"]

    # -- small things --------------------------------------------------------------------------------------------------

    def _weigh_images(self) -> None:
        """Images of classes that score badly are drawn more often; before the first validation all score 0."""
        maps = torch.zeros(self.task.model.num_classes) if self.class_maps is None else self.class_maps
        self.loader.set_image_weights((1 - maps).square().numpy())

    def _bar(self, epoch: int, steps: int) -> Any:
        batches: Iterable[Batch] = self.loader
        memory = ""
        if self.plan.device.type == "cuda":
            memory = f" {torch.cuda.max_memory_reserved(self.plan.device) / 2**30:.3g}G"
        title = f"epoch {epoch + 1}/{self.plan.epochs}{memory}"
        return tqdm(batches, desc=title, total=steps, disable=not dist.is_main(), dynamic_ncols=True, leave=True)

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)


def shown(terms: Mapping[str, float]) -> str:
    """The terms on one line: those of one method's layers as their sum."""
    sums: dict[str, float] = {}
    for name, value in terms.items():
        short = re.sub(r"_layer\d+(_\d+)*", "", name)
        sums[short] = sums.get(short, 0.0) + value
    return "  ".join(f"{name} {value:.4g}" for name, value in sums.items())


def wrap(task: nn.Module, device: torch.device) -> nn.Module:
    """The task itself, or under DDP: wrapping the *task* is what makes every learning part of it agree across ranks.

    Buffers are not broadcast at each step but once an epoch, from rank 0 (`dist.broadcast_buffers`).
    """
    if not dist.is_distributed():
        return task
    return DistributedDataParallel(
        task, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )
