"""VisDrone's own annotations -> label files: written beside the images once, on first use.

A text file an image, a line a box, in pixels:

    left,top,width,height,score,category,truncation,occlusion

Lines may end in a comma. Score 0 says that evaluation ignores the box. Category 0 is a region in which nobody looked
for objects, 11 is "others", and 1 to 10 are the classes 0 to 9 (data/VisDrone.yaml).

Source: Zhu, Wen, Du, Bian, Fan, Hu and Ling, "Detection and tracking meet drones challenge", TPAMI 2021,
arXiv:2001.06303.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.images import BadImage, image_size
from data.label_file import BadLabels, read
from data.scan import label_path
from utils.dist import is_main
from utils.errors import UserError
from utils.files import write_text

log = logging.getLogger(__name__)

LINE = "left,top,width,height,score,category,truncation,occlusion"
IMAGES = f"{os.sep}images{os.sep}"  # in a path: what is before it is the data set's
REGION, OTHERS = 0, 11  # categories that are no classes


class Converted(NamedTuple):
    """What an annotation file holds."""

    rows: NDArray[np.float64]  # (n, 5) class, x, y, w, h (centre, in [0, 1])
    ignored: int  # left out: ignored regions, and boxes of score 0
    others: int  # left out: boxes of category 11
    empty: int  # left out: boxes of which nothing lies inside the image
    clipped: int  # of the rows, so many had to be cut at the image's borders


def convert(text: str, size: tuple[int, int], where: str) -> Converted:
    """The label rows of one annotation file.

    Args:
        size: height and width of the image, pixels.
        where: the file, for errors.

    Raises:
        UserError: names the first line that is none of VisDrone's.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip(" \t,")]
    values = [_parse_line(line, f"{where}:{number}") for number, line in lines]
    found = np.array(values, dtype=np.float64).reshape(-1, 6)
    score, category = found[:, 4], found[:, 5]
    ignored = (score == 0) | (category == REGION)
    others = ~ignored & (category == OTHERS)
    corners = np.concatenate((found[:, :2], found[:, :2] + found[:, 2:4]), axis=1)
    inside = np.clip(corners, 0, np.array([size[1], size[0]] * 2))
    sides = inside[:, 2:] - inside[:, :2]
    object_ = ~ignored & ~others
    kept = object_ & (sides > 0).all(axis=1)
    boxes = np.concatenate((inside[:, :2] + sides / 2, sides), axis=1) / np.array([size[1], size[0]] * 2)
    return Converted(
        rows=np.concatenate((category[kept, None] - 1, boxes[kept]), axis=1),
        ignored=int(ignored.sum()),
        others=int(others.sum()),
        empty=int((object_ & ~kept).sum()),
        clipped=int((kept & (inside != corners).any(axis=1)).sum()),
    )


def _parse_line(line: str, where: str) -> list[float]:
    """Left, top, width, height, score, category."""
    fields = [field.strip() for field in line.strip().removesuffix(",").split(",")]
    try:
        values = list(map(float, fields))
    except ValueError:
        values = []
    if len(values) != 8 or not all(map(math.isfinite, values)):
        raise UserError(f"{where}: got '{line.strip()[:80]}', expected 8 numbers: {LINE}")
    width, height, score, category = values[2:6]
    if category not in range(OTHERS + 1):
        raise UserError(f"{where}: category: got {fields[5]}, expected 0 (ignored region) to 11 (others)")
    if score not in (0, 1):
        raise UserError(f"{where}: score: got {fields[4]}, expected 1, or 0 for a box that is ignored")
    if width < 0 or height < 0:
        raise UserError(f"{where}: got a box of {fields[2]} x {fields[3]} pixels, expected sides of at least 0")
    return values[:6]


def write_labels(images: Sequence[str], where: str) -> None:
    """Writes the label files of these images that are not there yet: `annotations` -> `labels`, both beside `images`.

    Those that are there stay as they are; to have them made again, delete them. Each file appears whole, so that a
    conversion that was interrupted goes on where it was.

    Args:
        where: what messages start with.

    Raises:
        UserError: an annotation is none of VisDrone's, no file can be written, or it would lie outside the data set.
    """
    unlabelled = [image for image in images if not _exists(label_path(image))]
    todo = [image for image in unlabelled if _exists(annotation_path(image))]
    if not todo:
        return
    for folder, home in {(Path(label_path(image)).parent, image.rpartition(IMAGES)[0]) for image in todo}:
        _require_inside(folder, Path(home))
    counts = Counter(there=len(images) - len(unlabelled), bare=len(unlabelled) - len(todo))
    for image in tqdm(todo, f"{where}: converting annotations", delay=1, disable=not is_main()):
        try:
            size = image_size(image)
        except BadImage as error:
            log.warning("%s: %s; it gets no labels", image, error)
            counts["unreadable"] += 1
            continue
        converted = _convert_file(Path(annotation_path(image)), size)
        _write(Path(label_path(image)), converted.rows)
        counts.update({name: getattr(converted, name) for name in ("ignored", "others", "empty", "clipped")})
        counts.update(files=1, boxes=len(converted.rows))
    _report(counts, where)


def annotation_path(image: str) -> str:
    """Where VisDrone's annotations of an image are."""
    return label_path(image, "annotations")


def _convert_file(path: Path, size: tuple[int, int]) -> Converted:
    try:
        text = read(str(path))
    except BadLabels as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return convert(text, size, str(path))


def _require_inside(folder: Path, home: Path) -> None:
    """Raises UserError where a folder of labels, or one above it, is a link out of the folder that has the images."""
    place = Path(os.path.realpath(folder))  # which bears links to themselves, as `resolve` does not
    if not place.is_relative_to(os.path.realpath(home)):
        raise UserError(
            f"{folder}: leads to {place}, and what convert: writes stays in {home}; expected a folder of "
            "its own there, or none"
        )


def _write(path: Path, rows: NDArray[np.float64]) -> None:
    lines = [f"{int(label)} " + " ".join(f"{value:.7f}" for value in box) + "\n" for label, *box in rows.tolist()]
    try:
        write_text(path, "".join(lines))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); labels lie beside their images") from error


def _report(counts: Counter[str], where: str) -> None:
    log.info(
        "%s: %d annotation files converted: %d boxes, %d of them cut at the image's borders; left out: %d ignored "
        "regions and boxes, %d of category others, %d outside the image or of no size; skipped: %d images that have "
        "labels, %d that have no annotations, %d that cannot be read",
        where, counts["files"], counts["boxes"], counts["clipped"], counts["ignored"], counts["others"],
        counts["empty"], counts["there"], counts["bare"], counts["unreadable"],
    )  # fmt: skip


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - thousands of times
