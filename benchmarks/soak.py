"""Whether a long training holds ever more memory: 10,000 steps of a small one, with and without a teacher.

    python benchmarks/soak.py --steps 10000

The demonstration's student learns from the demonstration's pictures, small, alone and from its teacher, by the
training scripts as they are: loader processes, validation, checkpoints and tables after every epoch included. Images
are decoded anew, as those of a large data set are. Every 50 steps it is noted what is held:

- *training process*: memory that it has written to, in megabytes (10^6 bytes);
- *loader processes* (those of training and of validation together): the same without what they share;
- *all of it*: what these processes hold together, each page counted once;
- *open files* of the training process, and what it has reserved on a GPU, where it is trained on one.

What is held after the warm-up (`--warm-up`, a share of the steps) is cut into twenty blocks of equal length; a line
through their means tells by how much it grows in 1,000 steps, and how sure that is (95 %, Student's t; successive
blocks are not quite independent, so the interval is rather too narrow). Exit status 1: the upper end of an interval is
above `--bound`, megabytes or files per 1,000 steps, or a training failed. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.lanes import Children, tail
from benchmarks.memory import require_linux
from benchmarks.peers import machine, markdown
from benchmarks.report import student_t
from benchmarks.watched import Sample, read
from data.spec import read_data
from engine.options import DEMO
from utils.errors import UserError, exits_cleanly
from utils.files import ROOT
from utils.registry import find

TEACHER = str(ROOT / "weights" / "demo-teacher.pt")
ARMS = ("alone", "teacher")
BLOCKS = 20
PER = 1000  # steps


class Series(NamedTuple):
    """What was held, step by step, after the warm-up."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


class Growth(NamedTuple):
    """Per 1,000 steps, and by how much it may be off either way."""

    slope: float
    error: float


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    require_linux()
    for arm in options.arms:
        find("arm", arm, dict.fromkeys(ARMS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.out or temporary)
        if options.out and folder.exists():
            raise UserError(f"--out {folder}: there is such a folder, with samples of another time; name a new one")
        folder.mkdir(parents=True, exist_ok=True)
        found = {arm: series(soak(arm, options, folder), options.warm_up) for arm in options.arms}
    print(report(found, options, words))
    if not all(flat(growth(one), options.bound) for held in found.values() for one in held):
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=10_000, help="batches, rounded up to whole epochs")
    made.add_argument("--every", type=int, default=50, help="steps between two looks")
    made.add_argument("--warm-up", type=float, default=0.2, help="share of the steps that do not count")
    made.add_argument("--bound", type=float, default=1.0, help="megabytes, or files, per 1,000 steps")
    made.add_argument("--data", default=DEMO["data"])
    made.add_argument("--cfg", default=DEMO["cfg"])
    made.add_argument("--teacher", default=TEACHER)
    made.add_argument("--imgsz", type=int, default=64)
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--device", default="cpu")
    made.add_argument("--out", default="", metavar="FOLDER", help="keeps samples, logs and runs there; must be new")
    made.add_argument("--arms", nargs="+", default=list(ARMS), metavar="NAME", help=", ".join(ARMS))
    return made


# -- measuring ---------------------------------------------------------------------------------------------------------


def soak(arm: str, options: argparse.Namespace, folder: Path) -> list[Sample]:
    """Trains, and gives what was noted.

    Raises:
        UserError: the training failed.
    """
    record, log = folder / f"{arm}.jsonl", folder / f"{arm}.log"
    watched = ["benchmarks/watched.py", str(record), str(options.every), "0", "--off", "memory"]
    children = Children(1)
    try:
        status = children.launch([*watched, *training(arm, options, folder)], log)
    finally:
        children.stop()
    if status:
        raise UserError(f"{arm}: the training ended with status {status}; the end of its log:\n{tail(log)}")
    return read(record)


def training(arm: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """Script and arguments."""
    batches = math.ceil(len(read_data(options.data).images("train")) / options.batch_size)
    words = ["train.py"]
    if arm == "teacher":
        words = ["train_distill.py", "--t_weights", options.teacher, "--d_output", "--d_feature"]
    given = {
        "--weights": "",
        "--cfg": options.cfg,
        "--data": options.data,
        "--hyp": DEMO["hyp"][0],
        "--imgsz": options.imgsz,
        "--batch-size": options.batch_size,
        "--workers": options.workers,
        "--device": options.device,
        "--epochs": math.ceil(options.steps / batches),
        "--patience": 0,
        "--project": folder,
        "--name": arm,
    }
    return words + [str(word) for pair in given.items() for word in pair]


# -- arithmetic --------------------------------------------------------------------------------------------------------


def series(samples: Sequence[Sample], warm_up: float) -> list[Series]:
    """What is told of a training, without its beginning.

    Raises:
        UserError: there are too few samples for a line.
    """
    kept = [one for one in samples if one.step > warm_up * samples[-1].step]
    if len(kept) < BLOCKS:
        raise UserError(
            f"{len(kept)} samples after the warm-up, expected at least {BLOCKS}; more --steps, or a smaller --every"
        )
    steps = [one.step for one in kept]
    held = {
        "training process": [one.main for one in kept],
        "loader processes": [sum(one.workers) for one in kept],
        "all of it": [one.all for one in kept],
        "open files": [float(one.files) for one in kept],
    }
    if any(one.cuda for one in kept):
        held["on the GPU"] = [one.cuda for one in kept]
    return [Series(name, steps, values) for name, values in held.items()]


def growth(one: Series) -> Growth:
    """The slope of a line through the means of blocks, per 1,000 steps, with its interval."""
    ends = [round(index * len(one.steps) / BLOCKS) for index in range(BLOCKS + 1)]
    blocks = [slice(*pair) for pair in itertools.pairwise(ends)]
    x = [statistics.fmean(one.steps[block]) / PER for block in blocks]
    y = [statistics.fmean(one.values[block]) for block in blocks]
    line = statistics.linear_regression(x, y)
    rest = sum((value - line.slope * place - line.intercept) ** 2 for place, value in zip(x, y, strict=True))
    spread = sum((place - statistics.fmean(x)) ** 2 for place in x)
    error = student_t(BLOCKS - 2) * math.sqrt(rest / (BLOCKS - 2) / spread)
    return Growth(line.slope, error)


def flat(one: Growth, bound: float) -> bool:
    return one.slope + one.error <= bound


# -- report ------------------------------------------------------------------------------------------------------------


def report(found: Mapping[str, Sequence[Series]], options: argparse.Namespace, words: Sequence[str]) -> str:
    (first, *_) = next(iter(found.values()))
    return "\n".join([
        f"{options.cfg}, {options.imgsz} px, batches of {options.batch_size}, {options.workers} workers; steps "
        f"{first.steps[0]:,} to {first.steps[-1]:,}.",
        "",
        table(found, options.bound),
        "",
        machine("soak.py", words),
    ])  # fmt: skip


def table(found: Mapping[str, Sequence[Series]], bound: float) -> str:
    """Markdown: a row a training and what it holds."""
    rows = []
    for arm, held in found.items():
        for one in held:
            grown = growth(one)
            values = [f"{value:,.1f}" for value in (one.values[0], one.values[-1], max(one.values))]
            verdict = "yes" if flat(grown, bound) else "**no**"
            rows.append([arm, one.name, *values, f"{grown.slope:+.2f} ± {grown.error:.2f}", verdict])
    head = ["training", "MB, or files, of", "after the warm-up", "at the end", "at the most", "growth per 1,000 steps"]
    return markdown([*head, f"at most {bound:g}"], rows)


if __name__ == "__main__":
    main()
