"""Where the machine ends a run: what happened, what is left of it, and how it goes on, in one line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.auto_batch import in_equal_parts
from engine.callbacks import Callback
from engine.runs import CHECKPOINTS
from utils import dist
from utils.errors import MachineFault
from utils.faults import Fault, find_fault

if TYPE_CHECKING:
    from engine.session import Session
    from engine.trainer import Trainer
    from utils.types import Batch, Progress

OF_A_GPU = 0.9  # of a GPU's memory, when the batch that fits is estimated
AT_MOST = 0.75  # of the batch that did not fit, whatever is estimated


@contextmanager
def machine_faults(session: Session[Any]) -> Iterator[None]:
    """Raises MachineFault in place of what is not the program's fault."""
    try:
        yield
    except Exception as error:
        fault = find_fault(error)
        if fault is None:
            raise
        raise MachineFault(f"{fault.line}{_less_memory(fault, session)}{_what_is_left(fault, session)}") from error


def resume_command(folder: Path) -> str:
    """What goes on with a run, started as this one was."""
    own = f"{shlex.quote(sys.argv[0])} --resume {shlex.quote(str(folder))}"
    if not dist.is_distributed():
        return f"python {own}"
    here, machines = os.environ.get("LOCAL_WORLD_SIZE", "1"), os.environ.get("GROUP_WORLD_SIZE", "1")
    flags = f"--nproc_per_node {here}"
    return f"torchrun {flags} {own}" if machines == "1" else f"torchrun {flags} (and the other flags as before) {own}"


class Peaks(Callback):
    """Of the steps on a GPU that were made: what they took at the most, and what is taken between them, in bytes."""

    def __init__(self) -> None:
        self.most = self.least = 0

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        device = trainer.plan.device
        if device.type == "cuda":
            self.most, self.least = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)


def smaller_batch(batch_size: int, share: float, nominal: int, ranks: int) -> int:
    """The batch to try instead of one that takes too much.

    Args:
        share: of the batch that is estimated to fit.
    """
    return in_equal_parts(max(ranks, int(min(share, AT_MOST) * batch_size)), nominal, ranks)


def share_that_fits(peaks: Peaks, limit: float) -> float:
    """Of the batch: a half, unless steps were made with it before one was too large.

    Args:
        limit: bytes that the process can have.
    """
    if peaks.most <= peaks.least or limit <= 0:
        return 0.5
    return max(0.0, (OF_A_GPU * limit - peaks.least) / (peaks.most - peaks.least))


def _less_memory(fault: Fault, session: Session[Any]) -> str:
    """What was tried, and what takes less."""
    if not fault.memory:
        return ""
    options, ranks = session.options, dist.world_size()
    height, width = session.image_size if any(session.image_size) else options.imgsz
    tried, less, share = f"--batch-size {options.batch_size}, --imgsz {height} {width}", "a smaller --imgsz", 0.5
    if fault.memory == "host":
        tried += f", --workers {options.workers}" + f", --cache {options.cache}" * bool(options.cache)
        less += ", fewer --workers, no --cache"
    elif session.device.type == "cuda":  # written without one at hand: this branch has not been run
        free, total = torch.cuda.mem_get_info(session.device)
        tried += f", on a GPU of {total / 2**30:.0f} GiB"
        share = share_that_fits(session.peaks, free + torch.cuda.memory_reserved(session.device))
    batch = smaller_batch(options.batch_size, share, session.hyp.nominal_batch, ranks)
    if batch < options.batch_size:
        less = f"--batch-size {batch}, or -1, which finds what fits; {less}"
    return f" ({tried}); what takes less: {less}"


def _what_is_left(fault: Fault, session: Session[Any]) -> str:
    written = list(session.folder.glob(CHECKPOINTS))  # the baseline's, too
    if not written:
        return ""
    last = max(written, key=lambda path: path.stat().st_mtime)
    anew = f"start anew from it (--weights {last}), or go on as before" if fault.memory else "to go on"
    return f"; the last checkpoint is whole; {anew}: {resume_command(session.folder)}"
