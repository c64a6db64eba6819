"""Fetching and unpacking archives. A script in a data set's file is shown, and run only where the user says so."""

from __future__ import annotations

import bz2
import gzip
import http.client
import io
import logging
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlparse

from tqdm import tqdm

from utils.dist import is_main
from utils.errors import UserError, printable, shown
from utils.files import ROOT

log = logging.getLogger(__name__)

SCHEMES = ("http://", "https://", "ftp://", "file://")
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ALLOW = "--allow-download-scripts"
MOST_RATIO = 100  # of what is unpacked to the archive; label files, which are text, come to 10
ALWAYS = 100_000_000  # bytes that may be unpacked whatever the ratio
BLOCK = 1 << 24  # bytes that are read at once at most: a header may claim any size
MOST_MEMBERS = 10_000_000  # of an archive, among them empty files, which take no bytes that would count
MOST_FOLDERS = 100_000
MOST_PARTS = 50  # of a member's name: deeper folders are more than Python's own functions for folders follow
AGENT = "yolo-distillation"  # some hosts refuse what calls itself Python-urllib
PATIENCE = 60  # seconds in which a server must say something
SHELLS = ("bash ", "sh ")  # what commands begin with; other text is Python, as in the files of YOLOv5


class Archive(NamedTuple):
    """Where an archive comes from and where below the folder of data sets it is unpacked."""

    address: str
    folder: str | None = None  # None: beside other data sets if it holds one folder of the right name, else inside it


class Script(NamedTuple):
    """What a file wants to be run: a command where it begins with `bash` or `sh`, else Python."""

    text: str


def read_downloads(download: Any, where: str) -> tuple[Archive | Script, ...]:
    """What `download:` asks for; `{address: ..., folder: ...}` says where an archive belongs.

    Raises:
        UserError: something that is neither an archive nor a script.
    """
    entries = download if isinstance(download, list) else [download]
    return tuple(_read_entry(entry, f"{where}: download") for entry in entries)


def _read_entry(entry: Any, where: str) -> Archive | Script:
    archive = Archive(entry.strip()) if isinstance(entry, str) else None
    if isinstance(entry, dict) and set(entry) <= {"address", "folder"} and isinstance(entry.get("address"), str):
        archive = Archive(entry["address"].strip(), str(entry.get("folder") or "."))
    if archive is not None and archive.folder is None and not _is_address(archive.address):
        return Script(entry)
    if archive is None or not _is_address(archive.address) or not _names_archive(archive.address):
        raise UserError(f"{where}: expected the address of an archive ({', '.join(SUFFIXES)}); got {shown(entry)}")
    return archive


def obtain(downloads: tuple[Archive | Script, ...], datasets: Path, name: str, file: Path, scripts: bool) -> None:
    """Downloads and unpacks, or runs, one after the other.

    Args:
        datasets: the folder below which archives are unpacked, where the data set will be called `name`.
        file: that asks for it.
        scripts: may be run.

    Raises:
        UserError: a script that may not be run, which the message shows; whatever fails.
    """
    wanted = [one.text for one in downloads if isinstance(one, Script)]
    if wanted and not scripts:
        raise UserError(
            f"{file}: download: is a script, not the address of an archive ({', '.join(SUFFIXES)}); nothing of it was "
            f"run. Run it yourself where you trust it, or give {ALLOW}:\n{printable(chr(10).join(wanted))}"
        )
    for one in downloads:
        if isinstance(one, Script):
            _run(one, file)
        else:
            fetch(one, datasets, name)


def _run(script: Script, file: Path) -> None:
    """Runs a script in the folder of this repository, from which `../datasets` is where data sets go.

    Python finds the file's content as `yaml`, as it does where such files come from.
    """
    log.warning("%s: running this script, as %s allows:\n%s", file, ALLOW, printable(script.text))
    start = "import sys, yaml; yaml = yaml.safe_load(open(sys.argv[1], encoding='utf-8-sig'))\n"
    python = [sys.executable, "-c", start + script.text, str(file.resolve())]
    words = ["bash", "-c", script.text] if script.text.lstrip().startswith(SHELLS) else python
    try:
        ended = subprocess.run(words, cwd=ROOT, check=False).returncode
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: download: its script cannot be started: {error}") from error
    if ended:
        raise UserError(f"{file}: download: its script ended with {ended}; what it said stands above")


