"""Labels of a data set, checked once and kept in flat arrays.

One array holds the rows of all images and another says where an image's rows begin: forked loader workers share
them, where a list of arrays would be copied page by page as reference counts change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.label_cache import cache_path, content_key, load, save, unlabelled_cache_path
from data.label_file import Problem, Scanned
from data.packed import PackedStrings
from data.scan import label_path, scan, scan_unlabelled
from utils.dist import is_main
from utils.errors import UserError

log = logging.getLogger(__name__)

SHOWN = 10  # problems that the log lists one by one


@dataclass(frozen=True)
class Counts:
    """What a check of the files came to."""

    images: int = 0  # that can be used
    background: int = 0  # of these: without objects
    corrupt: int = 0
    boxes: int = 0
    duplicates: int = 0  # rows dropped because they are there twice
    skipped_rows: int = 0  # malformed or out of range


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of n images; `labels[i]` are those of image i."""

    paths: PackedStrings
    shapes: NDArray[np.int32]  # (n, 2) height and width of the original images, orientation applied
    rows: NDArray[np.float32]  # (N, 5) class, x, y, w, h (centre, in [0, 1])
    offsets: NDArray[np.int64]  # (n + 1,) where the rows of an image begin
    points: NDArray[np.float32]  # (P, 2) x, y in [0, 1]: corners of polygons
    point_offsets: NDArray[np.int64]  # (N + 1,) where the polygon of a row begins; an empty one means a plain box
    problems: tuple[Problem, ...]  # the first few hundred; `counts` has all
    counts: Counts
    unlabelled: int = 0  # of the n images, so many at the end have no ground truth at all; the counts are without them

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """(n, 5), a view."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        index = index % len(self)
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    @property
    def labelled(self) -> int:
        """So many images at the beginning have ground truth, if only that there is nothing in them."""
        return len(self) - self.unlabelled

    @property
    def has_polygons(self) -> bool:
        return len(self.points) > 0

    def polygons(self, index: int) -> list[NDArray[np.float32]]:
        """One array (k, 2) in [0, 1] a row of this image, views; k is 0 for plain boxes."""
        first, last = self.offsets[index], self.offsets[index + 1]
        bounds = self.point_offsets[first : last + 1]
        return [self.points[start:stop] for start, stop in pairwise(bounds)]

    @cached_property
    def image_of_row(self) -> NDArray[np.int64]:
        """(N,) which image a row belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """(num_classes,) boxes of each class."""
        return np.bincount(self.rows[:, 0].astype(np.int64), minlength=num_classes)

    def keep(self, kept: NDArray[np.bool_]) -> Labels:
        """Without the rows that a mask (N,) leaves out; images stay."""
        corners = np.diff(self.point_offsets)  # (N,) of each row
        return replace(
            self,
            rows=self.rows[kept],
            offsets=_offsets(np.bincount(self.image_of_row[kept], minlength=len(self))),
            points=self.points[np.repeat(kept, corners)],
            point_offsets=_offsets(corners[kept]),
        )

    def as_single_class(self) -> Labels:
        """The same boxes, all of class 0."""
        rows = self.rows.copy()
        rows[:, 0] = 0
        return replace(self, rows=rows)

    def followed_by(self, others: Labels) -> Labels:
        """With images of `read_unlabelled` at the end."""
        return replace(
            self,
            paths=PackedStrings.of([*self.paths, *others.paths]),
            shapes=np.concatenate((self.shapes, others.shapes)),
            offsets=np.concatenate((self.offsets, np.full(len(others), self.offsets[-1]))),
            problems=self.problems + others.problems,
            unlabelled=self.unlabelled + len(others),
        )

    def report(self) -> str:
        """The first of what was skipped, a line each."""
        return "\n".join(map(str, self.problems))


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def read_labels(images: Sequence[str], num_classes: int | None, source: str, where: str) -> Labels:
    """The checked labels of these images, from the cache if files are as they were.

    Args:
        images: paths, at least one.
        num_classes: rows of higher classes are skipped; None takes all.
        source: what the images were listed from; the name of the cache follows from it.
        where: what messages start with.

    Raises:
        UserError: no usable image is left.
    """
    path, key = cache_path(images, source), content_key(images, num_classes)
    scanned = load(path, images, key, num_classes)
    if scanned is None:  # the key is older than the check: a file that changes meanwhile makes the cache stale
        scanned = scan(images, num_classes, where)
        save(path, images, key, scanned)
    labels = _assemble(images, scanned)
    counts = labels.counts
    log.info("%s: %d images (%d without objects), %d boxes", where, counts.images, counts.background, counts.boxes)
    _tell_problems(labels, where)
    _require_images(labels, len(images), where)
    return labels


def read_unlabelled(images: Sequence[str], source: str, where: str) -> Labels:
    """Images that are checked as in `read_labels` and have no rows: a label file beside one of them is not read.

    Raises:
        UserError: no usable image is left.
    """
    path, key = unlabelled_cache_path(images, source), content_key(images, None, labelled=False)
    scanned = load(path, images, key)
    if scanned is None:
        scanned = scan_unlabelled(images, where)
        save(path, images, key, scanned)
    labels = _assemble(images, scanned)
    _tell_problems(labels, where)
    _require_images(labels, len(images), where)
    log.info("%s: %d images, they learn from the teacher alone", where, len(labels))
    return replace(labels, unlabelled=len(labels))


def require_boxes(labels: Labels, where: str) -> None:
    """Raises UserError where no image has a single box: there would be nothing to learn."""
    if not len(labels.rows):
        image = labels.paths[0]
        raise UserError(
            f"{where}: {len(labels)} images and not one box; the labels of {image} were expected in {label_path(image)}"
        )


def _require_images(labels: Labels, listed: int, where: str) -> None:
    if not len(labels):
        first = f"; the first: {labels.problems[0]}" if labels.problems else ""
        raise UserError(f"{where}: none of its {listed} images can be used{first}")


def _assemble(images: Sequence[str], scanned: Scanned) -> Labels:
    per_image = np.diff(scanned.offsets)
    counts = Counts(
        images=len(scanned.kept),
        background=int((per_image == 0).sum()),
        corrupt=scanned.corrupt,
        boxes=len(scanned.rows),
        duplicates=scanned.duplicates,
        skipped_rows=scanned.skipped_rows,
    )
    return Labels(
        paths=PackedStrings.of(images[index] for index in scanned.kept),
        shapes=scanned.shapes,
        rows=scanned.rows,
        offsets=scanned.offsets,
        points=scanned.points,
        point_offsets=scanned.point_offsets,
        problems=scanned.problems,
        counts=counts,
    )


def _tell_problems(labels: Labels, where: str) -> None:
    counts = labels.counts
    if counts.duplicates:
        log.info("%s: %d duplicate rows dropped", where, counts.duplicates)
    if labels.problems:
        more = counts.corrupt + counts.skipped_rows - SHOWN
        log.log(
            logging.WARNING if is_main() else logging.DEBUG,  # all ranks read the same
            "%s: skipped %d corrupt images and %d rows:\n%s%s",
            where,
            counts.corrupt,
            counts.skipped_rows,
            "\n".join(f"  {problem}" for problem in labels.problems[:SHOWN]),
            f"{os.linesep}  ... and {more} more" if more > 0 else "",
        )
