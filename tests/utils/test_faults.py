"""What the machine does wrong is told in one line; a bug is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from utils.errors import MachineFault, UserError, exits_cleanly
from utils.faults import find_fault

# as PyTorch's loader passes on what its processes raise
WORKER = "Caught {kind} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n...\n{last}"


def of_system(name: str, path: str | None = "/data/a.jpg") -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of_system("ENOSPC"), "/data/a.jpg: the disk is full; make room there"),
        (of_system("ENOSPC", None), "the disk is full; make room there (No space left on device)"),
        (of_system("EDQUOT"), "the quota on this disk is used up"),
        (of_system("EROFS"), "/data/a.jpg: the disk is read-only"),
        (of_system("EACCES"), "/data/a.jpg: this user may not do that"),
        (of_system("EIO"), "the disk fails"),
        (of_system("ENOENT"), "/data/a.jpg: it is not there; has it been deleted, or its disk unmounted?"),
        (of_system("ESTALE"), "its disk has gone; mount it again"),
        (of_system("EMFILE"), "too many open files; raise the limit (ulimit -n 65536), or take fewer --workers"),
        (
            OSError(WORKER.format(kind="OSError", last="OSError: [Errno 28] No space left on device: '/data/b.npy'")),
            "/data/b.npy: the disk is full",
        ),
        (
            MachineFault(WORKER.format(kind="MachineFault", last="utils.errors.MachineFault: train: images: 9 lost")),
            "train: images: 9 lost",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            "/dev/shm is full, in which loader processes hand over their batches; enlarge it",
        ),
        (
            RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode: Too many open files"),
            "too many open files; raise the limit",
        ),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (
            RuntimeError("DataLoader worker (pid 42) is killed by signal: Bus error. It is possible that dataloader's"),
            "a loader process (42) was ended by a bus error: /dev/shm is full",
        ),
        (
            RuntimeError("DataLoader worker (pid 42) is killed by signal: Segmentation fault. "),
            "a loader process (42) was ended by a signal (Segmentation fault); --workers 0 shows where",
        ),
    ],
)
def test_the_line_says_what_where_and_what_helps(error: Exception, words: str) -> None:
    fault = find_fault(error)
    assert fault is not None
    assert words in fault.line
    assert "\n" not in fault.line
    assert fault.memory == ""


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), "host"),
        (of_system("ENOMEM", None), "host"),
        (OSError(WORKER.format(kind="OSError", last="OSError: [Errno 12] Cannot allocate memory")), "host"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "host",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), "host"),
        (RuntimeError("std::bad_alloc"), "host"),
        (RuntimeError("DataLoader worker (pid 42) is killed by signal: Killed. "), "host"),
        (RuntimeError("DataLoader worker (pid(s) 42, 43) exited unexpectedly"), "host"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "device"),
        (RuntimeError("CUDA error: out of memory"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device"),
    ],
)
def test_a_lack_of_memory_is_known_by_whose_it_is(error: Exception, memory: str) -> None:
    fault = find_fault(error)
    assert fault is not None
    assert fault.memory == memory


def test_what_has_ended_a_worker_is_told_where_the_loader_says_no_more_than_that_it_is_gone() -> None:
    error = RuntimeError("DataLoader worker (pid(s) 42) exited unexpectedly")
    error.__cause__ = RuntimeError("DataLoader worker (pid 42) is killed by signal: Killed. ")
    assert getattr(find_fault(error), "line", "").startswith("a loader process (42) was killed, as the system does")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("bug"),
        ValueError("out of memory"),  # is no kind of error that a lack of memory is
        RuntimeError("shape '[3]' is invalid for input of size 4"),
        ConnectionError("the machine is gone"),
        of_system("ECONNREFUSED", None),
        of_system("ETIMEDOUT", None),  # of a download
        of_system("ENOENT", None),
        UserError("--epochs: got '0'"),
    ],
)
def test_anything_else_is_none_of_the_machines_faults(error: Exception) -> None:
    assert find_fault(error) is None


def test_what_the_system_really_raises_is_known(tmp_path: Path) -> None:
    with pytest.raises(OSError) as missing:
        (tmp_path / "gone.jpg").read_bytes()
    with pytest.raises(RuntimeError) as huge:
        torch.empty(2**55, dtype=torch.uint8)
    assert str(tmp_path / "gone.jpg") in getattr(find_fault(missing.value), "line", "")
    assert getattr(find_fault(huge.value), "memory", "") == "host"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (of_system("ENOSPC"), "error: /data/a.jpg: the disk is full; make room there\n"),
        (
            UserError(WORKER.format(kind="UserError", last="utils.errors.UserError: a.pack: gone")),
            "error: a.pack: gone\n",
        ),
    ],
)
def test_a_script_ends_with_the_line_and_status_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @exits_cleanly
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == line
