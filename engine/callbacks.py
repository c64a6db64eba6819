"""Watching a run. Callbacks are called on rank 0 only; they watch and never steer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.types import Batch, Progress

if TYPE_CHECKING:
    from engine.evaluator import Report
    from engine.trainer import Trainer


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to."""

    epoch: int  # from 0
    epochs: int
    terms: dict[str, float]  # mean of each weighted loss term over the epoch, per image
    report: Report | None  # None where validation was skipped
    learning_rates: dict[str, float]
    fitness: float | None
    best: bool
    seconds: float
    optimizer_steps: int
    skipped: int = 0  # batches that came to nothing, because a number was not finite
    final: bool = False  # the run ends with it

    def row(self) -> dict[str, float]:
        """One flat row, as results.csv and TensorBoard have it."""
        row: dict[str, float] = {f"train/{name}": value for name, value in self.terms.items()}
        if self.report is not None:
            evaluation = self.report.evaluation
            row["metrics/precision"] = evaluation.precision
            row["metrics/recall"] = evaluation.recall
            row["metrics/mAP50"] = evaluation.map50
            row["metrics/mAP50-95"] = evaluation.map
            row |= {f"val/{name}": value for name, value in (self.report.losses or {}).items()}
        row |= {f"lr/{name}": value for name, value in self.learning_rates.items()}
        row["skipped"] = self.skipped
        row["seconds"] = self.seconds
        return row


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    folder: Path
    best: Path
    last: Path
    best_epoch: int
    best_fitness: float
    epochs_run: int
    seconds: float
    stopped_early: bool = False


class Callback:
    """Override what you need."""

    def on_fit_start(self, trainer: Trainer) -> None: ...

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None: ...

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None: ...

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None: ...
