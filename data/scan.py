"""Checks every image and label file of a data set, with several processes where there are many."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.images import BadImage, image_size
from data.label_file import NO_POINTS, Problem, Rows, Scanned, parse
from utils.dist import is_main

FEW = 2000  # files below which starting processes costs more than it saves
NOTHING = Rows(np.zeros((0, 5), dtype=np.float32), (), 0, ())


class Checked(NamedTuple):
    """One image and its label file."""

    shape: tuple[int, int] | None  # None: the image cannot be used
    rows: Rows
    problems: tuple[Problem, ...]


def label_path(image: str, folder: str = "labels") -> str:
    """Where the labels of an image are: the last `/images/` of its path becomes `/labels/`, its suffix `.txt`.

    Args:
        folder: takes the place of `labels` for what else lies beside images.
    """
    head, found, tail = image.rpartition(f"{os.sep}images{os.sep}")
    stem = os.path.splitext(tail)[0]  # noqa: PTH122 - a million times
    return f"{head}{os.sep}{folder}{os.sep}{stem}.txt" if found else f"{stem}.txt"


def scan(images: Sequence[str], num_classes: int | None, where: str) -> Scanned:
    """Checks all files; see `data.labels` for what is kept."""
    return _scan(images, partial(check_one, num_classes=num_classes), where)


def scan_unlabelled(images: Sequence[str], where: str) -> Scanned:
    """Checks all images and looks at no label file."""
    return _scan(images, check_image, where)


def _scan(images: Sequence[str], check: Callable[[str], Checked], where: str) -> Scanned:
    with _mapper(len(images)) as mapper:
        bar = tqdm(mapper(check, images), f"{where}: checking", len(images), delay=1, disable=not is_main())
        return _collect(bar)


def check_one(image: str, num_classes: int | None) -> Checked:
    """Checks one image and its labels. Without a label file, or with an empty one, it is background."""
    checked = check_image(image)
    if checked.shape is None:
        return checked
    path = label_path(image)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return checked
    except OSError as error:
        return Checked(None, NOTHING, (Problem(path, 0, f"cannot be read: {error.strerror}"),))
    rows = parse(text, num_classes)
    return Checked(checked.shape, rows, tuple(Problem(path, line, reason) for line, reason in rows.problems))


def check_image(image: str) -> Checked:
    """Checks one image alone."""
    try:
        return Checked(image_size(image), NOTHING, ())
    except BadImage as error:
        return Checked(None, NOTHING, (Problem(image, 0, str(error)),))


def _collect(checked: Iterable[Checked]) -> Scanned:
    """Joins what was found into flat arrays."""
    kept, shapes, rows, duplicates = [], [], [], 0
    polygons: list[NDArray[np.float32]] = []
    problems: list[Problem] = []
    for index, one in enumerate(checked):
        problems.extend(one.problems)
        if one.shape is None:
            continue
        kept.append(index)
        shapes.append(one.shape)
        rows.append(one.rows.rows)
        polygons.extend(one.rows.polygons)
        duplicates += one.rows.duplicates
    return Scanned(
        kept=np.array(kept, dtype=np.int64),
        shapes=np.array(shapes, dtype=np.int32).reshape(-1, 2),
        rows=np.concatenate([NOTHING.rows, *rows]),
        offsets=_offsets([len(part) for part in rows]),
        points=np.concatenate([NO_POINTS, *polygons]),
        point_offsets=_offsets([len(polygon) for polygon in polygons]),
        duplicates=duplicates,
        problems=tuple(problems),
    )


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)


@contextmanager
def _mapper(count: int) -> Iterator:
    """A `map` that keeps order: plain, over processes, or over threads where processes cannot be forked."""
    cores = min(8, os.cpu_count() or 1)
    if count < FEW or cores == 1:
        yield map
    elif "fork" in multiprocessing.get_all_start_methods():
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork")) as pool:
            yield partial(pool.map, chunksize=64)
    else:
        with ThreadPoolExecutor(cores) as pool:
            yield pool.map
