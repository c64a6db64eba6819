"""How the C library hands out memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# of mallopt (malloc.h of the GNU C library): the size from which free memory at the end goes back to the system, and
# how many blocks may be pages of their own
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it has freed, and takes it again; whether that could be arranged.

    By default, blocks of more than some megabytes, as activations are, go back to the system each time, and the system
    has to clear every page of them when they are asked for again: a tenth of a training step on a CPU. Nothing is done
    but on Linux with the GNU C library.
    """
    change = _of_c_library("mallopt")
    return change is not None and all(change(what, value) for what, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1)))


def return_freed_memory() -> bool:
    """Gives what this process has freed by now back to the system; whether there was any, and a way to do so.

    To be called once, behind what took much and will not be done again, such as reading a data set of a million images.
    """
    trim = _of_c_library("malloc_trim")
    return trim is not None and bool(trim(0))


def settle() -> None:
    """What lives now is left alone by the garbage collector from here on, and what was freed goes back to the system.

    To be called before processes are forked. Looking at an object is writing into its page, and so is taking memory
    again that was free: each time the page is there once more, and once for all of the others. Whenever the collector
    first happened to look at all, that was a hundred megabytes.
    """
    gc.collect()
    gc.freeze()
    return_freed_memory()


@contextmanager
def settled() -> Iterator[None]:
    """`settle`, until its end."""
    settle()
    try:
        yield
    finally:
        gc.unfreeze()


def _of_c_library(name: str) -> Any:
    """A function of the GNU C library; None elsewhere."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), name, None)
