"""Whether a training survives `kill -9`: at random instants, as often as you like.

    python benchmarks/kills.py --kills 50

A small model is trained on pictures that the repository draws, with two loader processes and a checkpoint after nearly
every step. Its process and its workers are killed at a random instant of the time that an undisturbed run takes, from
the start of Python to its end, and started again: with --resume where there is a checkpoint, else as before. After each
kill, every checkpoint there must be whole. A run that reaches its end must have the weights and the table of the
undisturbed one, to the last bit; then the next one begins.

`--teacher` trains by train_distill.py instead, from the demonstration's teacher. Exit status 1: something was lost.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import machine
from data.drawn import CLASSES
from data.spec import read_data
from engine.options import DEMO
from models.weights import read_checkpoint
from utils.config import write_mapping
from utils.errors import UserError, exits_cleanly
from utils.files import ROOT

PATIENCE = 600.0  # seconds for one process
EVERY_STEP = "0.000001"  # minutes
PICTURES = {"draw": {"seed": 0, "train": 160, "val": 32, "test": 0, "size": [64, 96]}, "names": list(CLASSES)}


@dataclass
class Found:
    """What became of the kills."""

    kills: int = 0
    before: int = 0  # the first checkpoint
    midway: int = 0  # the checkpoint is from amidst an epoch
    ended: int = 0  # runs that reached their end
    losses: tuple[str, ...] = ()  # what was not as it should be


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.epochs, options.teacher)
        found = kill(bench, options.kills, random.Random(options.seed))
    print(report(found, bench.seconds, words))
    if found.losses:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="kills.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--kills", type=int, default=50)
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--teacher", action="store_true")
    made.add_argument("--seed", type=int, default=0, help="of the instants")
    return made


class Bench:
    """A training, and what it comes to undisturbed."""

    def __init__(self, folder: Path, epochs: int, teacher: bool) -> None:
        self.folder, self.epochs, self.teacher = folder, epochs, teacher
        self.data = write_mapping(folder / "data.yaml", PICTURES)
        read_data(str(self.data))  # draws them, if they are not there
        started = time.perf_counter()
        self.undisturbed = self._run(folder / "undisturbed", [])
        self.seconds = time.perf_counter() - started

    def start(self, project: Path) -> subprocess.Popen:
        """Starts the training, or goes on with it, in a process group of its own."""
        going_on = (project / "exp" / "weights" / "last.pt").exists()
        return self._start(project, ["--resume"] if going_on else ["--exist-ok"])

    def _run(self, project: Path, words: Sequence[str]) -> Path:
        child = self._start(project, words)
        if child.wait(timeout=PATIENCE):
            raise UserError(f"the undisturbed training ended with {child.returncode}: {errors(project)}")
        return project / "exp"

    def _start(self, project: Path, words: Sequence[str]) -> subprocess.Popen:
        given = {
            "--data": self.data, "--imgsz": 64, "--epochs": self.epochs, "--batch-size": 8, "--workers": 2,
            "--weights": "", "--cfg": DEMO["cfg"], "--save-interval": EVERY_STEP, "--hyp": ROOT / DEMO["hyp"][0],
        }  # fmt: skip
        flags = [str(word) for pair in given.items() for word in pair] + ["--noplots", "--device", "cpu"]
        if self.teacher:
            flags += ["--t_weights", *DEMO["t_weights"]]
        script = "train_distill.py" if self.teacher else "train.py"
        command = [sys.executable, str(ROOT / script), "--project", str(project), *words]
        command += [] if "--resume" in words else flags
        project.mkdir(exist_ok=True)
        with (project / "errors.txt").open("a") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )


def kill(bench: Bench, count: int, chance: random.Random) -> Found:
    """Kills so many times, and looks at what is left."""
    found = Found()
    number, child, project = 0, None, bench.folder / "run0"
    with tqdm(total=count, unit="kill") as bar:
        while found.kills < count or child is not None:
            last = found.kills == count  # this one may reach its end
            child = bench.start(project)
            try:
                child.wait(timeout=PATIENCE if last else chance.uniform(0, bench.seconds))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                found.kills += 1
                bar.update()
                look(project / "exp" / "weights", found)
                continue
            if child.returncode:
                found.losses += (f"it ended with {child.returncode} instead of going on: {errors(project)}",)
            else:
                found.ended += 1
                found.losses += tuple(differences(project / "exp", bench.undisturbed))
            shutil.rmtree(project)
            number, child, project = number + 1, None, bench.folder / f"run{number + 1}"
    return found


def look(weights: Path, found: Found) -> None:
    """Every checkpoint must be whole."""
    found.before += not (weights / "last.pt").exists()
    for path in weights.glob("[!.]*.pt"):
        try:
            saved = read_checkpoint(path)
        except UserError as error:
            found.losses += (str(error),)
            continue
        if path.name == "last.pt" and saved.training is not None:
            found.midway += saved.training["step"] > 0


def differences(folder: Path, other: Path) -> list[str]:
    """In what two runs differ: weights and tables, but for the time that they took."""
    found = []
    for name in ("last.pt", "best.pt"):
        mine, theirs = (read_checkpoint(run / "weights" / name).state for run in (folder, other))
        wrong = [key for key, value in mine.items() if not torch.equal(value, theirs[key])]
        found += [f"{name}: {len(wrong)} of {len(mine)} tensors differ"] if wrong else []
    tables = []
    for run in (folder, other):
        with (run / "results.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    return found + (["results.csv differs"] if tables[0] != tables[1] else [])


def errors(project: Path) -> str:
    lines = [line for line in (project / "errors.txt").read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


def report(found: Found, seconds: float, words: Sequence[str]) -> str:
    return "\n".join([
        f"{found.kills} times `kill -9` at random instants of a run of {seconds:.1f} s: {found.before} before the "
        f"first checkpoint, {found.midway} left one from amidst an epoch. {found.ended} runs reached their end and "
        f"were compared with the undisturbed one.",
        "",
        *([f"**Lost**: {loss}" for loss in found.losses] or ["Nothing was lost."]),
        "",
        machine("kills.py", words),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
