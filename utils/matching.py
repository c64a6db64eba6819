"""Which detections are right: those of many images at once.

Detections are (n, 6): xyxy, confidence, class, the most confident first; labels (m, 5): class, xyxy. Both in pixels of
one image, whichever, as long as it is the same; tensors or arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Values = Tensor | NDArray[Any]
Indices = NDArray[np.intp]
Rights = NDArray[np.bool_]
# Two ways to count mAP. A detection claims the label that it overlaps most, and if a more confident one has that:
# nothing else ("yolov5"), or the next ("ultralytics", as in COCO's own). And where recall ends the precision-recall
# curve goes on in a line to precision 0 at recall 1 ("yolov5"), or drops to 0 ("ultralytics", as in COCO's own). The
# first is that of the published scores of YOLOv3, v5 and v7, the second what Ultralytics counts since YOLO26.
Metric = Literal["yolov5", "ultralytics"]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


class _Pairs(NamedTuple):
    """Detections and labels of one image and class that overlap enough, a detection's best label first."""

    detection: Indices  # (P,) counted over all images, rising
    label: Indices  # (P,) counted over all images
    overlap: NDArray[np.floating]  # (P,)


def match(
    detections: Sequence[Values],
    labels: Sequence[Values],
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    metric: Metric = "yolov5",
) -> list[Rights]:
    """Which detections of each image are right: (n, T) bool an image, a column for each threshold of IoU.

    A detection claims the label of its class that it overlaps most; of those that claim one label and reach the
    threshold, the most confident is right. "ultralytics": who is turned away claims the next, and whoever is less
    confident gives way, until nobody is: as if the most confident had chosen first, then the second, and so on.
    """
    found, there = ([as_array(values) for values in side] for side in (detections, labels))
    sizes = [len(own) for own in found]
    right = np.zeros((sum(sizes), len(thresholds)), dtype=bool)
    if right.size and any(map(len, there)):
        pairs = _overlapping(found, there, min(thresholds))
        reaches = pairs.overlap[:, None] >= np.asarray(thresholds, dtype=pairs.overlap.dtype)  # (P, T)
        heard = _heard if metric == "yolov5" else _heard_in_the_end
        pair, column = heard(pairs, reaches).nonzero()
        right[pairs.detection[pair], column] = True
    return np.split(right, np.cumsum(sizes))[:-1]


def _overlapping(found: Sequence[NDArray[Any]], there: Sequence[NDArray[Any]], threshold: float) -> _Pairs:
    """All pairs of one image and class whose IoU reaches the threshold."""
    image, other = (np.repeat(np.arange(len(side)), [len(own) for own in side]) for side in (found, there))
    detections, labels = np.concatenate(found), np.concatenate(there)
    classes = 1 + max(detections[:, 5].max(), labels[:, 0].max())
    wanted, group = image * classes + detections[:, 5], other * classes + labels[:, 0]

    order = group.argsort(kind="stable")
    first, last = (np.searchsorted(group[order], wanted, side) for side in ("left", "right"))
    counts = last - first  # labels of each detection's image and class
    detection = np.repeat(np.arange(len(detections)), counts)
    place = np.arange(len(detection)) - np.repeat(counts.cumsum() - counts, counts)
    label = order[first[detection] + place]
    overlap = _iou(detections[:, :4].T[:, detection], labels[:, 1:].T[:, label])
    near = (overlap >= np.asarray(threshold, dtype=overlap.dtype)).nonzero()[0]
    near = near[np.lexsort((label[near], -overlap[near], detection[near]))]
    return _Pairs(detection[near], label[near], overlap[near])


def _iou(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """IoU of boxes, pair by pair: x1, y1, x2, y2 in rows, (4, P) twice -> (P,); 0 where both are empty."""
    width, height = (np.minimum(boxes[2:], others[2:]) - np.maximum(boxes[:2], others[:2])).clip(min=0)
    area, other = ((right - left) * (lower - upper) for left, upper, right, lower in (boxes, others))
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(width * height / (area + other - width * height))


def _heard(pairs: _Pairs, reaches: Rights) -> Rights:
    """Of each detection's first pair among those that reach, (P, T): the most confident that claims its label."""
    return _first(_first(reaches, pairs.detection), pairs.label)


def _heard_in_the_end(pairs: _Pairs, reaches: Rights) -> Rights:
    """As `_heard`, once all who were turned away have claimed what is left to them."""
    left = reaches.copy()  # what has not turned them away
    while True:
        claims = _first(left, pairs.detection)
        heard = _first(claims, pairs.label)
        if np.array_equal(heard, claims):
            return heard
        left &= ~claims | heard


def _first(chosen: Rights, group: Indices) -> Rights:
    """Of the chosen rows (P, T), in each column the first of each group (P,)."""
    order = group.argsort(kind="stable")
    chosen, group = chosen[order], group[order]
    so_far = chosen.cumsum(axis=0)
    before = (so_far - chosen)[np.searchsorted(group, group)]  # chosen ones of the groups before
    first = np.empty_like(chosen)
    first[order] = chosen & (so_far - before == 1)
    return first


def as_array(values: Values) -> NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