def fetch(archive: Archive, datasets: Path, name: str) -> None:
    """Downloads and unpacks under the folder `datasets`, where the data set will be called `name`.

    Raises:
        UserError: no network, a broken archive, or one that writes outside its folder.
    """
    try:
        datasets.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=datasets, prefix=".download-") as temporary:
            unpacked = Path(temporary) / "unpacked"
            unpack(_downloaded(archive, Path(temporary), datasets / name), unpacked)
            _merge(unpacked, _destination(archive, unpacked, datasets, name))
    except OSError as error:  # a file where a folder is to be, a full disk
        raise UserError(f"{archive.address}: cannot be put into {datasets}: {error}") from error


def _downloaded(archive: Archive, folder: Path, meant: Path) -> Path:
    file = folder / Path(urlparse(archive.address).path).name
    log.info("downloading %s to %s", archive.address, meant.parent)
    try:
        _download(archive.address, file)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        why = shown(" ".join(str(error).split()) or type(error).__name__, 200)  # the words may be the server's
        raise UserError(f"{archive.address}: cannot be downloaded ({why}); unpack it by hand into {meant}") from error
    return file


def _download(address: str, file: Path) -> None:
    """Writes what a server sends: all that it has announced, and no more than can be unpacked beside it.

    Raises:
        OSError, ValueError, HTTPException: it cannot be had, or not as a whole.
    """
    room = shutil.disk_usage(file.parent).free // 2  # images do not get smaller in an archive
    asked = urllib.request.Request(address, headers={"User-Agent": AGENT})
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer, file.open("wb") as written:
        announced = int(answer.headers.get("Content-Length") or 0)
        _check_room(announced, room)
        with tqdm(total=announced or None, unit="B", unit_scale=True, disable=not is_main()) as bar:
            while part := answer.read(1 << 16):
                written.write(part)
                bar.update(len(part))
                _check_room(written.tell(), room)
        if announced and written.tell() != announced:
            raise OSError(f"it ended after {written.tell()} of {announced} bytes")


def _check_room(size: int, room: int) -> None:
    if size > room:
        raise OSError(f"{size / 1e6:.0f} MB or more, and the disk has room to unpack {room / 1e6:.0f} MB")


def unpack(file: Path, folder: Path) -> None:
    """Unpacks a zip or tar archive into a new folder: files and folders in it, no links and no devices.

    Raises:
        UserError: names the archive and what is refused: members that point outside it or are neither files nor
            folders, archives that would unpack to more than archives do, or than there is room for.
    """
    folder.mkdir(parents=True)
    try:
        limit = min(MOST_RATIO * file.stat().st_size + ALWAYS, shutil.disk_usage(folder).free)
        if zipfile.is_zipfile(file):
            _unpack_zip(file, folder, limit)
        else:
            _unpack_tar(file, folder, limit)
    except UserError:
        raise
    except Exception as error:  # whatever a parser stumbles over in a damaged file, or the disk in an odd name
        raise UserError(f"{file.name}: cannot be unpacked: {shown(str(error) or type(error).__name__, 200)}") from error


def _unpack_zip(file: Path, folder: Path, limit: int) -> None:
    members = _Members(file.name)
    with zipfile.ZipFile(file) as archive:
        _check_size(sum(member.file_size for member in archive.infolist()), limit, file)
        for member in archive.infolist():
            members.check(member.filename, member.is_dir())
        archive.extractall(folder)


