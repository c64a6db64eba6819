r"""What a training step costs, where its time goes, what a teacher adds, and how much memory it takes.

    python benchmarks/steps.py --data bccd.yaml --models yolov5n yolov5s yolov5m yolov8n yolov8s \
        --imgsz 320 --batch-size 8 16 --peer yolov5=PYTHON ultralytics=PYTHON

A row a model and batch size, from scratch; medians over rounds, in each of which everything of the row runs once:

- *ours*: a step of engine/trainer.py itself, from uint8 images to the averaged weights, in the precision of a run
  without flags; *float32*: the same with `--amp off`.
- *yolov5*, *ultralytics*: the same architecture there, on the same batch: its model, its detection loss, SGD, clipped
  gradients, its average of the weights; eager and in float32 on a CPU, with its automatic mixed precision on a GPU.
  Ratios are peer / ours: above 1, ours is faster. A model has the peer that publishes it, if `--peer` says where.
- *compiled* (`--compile`): ours with the network compiled; how long that takes is told on stderr.
- *with teacher*: ours with the default methods (`--d_output --d_feature`) and a frozen teacher, the next larger model
  (`--teacher` names another); *overhead*: that step over the sum of the student's and of the bare forward pass of the
  teacher.

Every step here ends with one of the optimizer (SGD on both sides); a run of batches smaller than the nominal 64 makes
fewer of these than batches. *Memory*: by how much a fresh process grew, from behind the imports to the peak of three
steps, in megabytes: on a CPU resident memory, on a GPU what was allocated there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import Peer, machine, read_peers, rounds
from benchmarks.step import Job, Parts, Step, first_batch
from benchmarks.step_memory import own_peak, peaks
from benchmarks.step_peers import SNIPPETS, publisher, wishes
from benchmarks.step_tables import Row, report
from data.spec import read_data
from engine.precision import choose_device, choose_precision
from utils.errors import exits_cleanly


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    pythons = read_peers(options.peer)
    if options.peak_of:
        print(json.dumps({"peak": own_peak(options)}))
        return
    device = choose_device(options.device)
    precision = choose_precision(device, options.amp)
    rows = []
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        peers = {name: stack.enter_context(Peer(name, path, SNIPPETS[name])) for name, path in pythons.items()}
        for name in options.models:
            for size in options.batch_size:
                rows.append(measure(Job(name, size, options, device, precision, Path(folder)), peers))
                print(f"{name}, batch {size}: {1000 * rows[-1].ours:.0f} ms a step", file=sys.stderr)
    memory = [] if options.no_memory else [peaks(name, options, words, pythons, device) for name in options.models]
    print(report(rows, memory, list(pythons), f"{machine('steps.py', words, precision or torch.float32)}"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="steps.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", required=True, help="the batch is the first one of its training images")
    made.add_argument("--models", nargs="+", default=["yolov5n", "yolov5s", "yolov5m"], help="architectures")
    made.add_argument("--teacher", default="", help="architecture or weights; the default is one size larger")
    made.add_argument("--imgsz", type=int, default=320)
    made.add_argument("--batch-size", type=int, nargs="+", default=[8, 16])
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    made.add_argument("--amp", default="auto", help="as in train.py")
    made.add_argument("--device", default="")
    made.add_argument("--compile", action="store_true", help="also with the networks compiled, in the last table")
    made.add_argument("--no-memory", action="store_true")
    made.add_argument("--peak-of", choices=("student", "teacher"), help=argparse.SUPPRESS)  # a fresh process of its own
    return made


def measure(job: Job, peers: dict[str, Peer]) -> Row:
    data = read_data(job.options.data)
    batch = first_batch(data, job.batch_size, job.options.imgsz)
    ours = Step(job, batch, data, "", job.precision)
    taught = Step(job, batch, data, job.teacher, job.precision)
    jobs: dict[str, Callable[[], Any]] = {"ours": ours, "with teacher": taught, "teacher alone": taught.teach}
    if job.precision is not None:
        jobs["float32"] = Step(job, batch, data, "", None)
    if job.options.compile:
        jobs["compiled"] = compiled = Step(job, batch, data, "", job.precision, compiled=True)
        print(f"{job.model}: compiled in {compiled().step:.0f} s", file=sys.stderr)
    peer = publisher(job.model, list(peers))
    if peer:
        peers[peer].ask("prepare", **wishes(job, batch, data))
        jobs[peer] = lambda: Parts(**peers[peer].ask("step"))
    found = rounds(jobs, job.options.rounds, warm_up=2)
    return Row(job, found, found.pop("teacher alone"), peer)


if __name__ == "__main__":
    main()
