"""Runs trainings in child processes, some at a time, from wherever they stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from benchmarks.arms import Plan, Run, scoring, training
from benchmarks.measured import cores
from utils.files import ROOT

PATIENCE = 30  # seconds in which a stopped child may tidy up
LAST_LINES = 12  # of the log of a run that failed

Launch = Callable[[Sequence[str], Path], int]  # (script and arguments, log file) -> exit status


class Children:
    """Child processes, which end when they are told to. Several at a time share the cores."""

    def __init__(self, lanes: int) -> None:
        self.environment = dict(os.environ)
        if lanes > 1:
            self.environment["OMP_NUM_THREADS"] = str(max(1, cores() // lanes))
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def launch(self, words: Sequence[str], log: Path) -> int:
        """Runs a script of the repository to its end; what it says is appended to the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"\n$ python {shlex.join(words)}\n".encode())
            file.flush()
            with self.lock:
                if self.stopped:
                    return -1
                child = subprocess.Popen(
                    [sys.executable, str(ROOT / words[0]), *words[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on once
                )
                self.running.add(child)
            status = child.wait()
        with self.lock:
            self.running.discard(child)
        return status

    def stop(self) -> None:
        """Interrupts all children, and starts no more."""
        with self.lock:
            self.stopped, children = True, list(self.running)
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()


def work(plan: Plan, run: Run, launch: Launch) -> str:
    """Trains and scores one run as far as it is not done; returns what went wrong, or ''."""
    log = run.folder / "log.txt"
    if not run.trained():
        off = ["--off", ",".join(run.arm.off)] if run.arm.off else []
        words = ["benchmarks/measured.py", str(run.record.absolute()), *off, *training(plan, run)]
        if launch(words, log) or not run.trained():
            return f"{run.title}: training failed; the end of {log}:\n{tail(log)}"
    weights = str(run.folder / "weights" / "best.pt")
    if not run.scored(plan.split) and launch(scoring(plan, weights, run.folder), log):
        return f"{run.title}: scoring failed; the end of {log}:\n{tail(log)}"
    return ""


def work_all(plan: Plan, runs: Sequence[Run], lanes: int, children: Children, after: Callable[[Run], str]) -> bool:
    """Everything that is not done yet, `lanes` at a time, in the order of `runs`; returns whether all went well.

    Args:
        after: called with each run that ended well; what it returns is shown.
    """
    todo = [run for run in runs if not run.scored(plan.split)]
    now: list[str] = []
    good, last = True, ""
    with tqdm(total=len(runs), initial=len(runs) - len(todo), unit="run", dynamic_ncols=True) as bar:

        def show() -> None:
            bar.set_postfix_str("; ".join(filter(None, [" | ".join(now), last])))

        def one(run: Run) -> str:
            now.append(run.title)
            show()
            try:
                return work(plan, run, children.launch)
            finally:
                now.remove(run.title)

        with ThreadPoolExecutor(lanes) as pool:
            futures = {pool.submit(one, run): run for run in todo}
            try:
                for done in as_completed(futures):
                    if problem := done.result():
                        good = False
                        bar.write(problem, file=sys.stderr)
                    else:
                        last = after(futures[done])
                    bar.update()
                    show()
            except BaseException:  # Ctrl-C above all: nothing more is begun, and nothing goes on unseen
                pool.shutdown(wait=False, cancel_futures=True)
                children.stop()
                raise
    return good


def score_teachers(plan: Plan, launch: Launch) -> dict[str, Path | None]:
    """Row title -> metrics.json; None of a teacher that cannot be scored, such as one of other classes."""
    found: dict[str, Path | None] = {}
    for index, weights in enumerate(plan.t_weights):
        folder = plan.out / f"teacher{index}"
        title = "teacher" if len(plan.t_weights) == 1 else f"teacher {index}"
        file = folder / plan.split / "metrics.json"
        if not file.exists() and launch(scoring(plan, weights, folder), folder / "log.txt"):
            print(f"{title} {weights} is not scored; the end of its log:\n{tail(folder / 'log.txt')}", file=sys.stderr)
        found[title] = file if file.exists() else None
    return found


def tail(log: Path) -> str:
    """The last lines, of progress bars the last state."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([f"    {line}" for line in lines if line.strip()][-LAST_LINES:])
