"""How good detections are: mAP as YOLOv5 defines it, precision, recall, confusion, agreement of two models.

Detections are (n, 6): xyxy, confidence, class, the most confident first; labels (m, 5): class, xyxy. Both in pixels of
one image, whichever, as long as it is the same; tensors or arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes import iou_matrix

Floats = NDArray[np.float64]
Values = Tensor | NDArray[Any]
Stats = tuple[Values, Values, Values, Values]
# Two ways to count mAP. A detection claims the label that it overlaps most, and if a more confident one has that:
# nothing else ("yolov5"), or the next ("ultralytics", as in COCO's own). And where recall ends the precision-recall
# curve goes on in a line to precision 0 at recall 1 ("yolov5"), or drops to 0 ("ultralytics", as in COCO's own). The
# first is that of the published scores of YOLOv3, v5 and v7, the second what Ultralytics counts since YOLO26.
Metric = Literal["yolov5", "ultralytics"]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
CONFIDENCES = np.linspace(0, 1, 1000)  # where the curves are sampled; recalls of the precision-recall curve too
RECALLS = np.linspace(0, 1, 101)  # where precision is interpolated for the average
SMOOTHING = 0.1  # width of the box filter over the mean F1 curve, a share of the axis, each side


@dataclass(frozen=True)
class ClassResult:
    """A class that has labels. Precision and recall at IoU 0.5, where the mean F1 curve has its maximum."""

    name: str
    index: int
    images: int  # that show it
    labels: int
    precision: float
    recall: float
    map50: float
    map: float  # mAP50-95


@dataclass(frozen=True, eq=False)
class Curves:
    """What figures are drawn from, at IoU 0.5; K rows, one for each class of `Evaluation.per_class`."""

    confidence: Floats = field(default_factory=lambda: CONFIDENCES)  # (1000,) x axis of the next three
    precision: Floats = field(default_factory=lambda: np.zeros((0, len(CONFIDENCES))))  # (K, 1000)
    recall: Floats = field(default_factory=lambda: np.zeros((0, len(CONFIDENCES))))
    f1: Floats = field(default_factory=lambda: np.zeros((0, len(CONFIDENCES))))
    recall_axis: Floats = field(default_factory=lambda: CONFIDENCES)  # (1000,) x axis of the next
    precision_at_recall: Floats = field(default_factory=lambda: np.zeros((0, len(CONFIDENCES))))
    best_confidence: float = 0.0  # where precision and recall are read


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Means over the classes that have labels; all 0 without labels or without detections."""

    precision: float = 0.0
    recall: float = 0.0
    map50: float = 0.0
    map: float = 0.0  # mAP50-95
    images: int = 0
    labels: int = 0
    per_class: tuple[ClassResult, ...] = ()
    curves: Curves = field(default_factory=Curves)


def fitness(evaluation: Evaluation) -> float:
    """What the best checkpoint is the best of."""
    return 0.1 * evaluation.map50 + 0.9 * evaluation.map


def match(
    detections: Values,
    labels: Values,
    thresholds: Sequence[float] | Tensor = IOU_THRESHOLDS,
    metric: Metric = "yolov5",
) -> Tensor:
    """Which detections of an image are right: (n, 6), (m, 5) -> (n, T) bool, a column for each threshold of IoU.

    A detection claims the label of its class that it overlaps most; of those that claim one label and reach the
    threshold, the most confident is right. "ultralytics": who is turned away claims the next, and whoever is less
    confident gives way, until nobody is: as if the most confident had chosen first, then the second, and so on.
    """
    detections, labels = torch.as_tensor(detections), torch.as_tensor(labels)
    limits = torch.as_tensor(thresholds, dtype=detections.dtype, device=detections.device)
    if not len(detections) or not len(labels):
        return torch.zeros(len(detections), len(limits), dtype=torch.bool, device=detections.device)
    overlap = iou_matrix(detections[:, :4], labels[:, 1:])  # (n, m)
    overlap = overlap.masked_fill(detections[:, 5:6] != labels[:, 0], -1)
    if metric == "yolov5":
        best, claimed = (x[:, None].expand(-1, len(limits)) for x in overlap.max(dim=1))
        return _heard(best >= limits, claimed, len(labels))
    left = overlap[:, None].repeat(1, len(limits), 1)  # (n, T, m): what has not turned them away
    while True:
        best, claimed = left.max(dim=2)  # (n, T)
        reaches = best >= limits
        right = _heard(reaches, claimed, len(labels))
        if torch.equal(right, reaches):
            return right
        left.scatter_(2, claimed[..., None], best.masked_fill(reaches & ~right, -1)[..., None])


