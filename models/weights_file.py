"""The files that weights come in: the two formats of torch.save, and safetensors."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from models.safe_pickle import unpickle
from utils.errors import UserError, shown

# the first pickle of the format of torch before 1.6: protocol 2, its magic number, end
OLD_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
MOST_UNPACKED = 4  # times its own size that a zip may hold; torch.save compresses nothing, and weights hardly shrink


def read_file(path: Path) -> Any:
    """The content of a checkpoint: plain data, tensors (on the CPU), and stand-ins for anything else.

    Raises:
        UserError: of a file that is not one, is damaged, or names what is not on the lists of `models/safe_pickle.py`.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a weights file")
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with path.open("rb") as file:
            start = file.read(64)
            if not start:
                raise UserError(f"{path} is empty; delete it and get it again")
            if start.lstrip().startswith(b"<"):
                raise UserError(f"{path} is a web page, not a weights file; delete it and get it again")
            file.seek(0)
            return _read_zip(file, path) if start.startswith(b"PK") else _read_old(file, path)
    except UserError:
        raise
    except Exception as error:  # whatever a parser stumbles over in a damaged file
        raise UserError(_damaged(path, error)) from error


def _read_zip(file: BinaryIO, path: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        size = path.stat().st_size
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_UNPACKED * size:
            raise UserError(
                f"{path} has {size / 1e6:.1f} MB and would unpack to {unpacked / 1e6:.0f} MB, as no weights do; it was "
                "not loaded"
            )
        names = set(archive.namelist())
        found = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if not found:
            raise UserError(f"{path} is a zip archive without a checkpoint in it")
        (root,) = found
        if f"{root}constants.pkl" in names:
            raise UserError(f"{path} is an exported TorchScript model; give the checkpoint that it was exported from")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise UserError(f"{path} was written by a machine of another byte order; load and save it there")
        unpickled = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")), str(path))
        return unpickled.resolved(partial(_stored, archive, root))


def _stored(archive: zipfile.ZipFile, root: str, key: str, dtype: torch.dtype, count: int) -> Tensor:
    """The numbers of one entry of the archive."""
    entry = archive.getinfo(f"{root}data/{key}")
    if count * dtype.itemsize > entry.file_size:
        raise ValueError(f"{count} numbers in {entry.file_size} bytes")
    with archive.open(entry) as file:
        return _numbers(file, dtype, count)


def _read_old(file: BinaryIO, path: Path) -> Any:
    """Files of torch before 1.6: five pickles (magic number, version, system, content, keys of storages), then these.

    Plain data is read. There are models among these files whose classes are their file's own, and their pickles hold
    the source code of them; they are refused.
    """
    if file.read(len(OLD_START)) != OLD_START:
        raise UserError(f"{path} is not a weights file; delete it and get it again")
    _, _, unpickled, keys = (unpickle(file, str(path), modules=False) for _ in range(4))
    kept: dict[str, Tensor] = {}
    left = path.stat().st_size - file.tell()
    if type(keys.content) is not list or not all(type(key) is str for key in keys.content):
        raise ValueError("keys of storages that are no names")
    for key in keys.content:
        dtype, count = unpickled.storages[key]
        written = int.from_bytes(file.read(8), "little")
        left -= 8 + count * dtype.itemsize
        if written != count or left < 0:
            raise ValueError(f"{count} numbers where there are {written}")
        kept[key] = _numbers(file, dtype, count)
    return unpickled.resolved(lambda key, *_: kept[key])


def _numbers(file: IO[bytes], dtype: torch.dtype, count: int) -> Tensor:
    content = bytearray(file.read(count * dtype.itemsize))
    if len(content) != count * dtype.itemsize:
        raise ValueError("it ends too early")
    if not content:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:  # whose bytes are 0 and 1, whatever the file says
        return torch.frombuffer(content, dtype=torch.uint8) != 0
    return torch.frombuffer(content, dtype=dtype).clone()  # where PyTorch would have put it: aligned, and its own


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: reading .safetensors needs the package safetensors") from error
    return load_file(path)


def _damaged(path: Path, error: Exception) -> str:
    silent = isinstance(error, LookupError) or not str(error)  # a key that the parser looked up in vain says nothing
    reason = type(error).__name__ if silent else shown(str(error).splitlines()[0])
    kind = "damaged or cut short" if _begins_as_zip(path) else "not a weights file, or damaged"
    return f"{path} is {kind}; delete it and get it again ({reason})"


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
