"""Paths: atomic writes, run folders, looking a file up where people keep it."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError

PROBE = 1 << 20  # bytes
ROOT = Path(__file__).resolve().parent.parent  # of this repository


def write_atomically(path: Path | str, write: Callable[[Path], object], durable: bool = True) -> Path:
    """Calls `write` with a temporary path beside `path`, then renames: readers never see half a file.

    Where that fails, nothing stays of it. It is tried once more after what killed processes have left of this file is
    removed, which may be the room that was lacking.

    Args:
        durable: the content is on the disk before the file has its name, so that a power cut, or an interruptible
            machine that is taken away, leaves the old file or the new one, and no empty one.

    Raises:
        OSError: it cannot be written; its `filename` is the path.
    """
    path = Path(path)
    try:
        try:
            _write(path, write, durable)
        except OSError:
            remove_leftovers(path)
            _write(path, write, durable)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # not the temporary one's
            error.filename2 = None
        raise
    return path


def remove_leftovers(path: Path | str) -> None:
    """Removes the temporary files that killed processes have left while they wrote this file."""
    path = Path(path)
    for temporary in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError):  # somebody writes it, or it belongs to somebody else
            handle = os.open(temporary, os.O_RDWR)
            try:
                _claim(handle)
                temporary.unlink()
            finally:
                os.close(handle)


def _write(path: Path, write: Callable[[Path], object], durable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _claimed_beside(path)
    try:
        try:
            write(temporary)
            if durable:
                os.fsync(handle)
        except RuntimeError:  # PyTorch does not say why it cannot write; the system does, if it is asked once more
            os.lseek(handle, 0, os.SEEK_END)
            for _ in range(2):  # the first may find a little room
                os.write(handle, bytes(PROBE))
            raise
        finally:
            os.close(handle)
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _claimed_beside(path: Path) -> tuple[int, Path]:
    """An open temporary file beside `path` that `remove_leftovers` leaves alone as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        with contextlib.suppress(OSError):  # some disks know no locks: what is left there stays
            _claim(handle)
        if os.fstat(handle).st_nlink:  # nobody took it for a leftover in the meantime
            return handle, Path(name)
        os.close(handle)


def _claim(handle: int) -> None:
    """Locks an open file until it is closed, even by the end of its process.

    Raises:
        OSError: somebody else has locked it, or it cannot be locked here.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError("there are no such locks on this system") from None
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_text(path: Path | str, text: str) -> Path:
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def run_folder(project: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Makes and returns project/name, or project/name2, name3 ... where it is taken.

    Raises:
        UserError: no folder can be made there.
    """
    folder = Path(project) / name
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            number += 1
            folder = Path(project) / f"{name}{number}"
        except OSError as error:
            raise UserError(f"--project {project}: no folder {folder} can be made ({error.strerror})") from error


def digest(path: Path | str) -> str:
    """SHA-256 of what a file holds, hexadecimal."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def home(path: Path | str) -> Path:
    """With the home folder for `~`; `~` before the name of nobody here is part of a name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def megabytes(path: Path | str) -> float:
    return Path(path).stat().st_size / 1e6
