"""The one training loop. It knows a task, an optimizer and a clock; it knows no loss and no teacher."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine import checkpoint
from engine.callbacks import Callback, EpochRecord, Outcome
from engine.evaluator import Evaluator
from engine.plan import Plan
from engine.stepper import Asked, NotFinite, Stepper
from models.weights import read_checkpoint
from utils import dist
from utils.ema import ModelEma
from utils.errors import PeerLost, UserError
from utils.interruption import Interrupted, Interruption
from utils.metrics import fitness
from utils.reproduce import sample_rng
from utils.types import Batch, Progress

log = logging.getLogger(__name__)

RETURNS = 3  # how often a run goes back to its last checkpoint because of numbers that are not finite
SLOWER = 0.5  # the learning rate's factor, each time


@dataclass
class Best:
    """The best epoch so far."""

    fitness: float = -1.0
    epoch: int = -1


@dataclass
class Passed:
    """What an epoch has come to so far."""

    step: int = 0  # batches that are behind us
    counted: int = 0  # of these, those whose terms are in the sums
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, terms: Mapping[str, float], skipped: bool) -> None:
        self.step += 1
        self.counted += not skipped
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + (0.0 if skipped else value)

    @property
    def means(self) -> dict[str, float]:
        return {name: value / max(1, self.counted) for name, value in self.sums.items()}


class Trainer:
    """Fits a task: `fit()` trains, validates, saves, and returns what came of it.

    Args:
        task: an nn.Module that keeps the contract in `engine/task.py`; on the device already.
        optimizer: over the task's parameters, groups named as `engine.optim.GROUPS`.
        loader: yields `Batch`, has `set_epoch(epoch, mosaic, first)`.
        evaluator: validates the averaged student, on all ranks together; None: no validation.
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
        self.stepper = Stepper(task, optimizer, plan)
        self.loader = loader
        self.evaluator = evaluator
        self.plan = plan
        self.callbacks = tuple(callbacks) if dist.is_main() else ()
        self.best = Best()
        self.start_epoch = 0
        self.passed = Passed()  # of the epoch that goes on
        self.returns = 0
        self.class_maps: Tensor | None = None  # of the last validation, for image weights
        self._own_state: Mapping[str, Any] | None = None  # this rank's, where an epoch goes on
        self._interruption = Interruption()
        self._saved = time.monotonic()

    @property
    def weights(self) -> Path:
        return self.plan.folder / "weights"

    @property
    def ema(self) -> ModelEma:
        return self.stepper.ema

    # -- the run -------------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains from `start_epoch` to the end, or to `patience`.

        Raises:
            UserError: losses or gradients are not finite for many steps, and going back did not help.
            Interrupted: a signal came; last.pt is where the run goes on.
        """
        started = time.perf_counter()
        with Interruption(PeerLost) as self._interruption, dist.lost_peers():
            if dist.is_main():
                checkpoint.remove_unfinished(self.weights)
            self._tell("on_fit_start")
            if self.plan.save and not (self.start_epoch or self.passed.step):
                self._save_midway(self.start_epoch)  # so that there is a checkpoint from the first moment on
            first, epoch, stopped = self.start_epoch, self.start_epoch - 1, False
            while epoch + 1 < self.plan.epochs and not stopped:
                try:
                    record = self._epoch(epoch + 1)
                except NotFinite as failure:
                    self._go_back(failure)
                    epoch = self.start_epoch - 1
                    continue
                epoch = record.epoch
                stopped = self._patience_is_over(record)
                record = replace(record, final=stopped or epoch + 1 == self.plan.epochs)
                self._tell("on_epoch_end", record)  # first: an epoch that is not saved is told again
                self._save(record)
            outcome = Outcome(
                folder=self.plan.folder,
                best=self.weights / "best.pt",
                last=self.weights / "last.pt",
                best_epoch=self.best.epoch,
                best_fitness=self.best.fitness,
                epochs_run=epoch + 1 - first,
                seconds=time.perf_counter() - started,
                stopped_early=stopped and epoch + 1 < self.plan.epochs,
            )
            self._tell("on_fit_end", outcome)
        return outcome

    def _epoch(self, epoch: int) -> EpochRecord:
        started = time.perf_counter()
        self._train(epoch)
        rates = {group["name"]: group["lr"] for group in self.stepper.optimizer.param_groups}
        dist.broadcast_buffers(self.task)
        try:
            with self._interruption.at_once():
                report, score = self._validate(epoch)
        except BaseException:  # validation is done anew; nothing of it is in the state
            self._save_midway(epoch)
            raise
        best = score is not None and score > self.best.fitness
        if best and score is not None:
            self.best = Best(score, epoch)
        passed, self.passed = self.passed, Passed()
        return EpochRecord(
            epoch=epoch,
            epochs=self.plan.epochs,
            terms=passed.means,
            report=report,
            learning_rates=rates,
            fitness=score,
            best=best or (self.evaluator is None and epoch + 1 == self.plan.epochs),
            seconds=time.perf_counter() - started,
            optimizer_steps=self.stepper.count,
            skipped=passed.step - passed.counted,
        )

    def _train(self, epoch: int) -> None:
        """What is left of an epoch's batches."""
        steps = len(self.loader)
        if self.plan.image_weights:
            self._weigh_images()
        mosaic = epoch < self.plan.epochs - self.plan.close_mosaic
        self.loader.set_epoch(epoch, mosaic, self.passed.step)
        # what losses draw depends on seed, epoch and rank alone, so that resume needs nothing
        torch.manual_seed(int(sample_rng(self.plan.seed, epoch, dist.rank()).integers(2**62)))
        self.stepper.begin(Progress(epoch, 0, self.plan.epochs, steps))
        if self._own_state is not None:
            self.stepper.take_own_state(self._own_state)
            self._own_state = None
        with self._bar(epoch, steps) as bar:
            for batch in bar:
                progress = Progress(epoch, self.passed.step, self.plan.epochs, steps)
                step = self.stepper(batch, progress, self._wishes)
                self.passed.add(step.terms, step.skipped)
                if not bar.disable:
                    bar.set_postfix_str(shown(self.passed.means), False)
                self._tell("on_step_end", progress, batch, step.terms)
                if step.moved and (step.asked.stop or step.asked.save):
                    self._save_midway(epoch, gathered=True)
                    if step.asked.stop:
                        # of ranks, one may have been told before the others
                        raise Interrupted(self._interruption.number or signal.SIGTERM)

    def _wishes(self) -> Asked:
        interval = 60 * self.plan.save_interval
        late = dist.is_main() and self.plan.save and 0 < interval < time.monotonic() - self._saved
        return Asked(stop=bool(self._interruption.number), save=late)

    def _go_back(self, failure: NotFinite) -> None:
        """To the last checkpoint, with a lower learning rate."""
        last = self.weights / "last.pt"
        returns = self.returns + 1
        if returns > RETURNS or not dist.from_main(self.plan.save and last.exists()):
            tried = f", after {self.returns} returns to {last} with lower learning rates" if self.returns else ""
            raise UserError(
                f"loss or gradients are not finite, step after step{tried}; last at {failure}. Lower lr0, or check the "
                "labels"
            )
        saved = read_checkpoint(last)
        assert saved.training is not None, "the last epoch alone leaves one without"
        self.resume(saved.state, saved.training)
        self.returns, self.stepper.rate_factor = returns, SLOWER**returns
        log.warning(
            "going back to %s (epoch %d) with %g times the learning rate, because steps come to nothing; last at %s",
            *(last, self.start_epoch + 1, self.stepper.rate_factor, failure),
        )

    # -- validation, saving, resuming ----------------------------------------------------------------------------------

    def _validate(self, epoch: int) -> tuple[Any, float | None]:
        """The report and the fitness."""
        plan = self.plan
        last = epoch + 1 == plan.epochs
        if self.evaluator is None or not (last or (plan.validate and (epoch + 1) % plan.val_period == 0)):
            return None, None
        # weights are equal on all ranks, but each rank's average has followed the batch statistics of its own images
        dist.broadcast_buffers(self.ema.model)
        report = self.evaluator(self.ema.model, criterion=self.task.criterion)
        if plan.image_weights:
            self.class_maps = torch.zeros(self.task.model.num_classes)
            for result in report.evaluation.per_class:  # of the classes that val shows
                self.class_maps[result.index] = result.map
        return report, fitness(report.evaluation)

    def _patience_is_over(self, record: EpochRecord) -> bool:
        waited = record.epoch - self.best.epoch
        if self.evaluator is None or self.plan.patience <= 0 or self.best.epoch < 0 or waited < self.plan.patience:
            return False
        best = self.best.epoch + 1
        log.info("stopping early: no better fitness in the last %d epochs; best was epoch %d", waited, best)
        return True

    def _save(self, record: EpochRecord) -> None:
        """Rank 0 writes the epoch's files; nothing but the final ones with --nosave.

        While steps come to nothing last.pt stays: it is the one to go back to.
        """
        if dist.is_main() and (record.final or self.plan.save):
            checkpoint.save_epoch(self.weights, self.ema.model, record, self.plan)
            if record.final or not self.stepper.failing:
                training = None if record.final else self.training_state(record.epoch + 1)
                checkpoint.save_last(self.weights, self.ema.model, self.plan, training, record)
                self._saved = time.monotonic()

    def _save_midway(self, epoch: int, gathered: bool = False) -> None:
        """Rank 0 writes last.pt alone, from where this epoch goes on.

        Args:
            gathered: with what differs between ranks, which all must then be asked for; not needed where no batch is
                behind us, or none is left.
        """
        ranks = dist.to_main(self.stepper.own_state()) if gathered else None
        if dist.is_main() and not self.stepper.failing:
            checkpoint.save_last(self.weights, self.ema.model, self.plan, self.training_state(epoch, ranks))
            self._saved = time.monotonic()

    def training_state(self, epoch: int, ranks: Sequence[Any] | None = None) -> dict[str, Any]:
        """Everything that resume needs beside the average; plain data.

        Args:
            epoch: that comes next, or goes on.
            ranks: of each, what is its own (`Stepper.own_state`).
        """
        return self.stepper.state() | {
            "epoch": epoch,
            "step": self.passed.step,
            "counted": self.passed.counted,
            "sums": dict(self.passed.sums),
            "ranks": ranks,
            "returns": self.returns,
            "best_fitness": self.best.fitness,
            "best_epoch": self.best.epoch,
            "class_maps": self.class_maps,
        }

    def resume(self, average: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continues from what `training_state` returned and the average saved with it."""
        self.stepper.resume(average, state)
        self.best = Best(state["best_fitness"], state["best_epoch"])
        self.class_maps = state["class_maps"]
        self.start_epoch = state["epoch"]
        self.passed = Passed(state.get("step", 0), state.get("counted", 0), dict(state.get("sums", {})))
        self.returns = state.get("returns", 0)
        ranks = state.get("ranks")
        self._own_state = None
        if ranks is not None and len(ranks) == dist.world_size():
            self._own_state = ranks[dist.rank()]
        elif ranks is not None:
            level = logging.WARNING if dist.is_main() else logging.DEBUG
            log.log(
                level,
                "this epoch was begun by %d processes and goes on with %d: not to the last bit as with as many",
                *(len(ranks), dist.world_size()),
            )

    # -- small things --------------------------------------------------------------------------------------------------

    def _weigh_images(self) -> None:
        """Images of classes that score badly are drawn more often; before the first validation all score 0."""
        maps = torch.zeros(self.task.model.num_classes) if self.class_maps is None else self.class_maps
        self.loader.set_image_weights((1 - maps).square().numpy())

    @contextlib.contextmanager
    def _bar(self, epoch: int, steps: int) -> Iterator[Any]:
        """The batches that are left, with a bar where someone looks."""
        memory = ""
        if self.plan.device.type == "cuda":
            memory = f" {torch.cuda.max_memory_reserved(self.plan.device) / 2**30:.3g}G"
        title = f"epoch {epoch + 1}/{self.plan.epochs}{memory}"
        batches: Iterator[Batch] = iter(self.loader)
        try:
            with tqdm(
                *(batches, title, steps),
                initial=self.passed.step, disable=not dist.is_main(), dynamic_ncols=True, leave=True,
            ) as bar:  # fmt: skip
                yield bar
        finally:
            # an epoch may be left before its end, and begun again with the same workers
            if isinstance(batches, Generator):
                batches.close()

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
