"""TensorBoard events, where the package is installed."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from engine.callbacks import Callback, EpochRecord, Outcome
from engine.trainer import Trainer

log = logging.getLogger(__name__)


class TensorBoard(Callback):
    """Every column of results.csv as a scalar. What cannot be written ends it: its thread is gone."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info("TensorBoard is not installed: no events are written (pip install tensorboard)")
            self.writer = None
        else:
            self.writer = SummaryWriter(str(folder))
            leave_to_flush()

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            for name, value in record.row().items():
                writer.add_scalar(name, value, record.epoch + 1)
            writer.flush()  # a run that is killed has told its epochs; and a full disk is heard of here
        self.writer = writer

    def on_fit_end(self, trainer: Trainer, outcome: Outcome) -> None:
        if self.writer is not None:
            self.writer.close()


def leave_to_flush() -> None:
    """What TensorBoard's own thread cannot write, `flush` raises here: no traceback is wanted of the thread."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            before(arguments)

    threading.excepthook = hook
