"""Arrays in a file of ours that may have come with a foreign data set: nothing of it is run, and what it claims to hold
is looked at before memory is taken."""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray


def read_arrays(file: Path | BinaryIO, names: Sequence[str]) -> dict[str, NDArray]:
    """What `np.savez` wrote under these names.

    Raises:
        Exception: whatever a file comes to that is damaged or made by somebody else.
    """
    with zipfile.ZipFile(file) as archive:
        assert archive.fp is not None
        size = archive.fp.seek(0, os.SEEK_END)
        return {name: _read(archive, f"{name}.npy", size) for name in names}


def read_array(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> NDArray:
    """What `np.save` wrote, where it is of this kind and shape.

    Raises:
        Exception: as `read_arrays`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe may have no end
        raise ValueError(f"{path}: not a file")
    with path.open("rb") as file:
        header, size = _header(file, str(path)), math.prod(shape) * np.dtype(kind).itemsize
        if header != (shape, False, kind) or status.st_size - file.tell() != size:
            raise ValueError(f"{path}: another array")
        return np.fromfile(file, dtype=kind).reshape(shape)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, kind of what follows."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name}: in another format")
    return np.lib.format.read_array_header_1_0(file)


def _read(archive: zipfile.ZipFile, name: str, size: int) -> NDArray:
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        shape, _, kind = _header(file, name)
        claimed = math.prod(shape) * kind.itemsize
        if claimed != entry.file_size - file.tell() or claimed > size:
            raise ValueError(f"{name}: claims {claimed} bytes")
    with archive.open(entry) as file:
        array: NDArray = np.lib.format.read_array(file, allow_pickle=False)
        return array
