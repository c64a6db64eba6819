"""A watcher that a run can do without."""

from __future__ import annotations

import logging
from typing import Any

from engine.callbacks import Callback, EpochRecord, Outcome
from engine.trainer import Trainer
from utils.faults import find_fault
from utils.types import Batch, Progress

log = logging.getLogger(__name__)


class Dispensable(Callback):
    """Passes everything on. What the machine refuses, such as a full disk, is one warning, and the run goes on."""

    def __init__(self, watcher: Callback) -> None:
        self.watcher = watcher
        self.warned = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self._pass_on("on_fit_start", trainer)

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        self._pass_on("on_step_end", trainer, progress, batch, terms)

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        self._pass_on("on_epoch_end", trainer, record)

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None:
        self._pass_on("on_fit_end", trainer, outcome)

    def _pass_on(self, event: str, *arguments: Any) -> None:
        try:
            getattr(self.watcher, event)(*arguments)
        except Exception as error:
            fault = find_fault(error)
            if fault is None:
                raise
            if not self.warned:
                log.warning("%s; training goes on without", fault.line)
            self.warned = True
