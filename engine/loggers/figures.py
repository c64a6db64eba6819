"""The pictures of a run: labels, first batches, curves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.callbacks import Callback, Outcome
from engine.trainer import Trainer
from utils.errors import shown
from utils.faults import find_fault
from utils.opencv import AVAILABLE
from utils.pictures import batch_mosaic
from utils.plots import label_statistics, read_results, results_curves
from utils.types import Batch, Progress

log = logging.getLogger(__name__)

BATCHES = 3  # of the first epoch are drawn


class Figures(Callback):
    """labels.png and train_batch0.jpg ... behind the first steps, results.png after the run.

    A picture is no reason to lose a run: names and numbers in it are a stranger's, and what they do to fonts and axes
    is known to nobody. Whatever it comes to is one warning.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names
        self.warned = False

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        if progress.iteration == 0:  # not before the run: drawing takes as long as many first steps
            labels = trainer.loader.dataset.labels.rows
            self._draw(label_statistics, labels[:, 0], labels[:, 1:5], self.names, self.folder / "labels.png")
        if progress.iteration < BATCHES and AVAILABLE:  # without OpenCV, the final report says what is missing
            path = self.folder / f"train_batch{progress.iteration}.jpg"
            self._draw(batch_mosaic, batch.images.cpu().numpy(), batch.targets.cpu().numpy(), self.names, path)

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None:
        table = self.folder / "results.csv"
        if table.exists():
            self._draw(lambda path: results_curves(read_results(table), path), self.folder / "results.png")

    def _draw(self, figure: Callable[..., Path], *arguments: Any) -> None:
        """Calls a function that draws; its last argument is the path.

        Raises:
            Exception: the machine's fault, which is told as such (`Dispensable`).
        """
        try:
            figure(*arguments)
        except Exception as error:
            if find_fault(error) is not None:
                raise
            if not self.warned:
                why = shown(f"{type(error).__name__}: {error}", 200)
                log.warning("%s cannot be drawn (%s); training goes on without", arguments[-1], why)
                log.debug("traceback of the figure", exc_info=True)
            self.warned = True
