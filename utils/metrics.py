"""How good detections are: mAP as YOLOv5 defines it, precision, recall, confusion, agreement of two models.

Detections are (n, 6): xyxy, confidence, class, the most confident first; labels (m, 5): class, xyxy. Both in pixels of
one image, whichever, as long as it is the same; tensors or arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes import iou_matrix
from utils.curves import Floats, Ranked, over_confidence, precision_over_recall, ranked
from utils.matching import Metric, Values, as_array

Stats = tuple[Values, Values, Values, Values]

CONFIDENCES = np.linspace(0, 1, 1000)  # where the curves are sampled; recalls of the precision-recall curve too
RECALLS = np.linspace(0, 1, 101)  # where precision is interpolated for the average
MOST_COMPARED = 2000  # classes of a confusion matrix: 32 MB, and 0.5 GB while its figure is drawn
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


def evaluate(stats: Sequence[Stats], names: Sequence[str], metric: Metric = "yolov5") -> Evaluation:
    """Precision, recall and mAP over a data set.

    Args:
        stats: for each image: which detections are right (n, T) as `match` says, their confidence (n,), their
            class (n,), the classes of its labels (m,).
        names: of the classes, by index.
    """
    columns = [[as_array(values) for values in column] for column in zip(*stats, strict=True)]
    right, confidence, predicted, target = (np.concatenate(column) for column in columns or [[np.zeros(0)]] * 4)
    if not len(target):
        return Evaluation(images=len(stats))
    known, labels = np.unique(target, return_counts=True)
    _, images = np.unique(np.concatenate([np.unique(own) for own in columns[3]]), return_counts=True)

    detections = ranked(right, confidence, predicted, known, labels)
    precision, recall = over_confidence(detections, CONFIDENCES)
    at_recall = precision_over_recall(detections, 0, CONFIDENCES, metric)
    average = np.stack(
        [average_precision(detections, column, metric) for column in range(right.shape[1])], axis=1
    )  # (K, T)
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


def average_precision(detections: Ranked, column: int, metric: Metric) -> Floats:
    """Areas under the precision-recall curves at a threshold of IoU, (K,): 101 points, joined by trapezoids."""
    heights = precision_over_recall(detections, column, RECALLS, metric)
    return ((heights[:, 1:] + heights[:, :-1]) / 2 * np.diff(RECALLS)).sum(axis=1)


def _smooth(values: Floats, share: float) -> Floats:
    """Box filter over `2 * share` of the values, which are continued beyond both ends."""
    width = round(len(values) * share * 2) // 2 + 1
    width += 1 - width % 2  # odd, so that it has a middle
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


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
    overlaps (missed), the last column detections that overlap no label (background taken for an object). Of more than
    `MOST_COMPARED` classes, whose pairs may take more memory than there is, nothing is counted: `matrix` is (0, 0).
    """

    def __init__(self, num_classes: int, conf: float = 0.25, iou: float = 0.45) -> None:
        self.num_classes, self.conf, self.iou = num_classes, conf, iou
        side = num_classes + 1 if num_classes <= MOST_COMPARED else 0
        self.matrix = np.zeros((side, side), dtype=np.int64)

    def update(self, detections: Values, labels: Values) -> None:
        """Counts one image: (n, 6) detections, (m, 5) labels. Pairs are formed by overlap, whatever the classes."""
        if not self.matrix.size:
            return
        detections, labels = torch.as_tensor(detections), torch.as_tensor(labels)
        detections = detections[detections[:, 4] > self.conf]
        predicted, target = as_array(detections[:, 5]).astype(np.int64), as_array(labels[:, 0]).astype(np.int64)
        pairs = pair_off(iou_matrix(detections[:, :4], labels[:, 1:]), self.iou)
        found, answered = (as_array(indices) for indices in pairs)
        self._count(predicted[found], target[answered])
        self._count(np.delete(predicted, found), self.num_classes)
        self._count(self.num_classes, np.delete(target, answered))

    def _count(self, predicted: NDArray[np.int64] | int, target: NDArray[np.int64] | int) -> None:
        np.add.at(self.matrix.reshape(-1), np.asarray(predicted * (self.num_classes + 1) + target), 1)

    def normalized(self) -> Floats:
        """Shares of each column, 0 where a column is empty."""
        return self.matrix / np.maximum(self.matrix.sum(axis=0, keepdims=True), 1)