def _heard(reaches: Tensor, claimed: Tensor, labels: int) -> Tensor:
    """Of those that reach, (n, T) bool, and claim one of the labels, (n, T) long, the first: (n, T) bool."""
    rank = torch.arange(len(reaches), device=reaches.device)[:, None].expand_as(reaches)
    behind = len(reaches)  # where those stand that don't reach
    standing = torch.where(reaches, rank, behind)
    first = standing.new_full((labels, reaches.shape[1]), behind).scatter_reduce_(0, claimed, standing, "amin")
    return reaches & (first.gather(0, claimed) == rank)


def evaluate(stats: Sequence[Stats], names: Sequence[str], metric: Metric = "yolov5") -> Evaluation:
    """Precision, recall and mAP over a data set.

    Args:
        stats: for each image: which detections are right (n, T) as `match` says, their confidence (n,), their
            class (n,), the classes of its labels (m,).
        names: of the classes, by index.
    """
    columns = [[_array(values) for values in column] for column in zip(*stats, strict=True)]
    right, confidence, predicted, target = (np.concatenate(column) for column in columns or [[np.zeros(0)]] * 4)
    if not len(target):
        return Evaluation(images=len(stats))
    known, labels = np.unique(target, return_counts=True)
    _, images = np.unique(np.concatenate([np.unique(own) for own in columns[3]]), return_counts=True)

    order = np.argsort(-confidence, kind="stable")
    right, confidence, predicted = right[order], confidence[order].astype(np.float64), predicted[order]
    parts = [
        _class_curves(right[predicted == index], confidence[predicted == index], count, metric)
        for index, count in zip(known, labels, strict=True)
    ]
    average, precision, recall, at_recall = (np.stack(part) for part in zip(*parts, strict=True))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-16)
    best = int(_smooth(f1.mean(axis=0), SMOOTHING).argmax())
    figures = np.stack((precision[:, best], recall[:, best], average[:, 0], average.mean(axis=1)), axis=1)  # (K, 4)
    per_class = tuple(
        ClassResult(_name(names, int(index)), int(index), int(shown), int(count), *map(float, row))
        for index, shown, count, row in zip(known, images, labels, figures, strict=True)
    )
    curves = Curves(
        precision=precision,
        recall=recall,
        f1=f1,
        precision_at_recall=at_recall,
        best_confidence=float(CONFIDENCES[best]),
    )
    mean_precision, mean_recall, map50, mean_average = map(float, figures.mean(axis=0))
    return Evaluation(
        mean_precision, mean_recall, map50, mean_average, len(stats), len(target), per_class=per_class, curves=curves
    )


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)


def _class_curves(
    right: NDArray[np.bool_], confidence: Floats, labels: int, metric: Metric
) -> tuple[Floats, Floats, Floats, Floats]:
    """One class: average precision (T,), then precision and recall over confidence, precision over recall (1000,).

    Args:
        right: (n, T), the most confident detection first.
        labels: how many there are to find, at least 1.
    """
    if not len(right):
        nothing = np.zeros_like(CONFIDENCES)
        return np.zeros(right.shape[1]), nothing, nothing, nothing
    found = right.cumsum(axis=0)  # (n, T)
    recall = found / labels
    precision = found / np.arange(1, len(found) + 1)[:, None]
    # np.interp wants a rising axis; more confident than the most confident detection: nothing found, nothing wrong
    precision_curve = np.interp(-CONFIDENCES, -confidence, precision[:, 0], left=1)
    recall_curve = np.interp(-CONFIDENCES, -confidence, recall[:, 0], left=0)
    at_recall = np.interp(CONFIDENCES, *_envelope(recall[:, 0], precision[:, 0], metric))
    average = np.array([average_precision(recall[:, i], precision[:, i], metric) for i in range(right.shape[1])])
    return average, precision_curve, recall_curve, at_recall


