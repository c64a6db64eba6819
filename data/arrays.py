"""Arrays in a file of ours that may have come with a foreign data set: nothing of it is run, and what it claims to hold
is looked at before memory is taken."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

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


def _read(archive: zipfile.ZipFile, name: str, size: int) -> NDArray:
    entry = archive.getinfo(name)
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name}: in another format")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        claimed = math.prod(shape) * kind.itemsize
        if claimed != entry.file_size - file.tell() or claimed > size:
            raise ValueError(f"{name}: claims {claimed} bytes")
    with archive.open(entry) as file:
        array: NDArray = np.lib.format.read_array(file, allow_pickle=False)
        return array
