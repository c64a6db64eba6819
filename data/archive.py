"""Fetching and unpacking archives. Nothing that a data set's file says is ever run."""

from __future__ import annotations

import logging
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch

from utils.dist import is_main
from utils.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Archive(NamedTuple):
    """Where an archive comes from and where below the folder of data sets it is unpacked."""

    address: str
    folder: str | None = None  # None: beside other data sets if it holds one folder of the right name, else inside it


def read_archives(download: Any, where: str) -> tuple[Archive, ...]:
    """What `download:` asks for; `{address: ..., folder: ...}` says where an archive belongs.

    Raises:
        UserError: it is a script or a command. These are shown, never run.
    """
    entries = download if isinstance(download, list) else [download]
    found = []
    for entry in entries:
        archive = Archive(entry) if isinstance(entry, str) else None
        if isinstance(entry, dict) and set(entry) <= {"address", "folder"} and isinstance(entry.get("address"), str):
            archive = Archive(entry["address"], str(entry.get("folder") or "."))
        if archive is None or not _is_archive(archive.address):
            raise UserError(
                f"{where}: download: is not the address of an archive ({', '.join(SUFFIXES)}) and is not run here. "
                f"Run it yourself where you trust it, then start again:\n{entry}"
            )
        found.append(archive._replace(address=archive.address.strip()))
    return tuple(found)


def fetch(archives: tuple[Archive, ...], datasets: Path, name: str) -> None:
    """Downloads and unpacks under the folder `datasets`, where the data set will be called `name`.

    Raises:
        UserError: no network, a broken archive, or one that writes outside its folder.
    """
    datasets.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        with tempfile.TemporaryDirectory(dir=datasets, prefix=".download-") as temporary:
            file = Path(temporary) / Path(urlparse(archive.address).path).name
            log.info("downloading %s to %s", archive.address, datasets)
            try:
                torch.hub.download_url_to_file(archive.address, str(file), progress=is_main())
            except (OSError, ValueError) as error:  # URLError is an OSError
                raise UserError(
                    f"{archive.address}: cannot be downloaded ({error}); unpack it by hand into {datasets / name}"
                ) from error
            unpacked = Path(temporary) / "unpacked"
            unpack(file, unpacked)
            _merge(unpacked, _destination(archive, unpacked, datasets, name))


def unpack(file: Path, folder: Path) -> None:
    """Unpacks a zip or tar archive into a new folder; members that point outside it are refused.

    Raises:
        UserError: names the archive, and the member that is refused.
    """
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for member in archive.namelist():
                    _check_member(member, file.name)
                archive.extractall(folder)
        else:
            with tarfile.open(file) as archive:
                if not hasattr(tarfile, "data_filter"):
                    raise UserError(f"{file.name}: this Python is too old to unpack tar archives safely; update it")
                archive.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
        raise UserError(f"{file.name}: cannot be unpacked: {error}") from error


def _is_archive(address: str) -> bool:
    address = address.strip()
    parts = urlparse(address)
    return (
        "\n" not in address
        and " " not in address
        and parts.scheme in ("http", "https", "ftp", "file")
        and parts.path.lower().endswith(SUFFIXES)
    )


def _check_member(member: str, archive: str) -> None:
    path = PurePosixPath(member.replace("\\", "/"))
    drive = bool(path.parts) and path.parts[0].endswith(":")
    if path.is_absolute() or ".." in path.parts or drive:
        raise UserError(f"{archive}: refused: its member {member!r} lies outside the archive")


def _destination(archive: Archive, unpacked: Path, datasets: Path, name: str) -> Path:
    if archive.folder is not None:
        target = datasets / archive.folder
        if not target.resolve().is_relative_to(datasets.resolve()):
            raise UserError(f"download: folder {archive.folder!r} lies outside {datasets}")
        return target
    inside = [entry.name for entry in unpacked.iterdir() if entry.name != "__MACOSX"]
    return datasets if inside == [name] else datasets / name


def _merge(source: Path, target: Path) -> None:
    """Moves what is in `source` into `target`; folders that are there already are completed."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        other = target / entry.name
        if entry.is_dir() and other.is_dir():
            _merge(entry, other)
        else:
            entry.replace(other)
