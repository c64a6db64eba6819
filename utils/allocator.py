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


@contextmanager
def settled() -> Iterator[None]:
    """What lives at its beginning is not looked at by the garbage collector until its end, and what was freed before is
    given back to the system.

    Looking at an object is writing into its page: processes that were forked from this one would then have a copy of
    all pages that it holds objects in (a hundred megabytes), whenever it first happens to look at all.
    """
    gc.collect()
    gc.freeze()
    return_freed_memory()
    try:
        yield
    finally:
        gc.unfreeze()


def _of_c_library(name: str) -> Any:
    """A function of the GNU C library; None elsewhere."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), name, None)