def average_precision(recall: Floats, precision: Floats, metric: Metric = "yolov5") -> float:
    """Area under the precision-recall curve: 101 interpolated points, joined by trapezoids.

    Both (n,), as the confidence that a detection must have falls.
    """
    heights = np.interp(RECALLS, *_envelope(recall, precision, metric))
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(RECALLS)).sum())


def _envelope(recall: Floats, precision: Floats, metric: Metric) -> tuple[Floats, Floats]:
    """The curve from recall 0 to 1, made to fall: at each recall the best precision at that recall or above."""
    end = [1.0] if metric == "yolov5" else [recall[-1], 1.0]
    recall = np.concatenate(([0.0], recall, end))
    precision = np.concatenate(([1.0], precision, np.zeros(len(end))))
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def _smooth(values: Floats, share: float) -> Floats:
    """Box filter over `2 * share` of the values, which are continued beyond both ends."""
    width = round(len(values) * share * 2) // 2 + 1
    width += 1 - width % 2  # odd, so that it has a middle
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def _array(values: Values) -> NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def pair_off(overlap: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs rows with columns of an (N, M) matrix, each at most once, the largest overlap above the threshold first.

    Returns the indices of the paired rows and columns. Pairs that are each other's best are taken together, so this
    takes a few rounds rather than one a pair.
    """
    left = overlap.clone()
    rows, columns = [], []
    while left.numel() and bool((left > threshold).any()):
        best, column = left.max(dim=1)
        mutual = (left.argmax(dim=0)[column] == torch.arange(len(left), device=left.device)) & (best > threshold)
        (row,) = mutual.nonzero(as_tuple=True)
        rows.append(row)
        columns.append(column[row])
        left[row] = -1
        left[:, column[row]] = -1
    none = torch.zeros(0, dtype=torch.long, device=overlap.device)
    return torch.cat((none, *rows)), torch.cat((none, *columns))


def agreement(ours: Sequence[Values], theirs: Sequence[Values], iou: float = 0.5, conf: float = 0.25) -> float:
    """How far two models agree, in [0, 1]: the share of both their confident boxes that the other has too.

    The other has a box when one of the same class overlaps it by more than `iou`; each counts for one box only. Models
    that both find nothing agree.

    Args:
        ours, theirs: (n, 6) detections of each image, the same images in the same order.
    """
    paired, total = 0, 0
    for pair in zip(ours, theirs, strict=True):
        some, others = (boxes[boxes[:, 4] > conf] for boxes in map(torch.as_tensor, pair))
        overlap = iou_matrix(some[:, :4], others[:, :4]).masked_fill(some[:, 5:6] != others[:, 5], -1)
        paired += len(pair_off(overlap, iou)[0])
        total += len(some) + len(others)
    return 2 * paired / total if total else 1.0


class ConfusionMatrix:
    """Which class is taken for which.

    `matrix[i, j]`: how many labels of class j were detected as class i. The last row counts labels that nothing
    overlaps (missed), the last column detections that overlap no label (background taken for an object).
    """

    def __init__(self, num_classes: int, conf: float = 0.25, iou: float = 0.45) -> None:
        self.num_classes, self.conf, self.iou = num_classes, conf, iou
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def update(self, detections: Values, labels: Values) -> None:
        """Counts one image: (n, 6) detections, (m, 5) labels. Pairs are formed by overlap, whatever the classes."""
        detections, labels = torch.as_tensor(detections), torch.as_tensor(labels)
        detections = detections[detections[:, 4] > self.conf]
        predicted, target = _array(detections[:, 5]).astype(np.int64), _array(labels[:, 0]).astype(np.int64)
        pairs = pair_off(iou_matrix(detections[:, :4], labels[:, 1:]), self.iou)
        found, answered = (_array(indices) for indices in pairs)
        self._count(predicted[found], target[answered])
        self._count(np.delete(predicted, found), self.num_classes)
        self._count(self.num_classes, np.delete(target, answered))

    def _count(self, predicted: NDArray[np.int64] | int, target: NDArray[np.int64] | int) -> None:
        np.add.at(self.matrix.reshape(-1), np.asarray(predicted * (self.num_classes + 1) + target), 1)

    def normalized(self) -> Floats:
        """Shares of each column, 0 where a column is empty."""
        return self.matrix / np.maximum(self.matrix.sum(axis=0, keepdims=True), 1)
