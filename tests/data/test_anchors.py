from __future__ import annotations

import numpy as np
import pytest

from data.anchors import box_sides, check_anchors, kmeans_anchors
from data.labels import Counts, Labels
from data.packed import PackedStrings
from utils.errors import UserError

YOLOV5 = np.array(
    [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]], dtype=np.float64
)


def labels_of(sides, shape):
    """One image of this height and width with boxes of these widths and heights, in pixels."""
    sides = np.asarray(sides, dtype=np.float64)
    count = len(sides)
    rows = np.zeros((count, 5), dtype=np.float32)
    rows[:, 1:3], rows[:, 3:] = 0.5, sides / (shape[1], shape[0])
    return Labels(
        PackedStrings.of(["a"]), np.array([shape], dtype=np.int32), rows, np.array([0, count]),
        np.zeros((0, 2), np.float32), np.zeros(count + 1, np.int64), (), Counts(),
    )  # fmt: skip


def clusters(seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[12, 14], [40, 20], [90, 160]])
    return np.concatenate([centre * rng.uniform(0.9, 1.1, (100, 2)) for centre in centres])


@pytest.mark.parametrize("block", [7, 1000])
def test_recall_equals_a_slow_loop(monkeypatch, block):
    monkeypatch.setattr("data.anchors.BLOCK", block)
    sides = np.random.default_rng(0).uniform(2, 600, (200, 2))
    check = check_anchors(sides, YOLOV5.reshape(3, 3, 2), 4.0)
    reached = [sum(max(w / a, a / w, h / b, b / h) < 4.0 for a, b in YOLOV5.tolist()) for w, h in sides.tolist()]
    assert check.recall == pytest.approx(np.mean([count > 0 for count in reached]))
    assert check.anchors_above_threshold == pytest.approx(np.mean(reached))


def test_boxes_are_measured_at_the_training_size():
    labels = labels_of([[64, 48]], (480, 640))
    np.testing.assert_allclose(box_sides(labels, labels.shapes, (320, 320)), [[32, 24]], rtol=1e-6)
    np.testing.assert_allclose(box_sides(labels, labels.shapes, (240, 640)), [[32, 24]], rtol=1e-6)


def test_estimated_anchors_find_the_clusters():
    anchors = kmeans_anchors(clusters(), 3, 4.0)
    np.testing.assert_allclose(anchors, [[12, 14], [40, 20], [90, 160]], rtol=0.05)


def test_estimated_anchors_are_sorted_and_reach_more_than_foreign_ones():
    sides = np.random.default_rng(1).lognormal(2.2, 0.5, (500, 2))
    anchors = kmeans_anchors(sides, 9, 4.0)
    assert anchors.shape == (9, 2)
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    own, foreign = (check_anchors(sides, a, 4.0) for a in (anchors, YOLOV5))
    assert own.recall > 0.98 > foreign.recall


def test_the_same_seed_gives_the_same_anchors():
    one, same = (kmeans_anchors(clusters(), 3, 4.0, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_too_few_boxes_are_refused():
    with pytest.raises(UserError, match="9 anchors cannot be estimated from 50 boxes"):
        kmeans_anchors(np.full((50, 2), 10.0), 9, 4.0)


def test_boxes_of_hardly_a_pixel_do_not_count():
    sides = np.concatenate((clusters(), np.random.default_rng(0).uniform(0, 1.9, (500, 2))))
    np.testing.assert_array_equal(kmeans_anchors(sides, 3, 4.0, seed=5), kmeans_anchors(clusters(), 3, 4.0, seed=5))


def test_without_boxes_nothing_is_missed():
    assert check_anchors(np.zeros((0, 2)), YOLOV5, 4.0) == (1.0, 0.0)
