"""Memory of this process, and what is left of the machine's."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

STATUS, MACHINE, GROUP = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def resident(peak: bool = False) -> int | None:
    """Bytes of this process, now or at the most; None where the system does not say (Linux alone does).

    `resource` counts in what the parent had when it started us, so the system's own file is read.
    """
    try:
        found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def forget_peak() -> None:
    """The peak begins anew with what is taken now. Linux alone can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def free_memory() -> float | None:
    """Bytes that can still be taken, within the limits of a container; None where the system does not say."""
    limits = []
    try:
        lines = dict(line.split(":", 1) for line in MACHINE.read_text().splitlines())
        limits.append(float(lines["MemAvailable"].split()[0]) * 1024)
        limits.append(float((GROUP / "memory.max").read_text()) - float((GROUP / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):  # another system, another version of cgroups, or "max"
        pass
    return min(limits) if limits else None
