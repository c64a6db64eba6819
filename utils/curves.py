"""Precision and recall of all classes at once.

A class's detections, the most confident first, are points of a curve: how many are right among the first one, two,
three ... Such curves are long and few of their points are asked for, so nothing here walks along them: what lies left
and right of a point is found by counting.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.matching import Metric

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Ranked(NamedTuple):
    """Detections of the classes that have labels: class after class, in each the most confident first."""

    right: NDArray[np.bool_]  # (n, T) at each threshold of IoU
    confidence: Floats  # (n,)
    kind: Counts  # (n,) position of the class among those with labels, rising
    starts: Counts  # (K,) where each class begins
    sizes: Counts  # (K,) how many each has
    labels: Counts  # (K,) how many there are to find, at least 1


def ranked(
    right: NDArray[Any], confidence: NDArray[Any], predicted: NDArray[Any], known: NDArray[Any], labels: NDArray[Any]
) -> Ranked:
    """Detections (n, T), (n,), (n,) of all images, those of the known classes (K,), which have so many labels (K,)."""
    kind = np.searchsorted(known, predicted).clip(max=len(known) - 1)
    (own,) = (known[kind] == predicted).nonzero()
    own = own[np.lexsort((-confidence[own], kind[own]))]  # equals stay in order
    sizes = np.bincount(kind[own], minlength=len(known))
    return Ranked(
        right[own].astype(bool), confidence[own].astype(float), kind[own], sizes.cumsum() - sizes, sizes, labels
    )


def precision_over_recall(detections: Ranked, column: int, at: Floats, metric: Metric) -> Floats:
    """The precision-recall curves at a threshold of IoU, read at rising recalls (Q,): (K, Q).

    At each recall the curve is the best precision at that recall or above; straight lines join its points. It begins
    with precision 1 and ends as `metric` says.
    """
    (hits,) = detections.right[:, column].nonzero()  # where one more is found
    kind = detections.kind[hits]
    found = np.bincount(kind, minlength=len(detections.labels))
    first = found.cumsum() - found  # of each class's hits
    place = hits - detections.starts[kind] + 1  # detections up to there
    count = np.arange(len(hits)) - first[kind] + 1  # right ones among them
    best = np.append(_best_behind(count / place, kind), 0.0)  # between hits precision falls, so hits say it all

    # left of each recall: all detections before the hit which would go beyond it
    labels = detections.labels[:, None]
    reached = _most_below(at, labels)  # (K, Q) right ones at that point
    inside = reached < found[:, None]
    behind = np.where(inside, first[:, None] + reached, len(hits))
    before = np.append(place, 1)[behind] - 1
    fallen = np.where(before > 0, reached / np.maximum(before, 1), 1.0)
    left = np.maximum(fallen, best[behind])
    within = left + (best[behind] - left) * (at * labels - reached)

    end = (found / np.maximum(detections.sizes, 1))[:, None]
    recall = found[:, None] / labels
    gone = np.ones_like(within) if metric == "ultralytics" else (at - recall) / np.where(recall < 1, 1 - recall, np.inf)
    beyond = np.where(recall < 1, end * (1 - gone), 0.0)
    return np.where(inside, within, np.where(detections.sizes[:, None] > 0, beyond, 0.0))


def over_confidence(detections: Ranked, at: Floats) -> tuple[Floats, Floats]:
    """Precision and recall of the first threshold's column, read at rising confidences (Q,): (K, Q) twice.

    Straight lines join the detections. Above the most confident one nothing is found and nothing wrong; below the least
    confident one nothing changes.
    """
    if not len(detections.kind):
        return np.zeros((len(detections.labels), len(at))), np.zeros((len(detections.labels), len(at)))
    total = detections.right[:, 0].cumsum()
    starts, sizes = detections.starts[:, None], detections.sizes[:, None]
    # how many are at least so confident
    bins = detections.kind * (len(at) + 1) + np.searchsorted(at, detections.confidence, "right")
    counted = np.bincount(bins, minlength=len(detections.labels) * (len(at) + 1)).reshape(-1, len(at) + 1)
    above = counted[:, ::-1].cumsum(axis=1)[:, -2::-1]  # (K, Q)

    left = np.clip(starts + above - 1, 0, len(total) - 1)
    right = np.clip(starts + np.minimum(above, sizes - 1), 0, len(total) - 1)
    high, low = detections.confidence[left], detections.confidence[right]
    share = np.where(high > low, (high - at) / np.where(high > low, high - low, 1.0), 0.0)
    before = np.append(0, total)[starts]

    def read(values: Floats, top: float) -> Floats:
        line = values[left] + (values[right] - values[left]) * share
        return np.where(sizes == 0, 0.0, np.where(above == 0, top, line))

    count = total - before[detections.kind, 0]
    precision = count / (np.arange(len(total)) - detections.starts[detections.kind] + 1)
    return read(precision, 1.0), read(count / detections.labels[detections.kind], 0.0)


def _best_behind(values: Floats, kind: Counts) -> Floats:
    """The largest of each value and those behind it of its kind; values in [0, 1], kinds rising."""
    lifted = values - 2.0 * kind  # backwards, each kind lies above the one before
    return np.maximum.accumulate(lifted[::-1])[::-1] + 2.0 * kind


def _most_below(at: Floats, labels: Counts) -> Counts:
    """The most right ones with which recall stays at or below each point: (Q,), (K, 1) -> (K, Q)."""
    near = np.floor(at * labels).astype(np.int64)
    near += (near + 1) / labels <= at  # recall is a quotient, and rounds otherwise than this product
    near -= near / labels > at
    return near
