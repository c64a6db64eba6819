"""Checks every image and label file of a data set, with several processes where there are many."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.images import BadImage, image_size
from data.label_file import MOST_NAMED, NO_POINTS, BadLabels, Problem, Rows, Scanned, parse, read
from utils.dist import is_main

FEW = 2000  # files below which starting processes costs more than it saves
CHUNK = 256  # files that a process is given at a time: it answers with a few arrays, not with objects for each file
NOTHING = Rows(np.zeros((0, 5), dtype=np.float32), (), 0, ())

Answer = TypeVar("Answer")


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
    parts = []
    with tqdm(desc=f"{where}: checking", total=len(images), delay=1, disable=not is_main()) as bar:
        for part in in_chunks(partial(_check_all, check=check), images, FEW):
            parts.append(part)
            bar.update(min(CHUNK, len(images) - bar.n))
    return _joined(parts)


def in_chunks(function: Callable[[Sequence[str]], Answer], images: Sequence[str], few: int) -> Iterator[Answer]:
    """What a function answers for each chunk of a list, in order; asked in several processes unless there are few."""
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    with _mapper(len(images) < few) as mapper:
        yield from mapper(function, chunks)


def _check_all(images: Sequence[str], check: Callable[[str], Checked]) -> Scanned:
    return _collect(map(check, images))


def check_one(image: str, num_classes: int | None) -> Checked:
    """Checks one image and its labels. Without a label file, or with an empty one, it is background."""
    checked = check_image(image)
    if checked.shape is None:
        return checked
    path = label_path(image)
    try:
        rows = parse(read(path), num_classes)
    except FileNotFoundError:
        return checked
    except BadLabels as error:
        return Checked(None, NOTHING, (Problem(path, 0, str(error)),))
    return Checked(checked.shape, rows, tuple(Problem(path, line, reason) for line, reason in rows.problems))


def check_image(image: str) -> Checked:
    """Checks one image alone."""
    try:
        return Checked(image_size(image), NOTHING, ())
    except BadImage as error:
        return Checked(None, NOTHING, (Problem(image, 0, str(error)),))


def _collect(checked: Iterable[Checked]) -> Scanned:
    """Joins what was found into flat arrays."""
    kept, shapes, rows = [], [], []
    duplicates, corrupt, skipped_rows = 0, 0, 0
    polygons: list[NDArray[np.float32]] = []
    problems: list[Problem] = []
    for index, one in enumerate(checked):
        problems.extend(one.problems[: MOST_NAMED - len(problems)])
        if one.shape is None:
            corrupt += 1
            continue
        kept.append(index)
        shapes.append(one.shape)
        rows.append(one.rows.rows)
        polygons.extend(one.rows.polygons)
        duplicates += one.rows.duplicates
        skipped_rows += len(one.rows.problems)
    return Scanned(
        kept=np.array(kept, dtype=np.int64),
        shapes=np.array(shapes, dtype=np.int32).reshape(-1, 2),
        rows=np.concatenate([NOTHING.rows, *rows]),
        offsets=_offsets([len(part) for part in rows]),
        points=np.concatenate([NO_POINTS, *polygons]),
        point_offsets=_offsets([len(polygon) for polygon in polygons]),
        duplicates=duplicates,
        corrupt=corrupt,
        skipped_rows=skipped_rows,
        problems=tuple(problems),
    )


def _joined(parts: Sequence[Scanned]) -> Scanned:
    """All chunks of a list as one."""
    return Scanned(
        kept=np.concatenate([part.kept + CHUNK * number for number, part in enumerate(parts)]),
        shapes=np.concatenate([part.shapes for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        offsets=_joined_offsets([part.offsets for part in parts]),
        points=np.concatenate([part.points for part in parts]),
        point_offsets=_joined_offsets([part.point_offsets for part in parts]),
        duplicates=sum(part.duplicates for part in parts),
        corrupt=sum(part.corrupt for part in parts),
        skipped_rows=sum(part.skipped_rows for part in parts),
        problems=tuple(islice(chain.from_iterable(part.problems for part in parts), MOST_NAMED)),
    )


def _joined_offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Each begins with 0; the next one's go on where it ends."""
    begins = np.cumsum([0, *(part[-1] for part in parts)], dtype=np.int64)
    return np.concatenate([begins[:1], *(part[1:] + begin for part, begin in zip(parts, begins, strict=False))])


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)


@contextmanager
def _mapper(few: bool) -> Iterator[Callable]:
    """A `map` that keeps order: plain, over processes, or over threads where processes cannot be forked."""
    cores = min(8, os.cpu_count() or 1)
    if few or cores == 1:
        yield map
        return
    pool: ProcessPoolExecutor | ThreadPoolExecutor
    if "fork" in multiprocessing.get_all_start_methods():
        # Ctrl-C reaches every process of a terminal, and it is this one's business
        deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
        pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork"), **deaf)
    else:
        pool = ThreadPoolExecutor(cores)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)  # whoever is interrupted does not wait for what is left
