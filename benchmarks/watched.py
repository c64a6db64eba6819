"""Runs one of the repository's training scripts, and notes as it goes what it and its loader workers hold in memory.

    python benchmarks/watched.py runs/soak.jsonl 50 0 train_distill.py --epochs 50 ...

A line of JSON (`Sample`) after the first step and every 50 steps; 0: to the end of the training, or after so many steps
the process ends there and then. `--off NAME,NAME` before the script's name switches fast paths off (`switches.py`).
Linux only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

import torch

from benchmarks.measured import run, stop_on_signals
from benchmarks.memory import megabytes, resident
from engine.callbacks import Callback
from engine.session import Session
from engine.trainer import Trainer
from utils.types import Batch, Progress


class Sample(NamedTuple):
    """One moment of a training. Megabytes (10^6 bytes) of what was written to memory: pages of program files do not
    count, whose share depends on who else on the machine has them."""

    step: int  # that was taken last, counted from 1
    time: float  # seconds since 1970
    busy: float  # seconds of processor time, of the training process and of those of its children that have ended
    main: float  # of the training process
    workers: tuple[float, ...]  # of each loader process, without what it shares; the first one first
    all: float  # of both, each page counted once
    files: int  # that the training process holds open
    cuda: float  # that the training process has reserved on its device
    peak: float  # resident at the most in the training process, its parts of files and of shared memory included


def sample(step: int) -> Sample:
    children = sorted(child.pid for child in multiprocessing.active_children() if child.pid)
    return Sample(
        step=step,
        time=time.time(),
        busy=sum(os.times()[:4]),
        main=megabytes("self", "Anonymous:"),
        workers=tuple(megabytes(child, "Private_Dirty:") for child in children),
        all=sum(megabytes(process, ("Pss_Anon:", "Pss_Shmem:")) for process in ("self", *children)),
        files=len(list(Path("/proc/self/fd").iterdir())),
        cuda=torch.cuda.memory_reserved() / 1e6 if torch.cuda.is_initialized() else 0.0,
        peak=resident(peak=True) / 1e6,
    )


class Watcher(Callback):
    """Appends samples to a file.

    Args:
        every: steps between samples.
        stop: the step after which the process ends; 0: none.
    """

    def __init__(self, record: Path, every: int, stop: int) -> None:
        self.record, self.every, self.stop = record, every, stop

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        step = progress.iteration + 1
        if step == 1 or step % self.every == 0:
            with self.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(sample(step)._asdict()) + "\n")
        if step == self.stop:
            for child in multiprocessing.active_children():
                child.terminate()
            os._exit(0)


def read(record: Path) -> list[Sample]:
    """All samples of a file."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return [Sample(**json.loads(line)) for line in lines]


def main(words: Sequence[str]) -> None:
    record, every, stop, *script = words
    usual, watcher = Session.watchers, Watcher(Path(record), int(every), int(stop))

    def watchers(session: Session[Any], folder: Path) -> tuple[Callback, ...]:
        return (*usual(session, folder), watcher)

    Session.watchers = watchers  # type: ignore[method-assign]
    run(script)


if __name__ == "__main__":
    stop_on_signals()
    main(sys.argv[1:])
