"""How a training on a million images begins: seconds to its first step, and memory.

    python benchmarks/million.py --images 1000000

The data set is simulated: one small picture under many names (hard links) in a thousand folders, each with a label file
of its own; these take 4 GB of disk while they are there. `train.py` is started on it twice, as a user starts it: first
nothing is known of the files; then what was found is in a cache beside them, and they are only asked whether they have
changed. The tiniest model at a tiny size, so that what is measured is the data set's.

- *labels known*: seconds from the command until the images and labels of training are checked, and the log says so;
- *first step*, *step 100*: until the model has made so many;
- *busy*: processor time until the first step, of all processes but those that load batches, which does not depend on
  what else the machine does;
- *at the most*: resident memory of the training process at its peak until then, shared pages included;
- *training process*: memory that it has written to, after step 100; *a loader process*: the same without what it
  shares, the mean.

All files have just been written and are known to the system; from a disk that has to be asked, seconds are more.
Megabytes are 10^6 bytes. Exit status 1: one of the bounds (`--most-seconds`, `--most-mb`) is exceeded. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.memory import require_linux
from benchmarks.peers import machine, markdown
from benchmarks.watched import read
from benchmarks.workers import simulated
from utils.errors import UserError, exits_cleanly
from utils.files import ROOT

STARTS = ("first", "second")
VALIDATION = 1000  # images; those of training are what is measured


class Start(NamedTuple):
    """Seconds from the command, and megabytes."""

    labels: float
    first_step: float
    last_step: float
    busy: float
    peak: float
    main: float
    worker: float


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    require_linux()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = simulated(Path(folder), options.images, options.boxes, options.folders, min(options.images, VALIDATION))
        found = {start: begin(file, Path(folder) / f"{start}.jsonl", options) for start in STARTS}
    print(report(found, options, words))
    if too_much := exceeded(found, options):
        print("\n".join(too_much), file=sys.stderr)
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--images", type=int, default=1_000_000)
    made.add_argument("--folders", type=int, default=1000, help="that they are spread over")
    made.add_argument("--boxes", type=int, default=8, help="labels an image")
    made.add_argument("--steps", type=int, default=100, help="after which the training is stopped")
    made.add_argument("--cfg", default="yolov5p")
    made.add_argument("--imgsz", type=int, default=64)
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--folder", help="where the data set is made, and removed; default: where temporary files go")
    made.add_argument(
        "--most-seconds", type=float, nargs=2, default=(600.0, 60.0), help="to the first step, both starts"
    )
    made.add_argument("--most-mb", type=float, default=2500.0, help="of the training process at its peak")
    return made


def begin(file: Path, record: Path, options: argparse.Namespace) -> Start:
    """Starts a training and waits until it has made its steps.

    Raises:
        UserError: it failed.
    """
    watched = [str(ROOT / "benchmarks" / "watched.py"), str(record), str(options.steps), str(options.steps)]
    given = {
        "--weights": "", "--cfg": options.cfg, "--data": file, "--imgsz": options.imgsz, "--device": "cpu",
        "--batch-size": options.batch_size, "--workers": options.workers, "--epochs": 1,
        "--project": file.parent / "runs",
    }  # fmt: skip
    words = [sys.executable, *watched, "train.py", *(str(word) for pair in given.items() for word in pair)]
    started, labels, lines = time.time(), 0.0, [""]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith(f"train: {options.images} images"):
                labels = time.time() - started
            lines.append(line.strip() or lines[-1])
    if child.returncode:
        raise UserError(f"train.py ended with status {child.returncode}: {lines[-1]}")
    samples = read(record)
    last = samples[-1]
    worker = sum(last.workers) / max(1, len(last.workers))
    return Start(labels, samples[0].time - started, last.time - started, samples[0].busy, last.peak, last.main, worker)


def exceeded(found: Mapping[str, Start], options: argparse.Namespace) -> list[str]:
    """What was not kept, a line each."""
    lines = []
    for (name, start), seconds in zip(found.items(), options.most_seconds, strict=True):
        if start.first_step > seconds:
            lines.append(f"{name} start: {start.first_step:.0f} s to the first step, expected at most {seconds:g}")
        if start.peak > options.most_mb:
            lines.append(f"{name} start: {start.peak:,.0f} MB at the most, expected at most {options.most_mb:,.0f}")
    return lines


# -- report ------------------------------------------------------------------------------------------------------------


def report(found: Mapping[str, Start], options: argparse.Namespace, words: Sequence[str]) -> str:
    return "\n".join([
        f"{options.images:,} images (simulated) in {options.folders:,} folders, "
        f"{options.images * options.boxes:,} labels; {options.cfg}, {options.imgsz} px, batches of "
        f"{options.batch_size}, {options.workers} workers.",
        "",
        table(found, options.steps),
        "",
        machine("million.py", words),
    ])  # fmt: skip


def table(found: Mapping[str, Start], steps: int) -> str:
    """Markdown: a row a start."""
    head = ["start", "labels known, s", "first step, s", f"step {steps}, s", "busy, s"]
    memory = ["at the most, MB", "training process, MB", "a loader process, MB"]
    rows = [
        [name, *(f"{value:.1f}" for value in start[:4]), *(f"{value:,.0f}" for value in start[4:])]
        for name, start in found.items()
    ]
    return markdown([*head, *memory], rows)


if __name__ == "__main__":
    main()
