"""Other repositories to be measured beside this one, each in an environment of its own.

A peer is a Python that has it installed, `--peer yolov5=PYTHON ultralytics=PYTHON`. There a child process runs a
snippet and then answers one request a line, so that rounds of ours and of the peer's alternate and a machine that
slows down slows both:

    with Peer("yolov5", python, SNIPPET) as peer:
        peer.ask("prepare", size="n")              # calls what the snippet defines: plain data in, plain data out
        times = rounds({"ours": ours, "peer": lambda: peer.ask("step")}, count=7)

Peers are used through what they publish, never read or copied (see "Clean room" in CONTRIBUTING.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measured import cores, processor
from utils.errors import UserError
from utils.registry import find

NAMES = ("yolov5", "ultralytics")
PATIENCE = 600.0  # seconds for one answer, imports included
NONE = "-"

# What the child does. Its answers go where its standard output was; whatever the peer prints goes to its errors.
WORKER = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
def answer(**found):
    answers.write(json.dumps(found) + "\\n")
    answers.flush()
known = {"__name__": "snippet"}
try:
    exec(compile(json.loads(sys.stdin.readline()), "<snippet>", "exec"), known)
    answer(value=None)
    for line in sys.stdin:
        name, options = json.loads(line)
        answer(value=known[name](**options))
except BaseException as error:
    traceback.print_exc()
    answer(error=f"{type(error).__name__}: {error}")
"""


class Peer:
    """A snippet that waits in a peer's Python for what it is asked.

    Args:
        name: of the peer, for what is said of it.
        python: its interpreter.
        snippet: source, run first; what it defines can be asked for.
        patience: seconds that one answer may take.

    Raises:
        UserError: there is no such Python, or the snippet does not run there.
    """

    def __init__(self, name: str, python: str, snippet: str, patience: float = PATIENCE) -> None:
        self.name = name
        self.patience = patience
        self.folder = Path(tempfile.mkdtemp())  # it works there, and leaves there what it writes about itself
        self._errors = (self.folder / "errors.txt").open("w+b")
        # isolated: neither this repository's rooms nor PYTHONPATH come before the peer's own modules
        words = [python, "-I", "-u", "-c", WORKER]
        try:
            self._child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=self.folder,
                env=self._environment(),
            )
        except OSError as error:
            self._tidy()
            raise UserError(f"--peer {name}={python}: {error.strerror}; expected a Python that has {name}") from error
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._exchange(snippet)

    def ask(self, function: str, **options: Any) -> Any:
        """What the snippet's `function(**options)` returns there.

        Raises:
            UserError: it failed, or took longer than the peer's patience.
        """
        return self._exchange([function, options])

    def close(self) -> None:
        """Ends the child. Harmless when it has ended already."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        try:
            self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._tidy()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self) -> dict[str, str]:
        own = {"YOLO_CONFIG_DIR": str(self.folder), "YOLOV5_CONFIG_DIR": str(self.folder), "YOLO_OFFLINE": "true"}
        return {**os.environ, **own}

    def _exchange(self, request: Any) -> Any:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
            line = self._answers.get(timeout=self.patience)
        except queue.Empty:
            self._give_up(f"no answer within {self.patience:g} s")
        except (OSError, ValueError):  # a pipe that nobody reads any more, or that was closed here
            self._give_up("it has ended")
        if not line:
            self._give_up("it ended without an answer")
        found = json.loads(line)
        if "error" in found:
            self._give_up(found["error"])
        return found["value"]

    def _give_up(self, reason: str) -> None:
        """Raises UserError, with the last line of the child's errors where the reason does not say it."""
        self._child.kill()
        self._child.wait()
        last = ""
        if not self._errors.closed:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        self.close()
        raise UserError(f"peer {self.name}: {' '.join(reason.split())}{f' ({last})' if last not in reason else ''}")

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _tidy(self) -> None:
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def read_peers(words: Sequence[str]) -> dict[str, str]:
    """`["yolov5=PYTHON", ...]` -> name -> Python.

    Raises:
        UserError: another form, or a peer that is not known.
    """
    found = {}
    for word in words:
        name, equals, python = word.partition("=")
        if not (equals and python):
            raise UserError(f"--peer: got '{word}', expected NAME=PYTHON, such as {NAMES[0]}=../venv/bin/python")
        find("peer", name, dict.fromkeys(NAMES))
        # it runs in a folder of its own; links are kept, because an environment's Python is one
        found[name] = str(Path(python).absolute()) if "/" in python else shutil.which(python) or python
    return found


# -- measuring ---------------------------------------------------------------------------------------------------------


def rounds(jobs: Mapping[str, Callable[[], Any]], count: int, warm_up: int = 1) -> dict[str, list[Any]]:
    """What each job returns (its own seconds, say), in rounds in which every job runs once, in the same order.

    Args:
        count: rounds that count.
        warm_up: rounds before them, whose results are thrown away.
    """
    found: dict[str, list[Any]] = {name: [] for name in jobs}
    for index in tqdm(range(warm_up + count), desc="rounds", leave=False):
        for name, job in jobs.items():
            value = job()
            if index >= warm_up:
                found[name].append(value)
    return found


def ratio(other: Sequence[float], own: Sequence[float]) -> float:
    """Of medians: above 1, `own` is so many times faster."""
    return statistics.median(other) / statistics.median(own)


def machine(script: str, words: Sequence[str], precision: object = None) -> str:
    """Where and how something was measured, and the command that does it again: paths by their last part alone."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    date = datetime.now(timezone.utc).date().isoformat()
    shown = shlex.join(["python", f"benchmarks/{script}", *(_without_folders(word) for word in words)])
    number = "" if precision is None else f", {str(precision).removeprefix('torch.')}"
    return (
        f"{device}, {cores()} cores, {torch.get_num_threads()} threads, Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}{number}; {date}\n\n    {shown}"
    )


def _without_folders(word: str) -> str:
    """`yolov5=/home/me/venv/bin/python` -> `yolov5=PYTHON`; an absolute path -> its last part."""
    name = word.partition("=")[0]
    if name in NAMES and name != word:
        return f"{name}=PYTHON"
    return Path(word).name if Path(word).is_absolute() else word


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join([f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)])
