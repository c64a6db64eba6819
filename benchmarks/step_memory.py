"""What training steps take in memory: of this process, and of fresh ones that are asked for one number."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.memory import resident
from benchmarks.peers import Peer
from benchmarks.step import Job, Step, first_batch
from benchmarks.step_peers import SNIPPETS, publisher, wishes
from data.spec import read_data
from engine.precision import choose_device, choose_precision
from utils.errors import UserError
from utils.memory import forget_peak

SCRIPT = Path(__file__).with_name("steps.py")
PEAK_STEPS = 3  # the second is the first with the optimizer's state in memory, and one more for what settles late


class Peaks(NamedTuple):
    """Bytes by which a fresh process grew."""

    job: Job
    student: float
    taught: float
    peer: float | None


def peaks(
    name: str, options: argparse.Namespace, words: list[str], pythons: dict[str, str], device: torch.device
) -> Peaks:
    """Of steps with the largest batch."""
    job = Job(name, max(options.batch_size), options, device, None, Path())
    student, taught = (_in_a_fresh_process(job, words, kind) for kind in ("student", "teacher"))
    peer = publisher(name, list(pythons))
    if not peer:
        return Peaks(job, student, taught, None)
    data = read_data(options.data)
    batch = first_batch(data, job.batch_size, options.imgsz)
    with tempfile.TemporaryDirectory() as folder, Peer(peer, pythons[peer], SNIPPETS[peer]) as one:
        found = one.ask("peak", count=PEAK_STEPS, **wishes(job._replace(folder=Path(folder)), batch, data))
    return Peaks(job, student, taught, found)


def _in_a_fresh_process(job: Job, words: list[str], kind: str) -> float:
    """This script, asked for one number."""
    only = ["--models", job.model, "--batch-size", str(job.batch_size), "--peer", "--peak-of", kind]
    command = [sys.executable, str(SCRIPT), *words, *only]  # of a flag given twice, the last counts
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"memory of {job.model}: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


def own_peak(options: argparse.Namespace) -> int:
    """Bytes by which this process grows in a few steps."""
    device = choose_device(options.device)
    data = read_data(options.data)
    batch = first_batch(data, options.batch_size[0], options.imgsz)  # before: a peer gets it ready, too
    forget_peak()
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        precision = choose_precision(device, options.amp)
        job = Job(options.models[0], options.batch_size[0], options, device, precision, Path(folder))
        step = Step(job, batch, data, job.teacher if options.peak_of == "teacher" else "", job.precision)
        for _ in range(PEAK_STEPS):
            step()
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resident(peak=True) - before
