"""Runs one of the repository's scripts, and leaves beside its results what it took.

    python benchmarks/measured.py runs/cwd/seed0/run.json train_distill.py --weights yolov5n.pt ...

`--off NAME,NAME` before the script's name switches fast paths off (`switches.py`).
The JSON says `finished` once the script has ended well. Peaks of memory are those of the largest of all attempts, so
that a run that was interrupted and resumed is measured like one that was not.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import signal
import sys
from pathlib import Path
from typing import Any

PEAKS = ("rss_mb", "cuda_mb")


def main(record: Path, words: list[str]) -> None:
    finished = False
    try:
        run(words)
        finished = True
    finally:
        leave(record, finished)


def run(words: list[str]) -> None:
    """Runs a script to its end, without the fast paths that `--off` before its name lists."""
    if words[0] == "--off":
        from benchmarks.switches import switch_off

        switch_off(words[1].split(","))
        words = words[2:]
    script, *arguments = words
    sys.argv = [script, *arguments]  # which the run's environment.yaml quotes
    importlib.import_module(script.removesuffix(".py")).main(arguments)


def leave(record: Path, finished: bool) -> None:
    """Writes the record, with the larger peaks where there was one already."""
    from utils.files import write_text

    now = {"finished": finished, **usage()}
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    write_text(record, json.dumps(now | {peak: max(now[peak], before.get(peak, 0.0)) for peak in PEAKS}, indent=2))


def usage() -> dict[str, Any]:
    """Of this process, without its loader workers: peak memory in megabytes (of the GPU: as reserved), and on what."""
    import torch

    cuda = torch.cuda.is_available() and torch.cuda.max_memory_reserved() > 0
    return {
        "rss_mb": peak_rss() / 1e6,
        "cuda_mb": torch.cuda.max_memory_reserved() / 1e6 if cuda else 0.0,
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def peak_rss() -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", information.read_text()) if information.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def stop_on_signals() -> None:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, even in a process that was started in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/
    stop_on_signals()
    main(Path(sys.argv[1]), sys.argv[2:])
