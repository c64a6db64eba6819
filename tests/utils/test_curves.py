"""Curves of all classes at once, against a class at a time."""

from __future__ import annotations

import numpy as np
import pytest

from utils.curves import Ranked, over_confidence, precision_over_recall, ranked
from utils.matching import Metric
from utils.metrics import CONFIDENCES, RECALLS, average_precision

METRICS: tuple[Metric, ...] = ("yolov5", "ultralytics")


def drawn(rng: np.random.Generator, kinds: int) -> tuple[np.ndarray, ...]:
    """What `ranked` wants: right (n, 3), confidence, class, known classes, labels.

    Ties, classes without labels, classes without detections, and of some all labels found.
    """
    labels = rng.integers(1, 9, kinds)
    known = np.sort(rng.choice(kinds + 4, kinds, replace=False)).astype(np.float32)
    count = int(rng.integers(0, 60))
    predicted = rng.integers(0, kinds + 4, count).astype(np.float32)
    confidence = rng.random(count).astype(np.float32)
    if rng.random() < 0.5:
        confidence = confidence.round(1)
    right = np.zeros((count, 3), dtype=bool)
    for column in range(3):
        share = rng.random()
        for kind, most in zip(known, labels, strict=True):
            (own,) = (predicted == kind).nonzero()
            right[own[rng.random(len(own)) < share][:most], column] = True
    return right, confidence, predicted, known, labels


def envelope(recall: np.ndarray, precision: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """The curve from recall 0 to 1, made to fall: at each recall the best precision at that recall or above."""
    end = [1.0] if metric == "yolov5" else [recall[-1], 1.0]
    recall = np.concatenate(([0.0], recall, end))
    precision = np.concatenate(([1.0], precision, np.zeros(len(end))))
    return recall, np.maximum.accumulate(precision[::-1])[::-1]


def plain_curves(
    right: np.ndarray, confidence: np.ndarray, labels: int, at: np.ndarray, metric: Metric
) -> tuple[np.ndarray, ...]:
    """One class: precision over recall at each threshold, precision and recall over confidence."""
    if not len(right):
        nothing = np.zeros_like(at)
        return np.zeros((right.shape[1], len(at))), nothing, nothing
    order = np.argsort(-confidence, kind="stable")
    right, confidence = right[order], confidence[order].astype(np.float64)
    found = right.cumsum(axis=0)
    recall, precision = found / labels, found / np.arange(1, len(found) + 1)[:, None]
    over_recall = [np.interp(at, *envelope(recall[:, t], precision[:, t], metric)) for t in range(right.shape[1])]
    return (
        np.stack(over_recall),
        np.interp(-at, -confidence, precision[:, 0], left=1),
        np.interp(-at, -confidence, recall[:, 0], left=0),
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kinds", [1, 2, 7])
@pytest.mark.parametrize("at", [RECALLS, CONFIDENCES])
def test_all_classes_at_once_are_as_each_alone(kinds, metric, at):
    rng = np.random.default_rng(kinds)
    for _ in range(40):
        right, confidence, predicted, known, labels = given = drawn(rng, kinds)
        detections = ranked(*given)
        over_recall = np.stack([precision_over_recall(detections, t, at, metric) for t in range(3)], axis=1)
        precision, recall = over_confidence(detections, at)
        for k, (kind, count) in enumerate(zip(known, labels, strict=True)):
            own = predicted == kind
            expected = plain_curves(right[own], confidence[own], count, at, metric)
            for obtained, plain in zip((over_recall[k], precision[k], recall[k]), expected, strict=True):
                np.testing.assert_allclose(obtained, plain, rtol=0, atol=1e-12)


def one_class(right: list[bool], labels: int) -> Ranked:
    count = len(right)
    confidence = np.linspace(0.9, 0.1, count)
    return ranked(np.array(right)[:, None], confidence, np.zeros(count), np.zeros(1), np.array([labels]))


def test_average_precision_of_a_known_curve():
    # half of the labels are found without a mistake, and nothing more
    heights = [1.0] * 51 + [1 - (r - 0.5) / 0.5 for r in np.linspace(0.51, 1, 50)]
    expected = sum((heights[i] + heights[i + 1]) / 200 for i in range(100))
    assert average_precision(one_class([True, True], 4), 0, "yolov5") == pytest.approx(expected)


def test_the_curve_may_drop_where_recall_ends():
    # 101 of 200 labels: 51 points of precision 1, up to recall 0.505, then 50 of 0: 50 whole trapezoids and a half one
    detections = one_class([True] * 101, 200)
    assert average_precision(detections, 0, "ultralytics") == pytest.approx(0.505)
    assert average_precision(detections, 0, "yolov5") > 0.74


def test_without_detections_every_curve_is_zero():
    detections = ranked(np.zeros((0, 1)), np.zeros(0), np.zeros(0), np.array([2.0, 5.0]), np.array([3, 1]))
    for curve in (*over_confidence(detections, RECALLS), precision_over_recall(detections, 0, RECALLS, "yolov5")):
        assert curve.shape == (2, 101) and not curve.any()
