"""One label file: a row an object, `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`, all but the class in [0, 1]."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import printable, shown

SLACK = 1e-6  # of coordinates outside [0, 1]: what writers with six digits are off by
SMALLEST = 1e-7  # of a side: what is left of less, in the float32 of which boxes are made, can be nothing
MOST_CLASSES = 1 << 24  # in whose float32 whole numbers are what they were
MOST_BYTES = 10_000_000  # of a label file: some 200,000 rows
MOST_PROBLEMS = 10_000  # bad rows of a file, before it is no label file
MOST_NAMED = 500  # problems of a data set; the others are counted


class Problem(NamedTuple):
    """Something in a data set that was skipped."""

    path: str
    line: int  # counted from 1; 0 is the file as a whole
    reason: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.reason}"


class BadLabels(Exception):
    """This file holds no labels; the message says why."""


class Rows(NamedTuple):
    """What a label file holds."""

    rows: NDArray[np.float32]  # (n, 5) class, x, y, w, h
    polygons: tuple[NDArray[np.float32], ...]  # n arrays (k, 2), k = 0 for plain boxes
    duplicates: int
    problems: tuple[tuple[int, str], ...]  # line, reason


class Scanned(NamedTuple):
    """What the files of a data set hold; the arrays as in `data.labels.Labels`."""

    kept: NDArray[np.int64]  # (n,) which of the listed images can be used
    shapes: NDArray[np.int32]
    rows: NDArray[np.float32]
    offsets: NDArray[np.int64]
    points: NDArray[np.float32]
    point_offsets: NDArray[np.int64]
    duplicates: int
    corrupt: int  # images that cannot be used
    skipped_rows: int
    problems: tuple[Problem, ...]  # of these, the first


NO_POINTS = np.zeros((0, 2), dtype=np.float32)


def read(path: str) -> str:
    """The text of a label file.

    Raises:
        FileNotFoundError: there is none.
        BadLabels: it is no file, it is far larger than label files are, or it cannot be read.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a million times
        if not stat.S_ISREG(status.st_mode):
            raise BadLabels("not a file")
        if status.st_size > MOST_BYTES:
            raise BadLabels(f"a file of {status.st_size / 1e6:.0f} MB, expected labels of one image")
        return Path(path).read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadLabels(f"cannot be read: {error.strerror}") from error


def parse(text: str, num_classes: int | None) -> Rows:
    """Reads all rows that can be read; says why the others cannot.

    Raises:
        BadLabels: so many cannot that it is something else than labels.
    """
    found: dict[tuple[float, ...], None] = {}  # an ordered set of rows
    duplicates, problems = 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            row = _parse_row(fields, num_classes)
        except ValueError as error:
            problems.append((number, str(error)))
            if len(problems) > MOST_PROBLEMS:
                raise BadLabels(f"more than {MOST_PROBLEMS} bad rows; the first: {problems[0][1]}") from None
            continue
        duplicates += row in found
        found[row] = None
    rows = np.zeros((len(found), 5), dtype=np.float32)
    polygons = []
    for index, row in enumerate(found):
        polygon = np.array(row[1:], dtype=np.float32).reshape(-1, 2) if len(row) > 5 else NO_POINTS
        polygons.append(polygon)
        rows[index, 0] = row[0]
        rows[index, 1:] = _surrounding_box(polygon) if len(polygon) else row[1:]
    return Rows(rows, tuple(polygons), duplicates, tuple(problems))


def _parse_row(fields: list[str], num_classes: int | None) -> tuple[float, ...]:
    """The numbers of a row; ValueError says what is wrong with it."""
    try:
        row = tuple(map(float, fields))
    except ValueError:
        raise ValueError(f"not all numbers: {_shortened(fields)}") from None
    if len(row) < 5 or (len(row) > 5 and (len(row) < 7 or len(row) % 2 == 0)):
        raise ValueError(
            f"{len(row)} numbers; expected 5 (class x y w h) or a class and at least 3 points: {_shortened(fields)}"
        )
    if not all(map(math.isfinite, row)):
        raise ValueError(f"not all finite: {_shortened(fields)}")
    label, coordinates = row[0], row[1:]
    if label != int(label) or label < 0:
        raise ValueError(f"class {shown(fields[0])}: expected a whole number of at least 0")
    if label >= (MOST_CLASSES if num_classes is None else num_classes):
        raise ValueError(f"class {shown(fields[0])}: the data set has classes 0 to {(num_classes or MOST_CLASSES) - 1}")
    if min(coordinates) < -SLACK or max(coordinates) > 1 + SLACK:
        raise ValueError(f"coordinates outside [0, 1]: {_shortened(fields)}")
    coordinates = tuple(min(max(value, 0.0), 1.0) for value in coordinates)
    width, height = coordinates[2:] if len(row) == 5 else _extent(coordinates)
    if width < SMALLEST or height < SMALLEST:
        raise ValueError(f"a box of no size: {_shortened(fields)}")
    return (label, *coordinates)


def _extent(points: tuple[float, ...]) -> tuple[float, float]:
    x, y = points[0::2], points[1::2]
    return max(x) - min(x), max(y) - min(y)


def _surrounding_box(polygon: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centre and size of the box around a polygon."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return np.concatenate(((low + high) / 2, high - low))


def _shortened(fields: list[str]) -> str:
    return printable(" ".join(fields[:6])[:80]) + (" ..." if len(fields) > 6 else "")
