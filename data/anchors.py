"""Anchors: how well they reach boxes, such as those of a data set's labels, and better ones estimated from boxes."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.labels import Labels
from data.picture import Size
from utils.errors import UserError

log = logging.getLogger(__name__)

Sides = NDArray[np.float64]  # (n, 2) widths and heights, pixels

ROUNDS = 30  # of k-means
GENERATIONS = 1000
MOST = 20_000  # boxes that the estimate looks at
BLOCK = 100_000  # boxes that are compared with all anchors at a time: of ten million, gigabytes otherwise


class AnchorCheck(NamedTuple):
    """How anchors suit boxes."""

    recall: float  # share of boxes that some anchor reaches: the best that training can do
    anchors_above_threshold: float  # anchors that reach a box, a mean over boxes


def check_anchors(sides: Sides, anchors_px: NDArray, threshold: float) -> AnchorCheck:
    """Best possible recall.

    Args:
        sides: of the boxes, pixels; see `box_sides`.
        anchors_px: (..., 2) widths and heights in pixels.
        threshold: largest ratio of a box's side to an anchor's that still matches (hyp anchor_t).
    """
    if not len(sides):
        return AnchorCheck(1.0, 0.0)
    anchors, some, all_in_all = np.asarray(anchors_px, dtype=np.float64).reshape(-1, 2), 0, 0
    for start in range(0, len(sides), BLOCK):
        reached = _closeness(sides[start : start + BLOCK], anchors) > 1 / threshold
        some, all_in_all = some + int(reached.any(axis=1).sum()), all_in_all + int(reached.sum())
    return AnchorCheck(some / len(sides), all_in_all / len(sides))


def kmeans_anchors(sides: Sides, count: int, threshold: float, seed: int = 0) -> Sides:
    """(count, 2) widths and heights in pixels, sorted by area: k-means, then random mutations that help.

    Args:
        sides: of the boxes, pixels; see `box_sides`.
        threshold: hyp anchor_t.

    Raises:
        UserError: fewer different boxes than anchors.
    """
    rng = np.random.default_rng(abs(seed))
    sides = sides[(sides >= 2).any(axis=1)]
    large = len(sides)
    if large > MOST:
        sides = rng.choice(sides, MOST, replace=False)
    if len(np.unique(sides, axis=0)) < count:
        raise UserError(
            f"{count} anchors cannot be estimated from {large} boxes over 2 px; use --noautoanchor, or give them "
            "in the hyp file (anchors)"
        )
    anchors = _evolve(_kmeans(sides, count, rng), sides, threshold, rng)
    return anchors[np.argsort(anchors.prod(axis=1))]


def box_sides(labels: Labels, shapes: NDArray[np.int32], image_size: Size) -> Sides:
    """(N, 2) widths and heights of all labelled boxes in pixels, images fitted into `image_size`.

    Args:
        shapes: (n, 2) height and width of the original images.
    """
    gain = np.minimum(image_size[0] / shapes[:, 0], image_size[1] / shapes[:, 1])
    fitted = shapes[:, ::-1] * gain[:, None]  # width, height
    return labels.rows[:, 3:5].astype(np.float64) * fitted[labels.image_of_row]


def _closeness(sides: Sides, anchors: Sides) -> NDArray[np.float64]:
    """(n, k): the smallest ratio of sides, either way round; 1 is a perfect fit."""
    closest = np.ones((len(sides), len(anchors)))
    for axis in (0, 1):
        ratio = sides[:, axis, None] / anchors[None, :, axis]
        closest = np.minimum(closest, np.minimum(ratio, 1 / np.maximum(ratio, 1e-12)))
    return closest


def _kmeans(sides: Sides, count: int, rng: np.random.Generator) -> Sides:
    """Lloyd's algorithm on sides divided by their spread, from centres drawn far apart (k-means++)."""
    spread = np.maximum(sides.std(axis=0), 1e-9)
    points = sides / spread
    centres = points[rng.integers(len(points))][None]
    for _ in range(count - 1):
        away = _squared_distances(points, centres).min(axis=1)
        centres = np.concatenate((centres, points[rng.choice(len(points), p=away / away.sum())][None]))
    for _ in range(ROUNDS):
        nearest = _squared_distances(points, centres).argmin(axis=1)
        members = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, points[:, axis], minlength=count) for axis in (0, 1)], axis=1)
        moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres * spread


def _squared_distances(points: Sides, centres: Sides) -> NDArray[np.float64]:
    """(n, 2) and (k, 2) -> (n, k)."""
    return ((points[:, None] - centres[None]) ** 2).sum(axis=2)


def _evolve(anchors: Sides, sides: Sides, threshold: float, rng: np.random.Generator) -> Sides:
    """Keeps random changes by which boxes are reached better."""

    def fitness(candidate: Sides) -> float:
        best = _closeness(sides, candidate).max(axis=1)
        return float((best * (best > 1 / threshold)).mean())

    best = fitness(anchors)
    for _ in range(GENERATIONS if len(sides) <= 5000 else GENERATIONS * 5000 // len(sides)):
        change = np.where(rng.random(anchors.shape) < 0.9, rng.random() * rng.normal(0, 0.1, anchors.shape), 0)
        candidate = np.maximum(anchors * np.clip(1 + change, 0.3, 3.0), 2.0)
        found = fitness(candidate)
        if found > best:
            best, anchors = found, candidate
    return anchors