def _unpack_tar(file: Path, folder: Path, limit: int) -> None:
    """Member by member: what a compressed archive holds is known only when it has been read."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{file.name}: this Python is too old to unpack tar archives safely; update it")
    members = _Members(file.name)
    total, last = 0, -1
    with _decompressed(file) as stream, tarfile.open(fileobj=_Bounded(stream, limit, file), mode="r:") as archive:
        while (member := archive.next()) is not None:
            if member.size < 0 or member.offset <= last:  # `tarfile` would go back, and come here again without end
                raise UserError(f"{file.name}: refused: its member {shown(member.name)} has no size that can be")
            last = member.offset
            total += member.size
            _check_size(total, limit, file)
            members.check(member.name, member.isdir())
            if not (member.isreg() or member.isdir()):
                raise UserError(f"{file.name}: refused: its member {shown(member.name)} is a link or a device")
            archive.extract(member, folder, filter="data")
            archive.members.clear()  # which it keeps to find what links are to


def _decompressed(file: Path) -> BinaryIO:
    with file.open("rb") as opened:
        start = opened.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(file)  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        return bz2.open(file)  # type: ignore[return-value]
    return lzma.open(file) if start == b"\xfd7zXZ\x00" else file.open("rb")  # type: ignore[return-value]


class _Bounded(io.RawIOBase):
    """What a decompressor gives, up to a limit, and never much at once: headers of tar archives may claim any size."""

    def __init__(self, stream: BinaryIO, limit: int, file: Path) -> None:
        self._stream, self._limit, self._file = stream, limit, file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise UserError(f"{self._file.name}: refused: a header of it claims {size} bytes")
        _check_size(self._stream.tell(), self._limit + ALWAYS, self._file)  # headers take room, too
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        _check_size(offset, self._limit + ALWAYS, self._file)  # a decompressor reads all that lies between
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _check_size(size: int, limit: int, file: Path) -> None:
    if size > limit:
        raise UserError(
            f"{file.name}: refused: its {file.stat().st_size / 1e6:.1f} MB unpack to {size / 1e6:.0f} MB or more, as "
            "no data set's do, or for which the disk has no room; unpack it yourself if you trust it"
        )


def _is_address(text: str) -> bool:
    return len(text.split()) == 1 and text.startswith(SCHEMES)


def _names_archive(address: str) -> bool:
    try:
        return urlparse(address).path.lower().endswith(SUFFIXES)
    except ValueError:  # such as brackets where a host is to be
        return False


class _Members:
    """The names of an archive's members, one after the other.

    Args:
        archive: its name, for errors.
    """

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._count = 0
        self._folders: set[PurePosixPath] = set()

    def check(self, name: str, is_folder: bool) -> None:
        """Raises UserError of a place outside the archive, and of more or deeper folders than data sets have."""
        path = PurePosixPath(name.replace("\\", "/"))
        drive = bool(path.parts) and path.parts[0].endswith(":")
        if path.is_absolute() or ".." in path.parts or drive:
            raise UserError(f"{self._archive}: refused: its member {shown(repr(name))} lies outside the archive")
        if len(path.parts) > MOST_PARTS:
            raise UserError(
                f"{self._archive}: refused: its member {shown(repr(name))} lies {len(path.parts)} folders deep, "
                f"expected at most {MOST_PARTS}"
            )
        self._count += 1
        if (folder := path if is_folder else path.parent) not in self._folders:
            self._folders.update((folder, *folder.parents))
        if self._count > MOST_MEMBERS or len(self._folders) > MOST_FOLDERS:
            raise UserError(
                f"{self._archive}: refused: more than {MOST_MEMBERS} members or {MOST_FOLDERS} folders, as no data set "
                "has; unpack it yourself if you trust it"
            )


def _destination(archive: Archive, unpacked: Path, datasets: Path, name: str) -> Path:
    inside = [entry.name for entry in unpacked.iterdir() if entry.name != "__MACOSX"]
    folder = archive.folder if archive.folder is not None else "." if inside == [name] else name
    target = datasets / folder
    if not target.resolve().is_relative_to(datasets.resolve()):
        raise UserError(f"download: folder {shown(repr(folder))} lies outside {datasets}")
    return target


def _merge(source: Path, target: Path) -> None:
    """Moves what is in `source` into `target`; folders that are there already are completed, files stay as they are."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        other = target / entry.name
        if entry.is_dir() and other.is_dir():
            _merge(entry, other)
        elif not other.exists():
            entry.replace(other)
