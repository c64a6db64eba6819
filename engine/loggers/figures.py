"""The pictures of a run: labels, first batches, curves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from engine.callbacks import Callback, Outcome
from engine.trainer import Trainer
from utils.pictures import batch_mosaic
from utils.plots import label_statistics, read_results, results_curves
from utils.types import Batch, Progress

log = logging.getLogger(__name__)

BATCHES = 3  # of the first epoch are drawn


class Figures(Callback):
    """labels.png before, train_batch0.jpg ... during, results.png after the run."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names

    def on_fit_start(self, trainer: Trainer) -> None:
        labels = trainer.loader.dataset.labels.rows
        if trainer.start_epoch == 0:
            label_statistics(labels[:, 0], labels[:, 1:5], self.names, self.folder / "labels.png")

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        if progress.iteration < BATCHES:
            path = self.folder / f"train_batch{progress.iteration}.jpg"
            batch_mosaic(batch.images.cpu().numpy(), batch.targets.cpu().numpy(), self.names, path)

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None:
        table = self.folder / "results.csv"
        if table.exists():
            results_curves(read_results(table), self.folder / "results.png")
