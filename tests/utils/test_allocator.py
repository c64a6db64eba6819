"""Memory that is freed and taken again."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest

from utils import allocator
from utils.files import ROOT

# pages that the system had to clear while blocks of 40 MB were taken and freed ten times
FAULTS = """
import resource
import torch
from utils.allocator import keep_freed_memory
{keep}
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until it has settled where blocks lie
    torch.ones(10_000_000)
before = count()
for _ in range(10):
    torch.ones(10_000_000)
print(count() - before)
"""


def faults(keep: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_memory_is_taken_again_without_asking_the_system():
    kept = faults("keep_freed_memory()")
    assert kept < 100 < faults("")  # 97,660 pages of 4 kB; the system may give larger ones


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_kept_memory_can_be_given_back():
    """400 MB below a small block that stays, so that it is not the end of the heap."""
    code = """
import torch
from benchmarks.memory import resident
from utils.allocator import keep_freed_memory, return_freed_memory
keep_freed_memory()
parts = [torch.ones(1_000_000) for _ in range(100)]
last = torch.ones(100)
full = resident()
del parts
kept = resident()
assert return_freed_memory()
print(full - kept, full - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, given = map(int, done.stdout.split())
    assert kept < 40e6 < 360e6 < given


def test_the_garbage_collector_leaves_alone_what_was_there_before():
    with pytest.raises(KeyError), allocator.settled():
        assert gc.get_freeze_count() > 1000
        raise KeyError
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("system", "library"), [("darwin", ("", "")), ("win32", ("", "")), ("linux", ("musl", ""))])
def test_other_systems_are_left_alone(monkeypatch, system, library):
    monkeypatch.setattr(allocator.sys, "platform", system)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: library)
    assert not allocator.keep_freed_memory()
    assert not allocator.return_freed_memory()
