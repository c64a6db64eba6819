"""What goes wrong with the machine and not with the program: told in one line, as a mistake is."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from utils.errors import MachineFault, said

_GONE = "its disk has gone; mount it again"
# what the system's reasons mean for whoever reads them
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "ENOSPC": "the disk is full; make room there",
        "EDQUOT": "the quota on this disk is used up; make room there",
        "EFBIG": "the file is larger than is allowed there (ulimit -f)",
        "EROFS": "the disk is read-only",
        "EACCES": "this user may not do that; look at the rights of the file and of its folder",
        "EPERM": "this user may not do that; look at the rights of the file and of its folder",
        "EIO": "the disk fails; the system's log says more (dmesg)",
        "ENOENT": "it is not there; has it been deleted, or its disk unmounted?",
        "ENOTDIR": "it is not there; has it been deleted, or its disk unmounted?",
        "EMFILE": "too many open files; raise the limit (ulimit -n 65536), or take fewer --workers",
        "ENFILE": "too many open files; raise the limit of the system, or take fewer --workers",
        **dict.fromkeys(("ESTALE", "ENOTCONN", "ENODEV", "ENXIO", "EHOSTDOWN", "ETIMEDOUT", "EREMOTEIO"), _GONE),
    }
)
# of which a file need not be named; the others are no fault of a disk where none is, but of a connection, say
OF_DISKS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EMFILE", "ENFILE")
# PyTorch, cuBLAS, cuDNN, OpenCV, and C++ where PyTorch passes it on
MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory|bad_alloc|STATUS_ALLOC_FAILED|"
    r"insufficient memory",
    re.IGNORECASE,
)
DEVICE = re.compile(r"\b(CUDA|CUBLAS_\w+|CUDNN_\w+|cuDNN|HIP|MPS|XPU)\b")
SHARED = re.compile(r"shared memory|</torch_\w+>|received \d+ items of ancdata")
WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: ([\w ]*\w)|exited)")
NUMBERED = re.compile(r"\[Errno (\d+)\] [^:]+(?:: '(.+?)')?")
ENLARGE = "enlarge it (docker run --shm-size 8g; mount -o remount,size=8g /dev/shm), or take fewer --workers"


class Fault(NamedTuple):
    """What is wrong with the machine."""

    line: str
    memory: str = ""  # 'device' or 'host', where it is memory that is lacking


OUT_OF_MEMORY = Fault("out of memory", "host")


def find_fault(error: BaseException) -> Fault | None:
    """What a person is told of an error that the machine has made; None for any other, as of a bug."""
    text = said(error)
    if isinstance(error, MachineFault):
        return Fault(text)
    if isinstance(error, OSError) and not MEMORY.search(text):
        return _of_system(error, text)
    if isinstance(error, MemoryError | OSError):
        return OUT_OF_MEMORY
    if not isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] != "cv2":
        return None
    # that a worker is gone may be all that the loader says, in place of what has ended it
    if (found := WORKER.search(str(error.__cause__)) or WORKER.search(text)) is not None:
        return _of_worker(found[1], found[2] or "")
    if SHARED.search(text):
        return _of_shared_memory(text)
    if MEMORY.search(text):
        return Fault("out of memory", "device") if DEVICE.search(text) else OUT_OF_MEMORY
    return None


def _of_system(error: OSError, text: str) -> Fault | None:
    number, path = error.errno, error.filename
    if number is None and (found := NUMBERED.match(text)):  # it was raised in a loader's process
        number, path = int(found[1]), found[2]
    name = errno.errorcode.get(number or 0, "")
    reason = REASONS.get(name)
    if reason is None or number is None or (path is None and name not in OF_DISKS):
        return None
    return Fault(f"{reason} ({os.strerror(number)})" if path is None else f"{os.fsdecode(path)}: {reason}")


def _of_shared_memory(text: str) -> Fault:
    if "ancdata" in text or "Too many open files" in text:
        return Fault(REASONS["EMFILE"])
    if "No such file" in text:  # whoever was to hand it over is no more
        return Fault("a loader process has ended without a word, as it may when memory runs out", "host")
    return Fault(f"/dev/shm is full, in which loader processes hand over their batches; {ENLARGE}")


def _of_worker(process: str, signal: str) -> Fault:
    """Of a loader's process that was ended by a signal, or has ended of itself."""
    who = f"a loader process ({process})"
    if signal == "Bus error":
        return Fault(f"{who} was ended by a bus error: /dev/shm is full ({ENLARGE}), or a packed cache has gone")
    if signal == "Killed":
        return Fault(f"{who} was killed, as the system does when memory runs out", "host")
    if not signal:
        return Fault(f"{who} has ended without a word, as it may when memory runs out", "host")
    return Fault(f"{who} was ended by a signal ({signal}); --workers 0 shows where")
