"""Paths: atomic writes, run folders, looking a file up where people keep it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent  # of this repository


def write_atomically(path: Path | str, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a temporary path beside `path`, then renames: readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


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


def megabytes(path: Path | str) -> float:
    return Path(path).stat().st_size / 1e6
