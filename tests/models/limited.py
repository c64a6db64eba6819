"""Weights files read in a process with little memory and time, which may end in any way.

    python -m tests.models.limited FILE ...        prints what came of each, as JSON

Each file has a fork of its own: what hangs within C hears no signal of Python, and what takes all memory takes that of
the fork alone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.memory import limit

SECONDS = 10  # of the processor
MEGABYTES = 800  # more than the process has before; 2 million objects take half of it


def outcomes(paths: Sequence[Path]) -> list[str]:
    """Of each file 'loaded', the line that refuses it, or how the process ended instead."""
    command = [sys.executable, "-m", "tests.models.limited", *map(str, paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    patience = 60 + 2 * SECONDS * len(paths)
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=root, env=environment, timeout=patience
    )
    found: list[str] = json.loads(done.stdout)
    return found


def _tried(path: str) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _limit()
        os.write(writing, _read(path).encode()[:4000])
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    return said if status == 0 else f"ended by {signal.Signals(os.WTERMSIG(status)).name}"


def _limit() -> None:
    limit(MEGABYTES)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + SECONDS, resource.RLIM_INFINITY))


def _read(path: str) -> str:
    from models.weights import load_model, read_checkpoint
    from utils.errors import UserError

    try:
        load_model(read_checkpoint(path))
    except UserError as error:
        return str(error)
    except BaseException as error:
        return f"a traceback: {error!r}"[:500]
    return "loaded"


if __name__ == "__main__":
    import models.weights  # noqa: F401 - before the forks

    print(json.dumps([_tried(path) for path in sys.argv[1:]]))
