"""Memory of processes, as Linux tells it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from benchmarks.measured import peak_rss
from utils import memory
from utils.errors import UserError

STATUS = Path("/proc/self/smaps_rollup")


def require_linux() -> None:
    """Raises UserError where nobody tells what memory is private."""
    if not STATUS.exists():
        raise UserError(f"{STATUS}: there is none; private memory of processes is told by Linux alone")


def limit(megabytes: float) -> None:
    """This process may take so much more than it has now; what would take more raises MemoryError. Linux alone can."""
    with contextlib.suppress(OSError, ImportError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(megabytes * 1e6)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def megabytes(process: Any, kind: Any) -> float:
    """Memory of a process: the sum of the lines of smaps_rollup that begin like this, or like one of several.

    'Private': shared with nobody; 'Anonymous:': of no file; 'Pss_Anon:': the same, of what is shared its part; 'Rss':
    all.
    """
    with open(f"/proc/{process}/smaps_rollup") as file:  # noqa: PTH123 - runs in peers' processes too
        return sum(int(line.split()[1]) for line in file if line.startswith(kind)) * 1024 / 1e6


def resident(peak: bool = False) -> int:
    """Bytes of this process, now or at the most; where the system does not say, at the most so far."""
    return memory.resident(peak) or peak_rss()
