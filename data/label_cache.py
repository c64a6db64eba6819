"""Checked labels on disk, beside the labels: valid as long as no file has changed.

Plain arrays and JSON, no pickle: a cache that came with a foreign data set can say wrong things and do nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.arrays import read_arrays
from data.label_file import MOST_CLASSES, MOST_NAMED, Problem, Scanned
from data.scan import in_chunks, label_path
from utils.errors import shown
from utils.files import write_atomically
from utils.opencv import MOST_PIXELS

log = logging.getLogger(__name__)

VERSION = 3  # to be raised whenever a check changes
MOST_HEAD = 1_000_000  # bytes of what is no array, most of it problems
COUNTS = ("duplicates", "corrupt", "skipped_rows")
MANY = 50_000  # files from which on processes are started to ask for their times
# the arrays of `Scanned`: what is in them, and how much an entry has
FORMS: Mapping[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "kept": (np.int64, ()),
    "shapes": (np.int32, (2,)),
    "rows": (np.float32, (5,)),
    "offsets": (np.int64, ()),
    "points": (np.float32, (2,)),
    "point_offsets": (np.int64, ()),
}


def cache_path(images: Sequence[str], source: str) -> Path:
    """`labels/train.cache.npz` for the folder `images/train`; lists have a name of their own."""
    folder = Path(label_path(images[0])).parent
    return folder.parent / f"{named_after(folder, source)}.cache.npz"


def load(path: Path, images: Sequence[str], key: str, num_classes: int | None = None) -> Scanned | None:
    """What `save` wrote, or None where there is nothing, its key is another, or it cannot be what `save` wrote."""
    if not path.is_file():
        return None
    try:
        text = read_arrays(path, ["head"])["head"].tobytes()
        if len(text) > MOST_HEAD:
            raise ValueError(f"a head of {len(text) / 1e6:.0f} MB")
        head = json.loads(text)
        if head["key"] != key:
            return None
        problems = tuple(
            Problem(label_path(images[index]) if in_label else images[index], int(line), shown(str(reason), 200))
            for index, in_label, line, reason in head["problems"][:MOST_NAMED]
        )
        counts = {name: int(head[name]) for name in COUNTS}
        found = Scanned(**read_arrays(path, tuple(FORMS)), **counts, problems=problems)
        _check(found, len(images), MOST_CLASSES if num_classes is None else num_classes)
        return found
    except Exception as error:  # whatever a damaged file comes to, or one that somebody else has made
        log.info("%s: unreadable (%s); labels are checked again", path, shown(str(error)))
        return None


def _check(found: Scanned, images: int, num_classes: int) -> None:
    """Raises ValueError where arrays contradict each other or the data set: a cache that came with it may."""
    for name, (kind, form) in FORMS.items():
        array = getattr(found, name)
        if array.dtype != kind or array.ndim != 1 + len(form) or array.shape[1:] != form:
            raise ValueError(f"{name}: another kind of array")
    classes, boxes = found.rows[:, 0], found.rows[:, 1:]
    corners = np.diff(found.point_offsets)
    sound = {
        "kept": _rises(found.kept, 0, images - 1) and (np.diff(found.kept) > 0).all(),
        "shapes": (found.shapes > 0).all() and (found.shapes.astype(np.int64).prod(axis=1) <= MOST_PIXELS).all(),
        "rows": _in_image(boxes) and (boxes[:, 2:] > 0).all(),
        "classes": ((classes >= 0) & (classes < num_classes) & (classes == np.floor(classes))).all(),
        "points": _in_image(found.points),
        "offsets": _divides(found.offsets, len(found.rows)),
        "point_offsets": _divides(found.point_offsets, len(found.points)) and ((corners == 0) | (corners > 2)).all(),
        "lengths": len(found.shapes) == len(found.kept) == len(found.offsets) - 1
        and len(found.point_offsets) - 1 == len(found.rows),
    }
    if wrong := [name for name, well in sound.items() if not well]:
        raise ValueError(f"{', '.join(wrong)}: not as they are written here")


def _divides(offsets: NDArray[np.int64], count: int) -> bool:
    return _rises(offsets, 0, count) and offsets[[0, -1]].tolist() == [0, count]


def _rises(numbers: NDArray[np.int64], low: int, high: int) -> bool:
    return bool(((numbers >= low) & (numbers <= high)).all() and (np.diff(numbers) >= 0).all())


def _in_image(coordinates: NDArray[np.float32]) -> bool:
    return bool(((coordinates >= 0) & (coordinates <= 1)).all())  # nan is not


def save(path: Path, images: Sequence[str], key: str, scanned: Scanned) -> None:
    """Writes the cache; on a read-only or full disk the next run simply checks again."""
    index_of = {image: index for index, image in enumerate(images)} if scanned.problems else {}
    index_of_label = {label_path(image): index for index, image in enumerate(images)} if scanned.problems else {}
    problems = [
        (index_of.get(p.path, index_of_label.get(p.path, 0)), p.path not in index_of, p.line, p.reason)
        for p in scanned.problems
    ]
    head = {"key": key, **{name: getattr(scanned, name) for name in COUNTS}, "problems": problems}
    arrays = {name: getattr(scanned, name) for name in FORMS}
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
        common = os.path.commonpath({os.path.dirname(image) for image in images})  # noqa: PTH120 - a million times
    except ValueError:  # on several disks
        common = ""
    for stamped in in_chunks(partial(_stamped, skip=len(common), labelled=labelled), images, MANY):
        digest.update(stamped)
    return digest.hexdigest()


def named_after(folder: Path, source: str) -> str:
    """The folder's name, and more where images come from elsewhere too."""
    same = Path(source).name == folder.name
    return folder.name if same else f"{folder.name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"


def _stamped(images: Sequence[str], skip: int, labelled: bool) -> bytes:
    """What the key knows of a chunk: each path without its first `skip` letters, and when what it names was written."""
    lines = (f"{image[skip:]}\t{_stamp(image)}\t{_stamp(label_path(image)) if labelled else ''}\n" for image in images)
    return hashlib.sha256(os.fsencode("".join(lines))).digest()


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a million times
    except OSError:
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"
