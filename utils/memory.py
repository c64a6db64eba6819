"""Memory of this process, and what is left of the machine's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

STATUS, MACHINE = Path("/proc/self/status"), Path("/proc/meminfo")
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# of both versions of control groups: what may be used, what is, and of that what is given back when it is wanted
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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
    """Bytes that can still be taken, within the limits of a container or of a scheduler's job; None where the system
    does not say."""
    limits = [left for folder in _groups() if (left := _left(folder)) is not None]
    with contextlib.suppress(OSError, KeyError, ValueError):  # another system
        lines = dict(line.split(":", 1) for line in MACHINE.read_text().splitlines())
        limits.append(float(lines["MemAvailable"].split()[0]) * 1024)
    return min(limits) if limits else None


def _groups() -> Iterator[Path]:
    """The control groups that this process is in, whose limits all hold; in a container its own is the first."""
    roots = {"": GROUPS, "memory": GROUPS / "memory"}  # of version 2, and of version 1
    yield from roots.values()
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for name in {"", "memory"} & set(controllers.split(",")):
                own = Path(path.lstrip("/"))
                yield from (roots[name] / one for one in (own, *own.parents))


def _left(folder: Path) -> float | None:
    """Bytes that a control group may still take; None where it has no limit."""
    for limit, used, cache in FILES:
        with contextlib.suppress(OSError, KeyError, ValueError):  # not there, or "max"
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return float((folder / limit).read_text()) - float((folder / used).read_text()) + float(counts[cache])
    return None
