"""All images of a data set in one file of raw pixels: nothing is decoded, and processes that map it share its pages.

    pixels of all images, BGR, one image after the other | one pixel of grey | index (.npz) | its length | MAGIC

What is written last is read first, so a file that was cut short is never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.arrays import read_arrays
from data.geometry import GREY
from data.label_cache import content_key, named_after
from data.picture import Size
from utils.files import write_atomically

log = logging.getLogger(__name__)

MAGIC = b"pixels-1"  # to be changed with the layout, or with what the pixels of an image are
TAIL = 16  # bytes: a length of 8, MAGIC
SURPLUS = 10_000  # bytes of the index at most, beside one an image

Fill = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]


class Pack(NamedTuple):
    """The pixels of n images."""

    pixels: NDArray[np.uint8]  # (bytes + 3,), the last pixel is grey; memory-mapped, read-only
    filled: NDArray[np.bool_]  # (n,) False where an image could not be read: it is grey


def pack_path(images: Sequence[str], source: str, size: Size, settings: str) -> Path:
    """`images/train-640x640-1a2b3c4d.pack` beside the folder `images/train`: several sizes and settings may be there.

    Args:
        source: what the images were named by; lists have a name of their own.
        settings: what decides about the pixels of an image, besides its file.
    """
    folder = Path(images[0]).parent
    return folder.parent / f"{named_after(folder, source)}-{size[0]}x{size[1]}-{_digest(settings)[:8]}.pack"


def pack_key(images: Sequence[str], settings: str) -> str:
    """Changes with the list of images, with the size or time of any of them, and with the settings."""
    return _digest(f"{content_key(images, None, labelled=False)} {settings}")


def read_pack(path: Path, key: str, count: int, size: int) -> Pack | None:
    """What `write_pack` wrote; None where there is nothing, or something else: the log says so.

    Args:
        count: of images.
        size: bytes of all pixels, without the grey one.
    """
    if not path.is_file():
        return None
    try:
        head, filled = _index(path, count)
        if head["key"] != key or head["size"] != size or filled.shape != (count,) or filled.dtype != np.bool_:
            log.info("%s: images or settings have changed; they are packed again", path)
            return None
        return Pack(np.asarray(np.memmap(path, np.uint8, mode="r", shape=(size + 3,))), filled)
    except Exception as error:  # whatever a damaged file comes to, or one that somebody else has made
        log.warning("%s: no whole pack (%s); images are packed again", path, error)
        return None


def write_pack(path: Path, key: str, size: int, fill: Fill) -> None:
    """Writes a pack, whole or not at all.

    Args:
        fill: writes all pixels into a flat array of `size` bytes, and says of which images.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """

    def write(temporary: Path) -> None:
        with temporary.open("r+b") as file:
            _reserve(file.fileno(), size + 3)
            pixels = np.memmap(file, np.uint8, mode="r+", shape=(size + 3,))
            pixels[size:] = GREY
            filled = fill(np.asarray(pixels[:size]))
            pixels.flush()
            index = io.BytesIO()
            head = json.dumps({"key": key, "size": size}).encode()
            np.savez(index, head=np.frombuffer(head, dtype=np.uint8), filled=filled)
            file.seek(0, os.SEEK_END)
            file.write(index.getvalue() + index.tell().to_bytes(TAIL - len(MAGIC), "little") + MAGIC)

    write_atomically(path, write)


def _index(path: Path, count: int) -> tuple[dict[str, object], NDArray[np.bool_]]:
    """What the end of the file says: key and size, and which images are filled.

    Raises:
        ValueError: it is no end of a pack.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - TAIL))
        tail = file.read()
        length = int.from_bytes(tail[: -len(MAGIC)], "little")
        if tail[-len(MAGIC) :] != MAGIC or length > min(end - TAIL, count + SURPLUS):
            raise ValueError("its end is missing")
        file.seek(end - TAIL - length)
        arrays = read_arrays(io.BytesIO(file.read(length)), ("head", "filled"))
        head = json.loads(arrays["head"].tobytes().decode())
        if head["size"] + 3 != end - TAIL - length:
            raise ValueError("its beginning is missing")
        return head, arrays["filled"]


def _reserve(file: int, size: int) -> None:
    """Takes the space at once: a disk that is full when a mapped page is written ends the process without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
