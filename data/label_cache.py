"""Checked labels on disk, beside the labels: valid as long as no file has changed.

Plain arrays and JSON, no pickle: a cache that came with a foreign data set can say wrong things and do nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.label_file import Problem, Scanned
from data.scan import label_path
from utils.files import write_atomically

log = logging.getLogger(__name__)

VERSION = 1  # to be raised whenever a check changes
ARRAYS = ("kept", "shapes", "rows", "offsets", "points", "point_offsets")


def cache_path(images: Sequence[str], source: str) -> Path:
    """`labels/train.cache.npz` for the folder `images/train`; lists have a name of their own."""
    folder = Path(label_path(images[0])).parent
    return folder.parent / f"{named_after(folder, source)}.cache.npz"


def load(path: Path, images: Sequence[str], key: str) -> Scanned | None:
    """What `save` wrote, or None where there is nothing or its key is another."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes().decode())
            if head["key"] != key:
                return None
            arrays = {name: file[name] for name in ARRAYS}
        problems = tuple(
            Problem(label_path(images[index]) if in_label else images[index], line, reason)
            for index, in_label, line, reason in head["problems"]
        )
        return Scanned(**arrays, duplicates=int(head["duplicates"]), problems=problems)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        log.info("%s: unreadable (%s); labels are checked again", path, error)
        return None


def save(path: Path, images: Sequence[str], key: str, scanned: Scanned) -> None:
    """Writes the cache; on a read-only or full disk the next run simply checks again."""
    index_of = {image: index for index, image in enumerate(images)}
    index_of_label = {label_path(image): index for index, image in enumerate(images)} if scanned.problems else {}
    problems = [
        (index_of.get(p.path, index_of_label.get(p.path, 0)), p.path not in index_of, p.line, p.reason)
        for p in scanned.problems
    ]
    head = {"key": key, "duplicates": scanned.duplicates, "problems": problems}
    arrays = {name: getattr(scanned, name) for name in ARRAYS}
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    try:
        if not path.parent.is_dir():
            raise OSError(f"no folder {path.parent}")
        write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
    except OSError as error:
        log.info("labels are not cached (%s); the next run checks them again", error)


def unlabelled_cache_path(images: Sequence[str], source: str) -> Path:
    """`images/pool.unlabelled.cache.npz` beside the folder `images/pool`: there may be no folder of labels."""
    folder = Path(images[0]).parent
    return folder.parent / f"{named_after(folder, source)}.unlabelled.cache.npz"


def content_key(images: Sequence[str], num_classes: int | None, labelled: bool = True) -> str:
    """Changes with the list, and with the size or time of any image or label file; not when the folder is moved.

    Args:
        labelled: False: label files do not count.
    """
    digest = hashlib.sha256(f"{VERSION} {num_classes if labelled else 'unlabelled'}\n".encode())
    try:
        common = os.path.commonpath([os.path.dirname(image) for image in images])  # noqa: PTH120 - a million times
    except ValueError:  # on several disks
        common = ""
    for image in images:
        parts = (image[len(common) :], _stamp(image), _stamp(label_path(image)) if labelled else "")
        digest.update(os.fsencode("\t".join(parts) + "\n"))
    return digest.hexdigest()


def named_after(folder: Path, source: str) -> str:
    """The folder's name, and more where images come from elsewhere too."""
    same = Path(source).name == folder.name
    return folder.name if same else f"{folder.name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a million times
    except OSError:
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"
