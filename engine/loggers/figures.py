"""The pictures of a run: labels, first batches, curves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from engine.callbacks import Callback, Outcome
from engine.trainer import Trainer
from utils.opencv import AVAILABLE
from utils.pictures import batch_mosaic
from utils.plots import label_statistics, read_results, results_curves
from utils.types import Batch, Progress

log = logging.getLogger(__name__)

BATCHES = 3  # of the first epoch are drawn


class Figures(Callback):
    """labels.png and train_batch0.jpg ... behind the first steps, results.png after the run."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        if progress.iteration == 0:  # not before the run: drawing takes as long as many first steps
            labels = trainer.loader.dataset.labels.rows
            label_statistics(labels[:, 0], labels[:, 1:5], self.names, self.folder / "labels.png")
        if progress.iteration < BATCHES and AVAILABLE:  # without OpenCV, the final report says what is missing
            path = self.folder / f"train_batch{progress.iteration}.jpg"
            batch_mosaic(batch.images.cpu().numpy(), batch.targets.cpu().numpy(), self.names, path)

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None:
        table = self.folder / "results.csv"
        if table.exists():
            results_curves(read_results(table), self.folder / "results.png")
