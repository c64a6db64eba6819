"""How long a whole training takes: from the command to its end, validation after every epoch included.

    python benchmarks/runs.py --data bccd.yaml --imgsz 320 --epochs 5 --peer yolov5=PYTHON ultralytics=PYTHON

The smallest model that a peer publishes, from scratch, there and here: the same data, image size, batch, number of
epochs and of loader processes, and what else both do unasked (each in the precision it chooses itself). Figures are not
drawn on either side. Seconds of whole processes, medians over rounds in which every side runs once; a ratio above 1
says that this repository is faster. *An epoch more* is what a longer run adds: the difference to a run of one epoch,
divided by the others.

Peers write a file `<split>.cache` beside the labels; name a copy of the data set where it must stay as it is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import NONE, machine, markdown, ratio, read_peers, rounds
from benchmarks.startup import OURS, SIDES, TRAIN, Bench
from data.spec import read_data
from utils.errors import exits_cleanly
from utils.files import ROOT

# what a peer that is older than its libraries needs to run to its end: names that they have renamed, and a load of its
# own checkpoints as it was meant
PREPARED = """
import os, sys
import numpy
if not hasattr(numpy, "trapz"):
    numpy.trapz = numpy.trapezoid
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
"""
MODELS = {"yolov5": "yolov5n", "ultralytics": "yolov8n"}  # the smallest that each publishes

Seconds = Mapping[tuple[str, str, int], Sequence[float]]  # side, model, epochs


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    peers = read_peers(options.peer)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Bench(Path(folder), read_data(options.data), options), peers, options)
    print(report(seconds, options, words))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True)
    made.add_argument("--epochs", type=int, default=5, help="at least 2")
    made.add_argument("--imgsz", type=int, default=320)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--workers", type=int, default=2, help="of all sides")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    return made


def measure(bench: Bench, peers: Mapping[str, str], options: argparse.Namespace) -> Seconds:
    """Seconds of whole trainings; without peers of ours alone."""
    jobs = {}
    for side, model in MODELS.items():
        if peers and side not in peers:
            continue
        for epochs in (1, options.epochs):
            for own, python in ((OURS, sys.executable), (side, peers.get(side, ""))):
                if python:
                    ready = PREPARED if own == "yolov5" else "import sys\n"
                    code = ready + TRAIN[own].format(root=str(ROOT), words=command(bench, own, model, epochs))
                    jobs[own, model, epochs] = lambda s=own, words=(python, "-c", code): bench.spent(s, words)
    first = [key for key in jobs if key[2] == 1]
    for key in first:  # caches of labels and files are warm then
        jobs[key]()
    return rounds(jobs, options.rounds, warm_up=0)


def command(bench: Bench, side: str, model: str, epochs: int) -> list[str]:
    """Arguments of a training of this model from scratch, with its validation and without its figures."""
    swapped = {"yolov5n.yaml": f"{model}.yaml", "epochs=1": f"epochs={epochs}", "val=False": "val=True"}
    words = [swapped.get(word, word) for word in bench.training(side)]
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = str(epochs)
    return words


def report(seconds: Seconds, options: argparse.Namespace, words: Sequence[str]) -> str:
    absent = ", ".join(side for side in SIDES if side != OURS and not any(side == own for own, _, _ in seconds))
    return "\n".join([
        f"Whole trainings from scratch, {options.epochs} epochs at {options.imgsz} px, batches of "
        f"{options.batch_size}, {options.workers} workers, validation after every epoch.",
        "",
        table(seconds, options.epochs),
        "",
        f"Medians of {options.rounds} rounds.{f' Not measured: {absent}.' if absent else ''} "
        f"{machine('runs.py', words)}",
    ])  # fmt: skip


def table(seconds: Seconds, epochs: int) -> str:
    """Markdown: a row a model."""
    rows = []
    for peer, model in MODELS.items():
        if (OURS, model, epochs) not in seconds:
            continue
        sides = [side for side in (OURS, peer) if (side, model, epochs) in seconds]
        whole = {side: seconds[side, model, epochs] for side in sides}
        more = {side: [(statistics.median(whole[side]) - statistics.median(seconds[side, model, 1])) / (epochs - 1)]
                for side in sides}  # fmt: skip
        cells = []
        for figure in (whole, more):
            cells += [f"{statistics.median(figure[side]):.1f}" if side in figure else NONE for side in (OURS, peer)]
            cells.append(f"{ratio(figure[peer], figure[OURS]):.2f}" if peer in figure else NONE)
        rows.append([model, peer, *cells])
    head = ["model", "peer", "run here, s", "peer's, s", "peer / here", "an epoch more here, s", "peer's, s"]
    return markdown([*head, "peer / here"], rows)


if __name__ == "__main__":
    main()
