"""What a person reads while a run goes on."""

from __future__ import annotations

import logging

from engine.callbacks import Callback, EpochRecord, Outcome
from engine.trainer import Trainer

log = logging.getLogger(__name__)


class Console(Callback):
    """One line an epoch after the progress bar, one line at the end."""

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        if record.report is None:
            return
        evaluation = record.report.evaluation
        log.info(
            "    P %.3f  R %.3f  mAP50 %.3f  mAP50-95 %.4f%s  (%.1f s)",
            *(evaluation.precision, evaluation.recall, evaluation.map50, evaluation.map),
            *(" *" if record.best else "", record.seconds),
        )

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None:
        log.info(
            "%d epochs in %.0f s; best epoch %d; results in %s",
            *(outcome.epochs_run, outcome.seconds, outcome.best_epoch + 1, outcome.folder),
        )
