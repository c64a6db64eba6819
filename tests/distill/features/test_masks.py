from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.features import masks
from distill.pairs import Lesson
from tests.distill.heads import make_head, make_levels
from utils.types import Batch, Prediction


def batch_of(rows, images=2, labelled=None):
    """Rows of image, class, x, y, w, h."""
    return Batch(
        images=torch.zeros(images, 3, 64, 64),
        targets=torch.tensor(rows, dtype=torch.float32).reshape(-1, 6),
        labelled=torch.tensor(labelled) if labelled else torch.ones(images, dtype=torch.bool),
    )


def crowd(number, images=3):
    rows = torch.rand(number, 6)
    rows[:, 0] = (rows[:, 0] * images).floor()
    rows[:, 1] = (rows[:, 1] * 5).floor()
    rows[:, 4:] = 0.02 + 0.5 * rows[:, 4:] ** 2
    return batch_of(rows.tolist(), images)


def span(centre, length, size):
    """By asking each position whether it overlaps with the box."""
    low, high = (centre - length / 2) * size, (centre + length / 2) * size
    touched = [place for place in range(size) if min(high, place + 1) - max(low, place) > masks.TOLERANCE]
    return touched or [min(max(0, math.floor(low + masks.TOLERANCE)), size - 1)]


def slowly(batch, height, width):
    result = torch.full((len(batch.labelled), height, width), -1)
    for image in range(len(batch.labelled)):
        for row in range(height):
            for column in range(width):
                smallest = math.inf
                for index, (where, _, x, y, w, h) in enumerate(batch.targets.tolist()):
                    over = where == image and row in span(y, h, height) and column in span(x, w, width)
                    if over and batch.labelled[image] and w * h < smallest:
                        smallest, result[image, row, column] = w * h, index
    return result


@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
@pytest.mark.parametrize("chunk", [1, 200, 1 << 23])
def test_the_smallest_box_over_each_position(size, chunk, monkeypatch):
    monkeypatch.setattr(masks, "LARGEST_CHUNK", chunk)
    batch = crowd(40)
    expected = slowly(batch, *size)
    assert (expected >= 0).any() and (expected < 0).any()
    assert torch.equal(masks.smallest_box(batch, *size), expected)


def test_a_box_covers_what_it_touches_and_not_its_neighbours():
    batch = batch_of([[0, 0, 0.5, 0.25, 0.5, 0.25]])  # columns 2 to 5, rows 1 to 2 of 8
    expected = torch.full((2, 8, 8), -1)
    expected[0, 1:3, 2:6] = 0
    assert torch.equal(masks.smallest_box(batch, 8, 8), expected)
    assert masks.areas(batch, 8, 8).tolist() == [8]


@pytest.mark.parametrize("size", [7, 10, 20, 80])
def test_a_box_that_ends_on_a_border_does_not_touch_the_neighbour_by_rounding(size):
    spans = [(first, end) for first in range(size) for end in range(first + 1, size + 1)]
    rows = [[0, 0, (first + end) / 2 / size, 0.5, (end - first) / size, 1] for first, end in spans]
    assert masks.areas(batch_of(rows), 1, size).tolist() == [end - first for first, end in spans]


@pytest.mark.parametrize("centre", [0.0, 0.3, 0.5, 1.0])
def test_no_box_is_too_small_to_be_seen(centre):
    batch = batch_of([[1, 0, centre, centre, 0, 0]])
    assert (masks.smallest_box(batch, 8, 8) >= 0).sum() == 1
    assert masks.areas(batch, 8, 8).tolist() == [1]


def test_a_box_beyond_the_border_ends_there():
    batch = batch_of([[0, 0, 0.0, 1.0, 0.5, 0.5]])
    assert (masks.smallest_box(batch, 8, 8)[0, 6:, :2] == 0).all()
    assert masks.areas(batch, 8, 8).tolist() == [4]


def test_areas_are_counts_of_positions():
    batch = crowd(20)
    expected = [len(span(x, w, 9)) * len(span(y, h, 5)) for _, _, x, y, w, h in batch.targets.tolist()]
    assert masks.areas(batch, 5, 9).tolist() == expected


def test_equally_small_boxes_leave_the_position_to_the_first():
    batch = batch_of([[0, 3, 0.5, 0.5, 1, 1], [0, 1, 0.5, 0.5, 0.5, 0.5], [0, 2, 0.5, 0.5, 0.5, 0.5]])
    assert set(masks.smallest_box(batch, 4, 4)[0].flatten().tolist()) == {0, 1}


def test_boxes_of_images_without_labels_count_for_nothing():
    batch = batch_of([[0, 0, 0.5, 0.5, 1, 1], [1, 0, 0.5, 0.5, 1, 1]], labelled=[True, False])
    index = masks.smallest_box(batch, 4, 4)
    assert (index[0] == 0).all()
    assert (index[1] == -1).all()


def test_nothing_covers_anything_where_there_are_no_boxes():
    batch = batch_of([])
    assert (masks.smallest_box(batch, 4, 6) == -1).all()
    assert masks.smallest_box(batch, 4, 6).shape == (2, 4, 6)


def score_by_hand(level):
    """(A, H, W, 5 + C) of one image -> (H, W)."""

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    anchors, height, width = level.shape[:3]
    return torch.tensor(
        [
            [
                max(
                    sigmoid(level[a, row, column, 4].item())
                    * max(sigmoid(x) for x in level[a, row, column, 5:].tolist())
                    for a in range(anchors)
                )
                for column in range(width)
            ]
            for row in range(height)
        ]
    )


@pytest.mark.parametrize(("stride", "level"), [(8, 0), (16, 1), (32, 2)])
def test_scores_are_the_best_of_all_anchors_and_classes_on_the_level_of_the_stride(
    stride, level, draw_batch, draw_prediction, detector
):
    taught, size = draw_prediction(), 64 // stride
    scores = masks.score_map(Lesson(draw_batch(), stride, taught, detector().head, (8, 16, 32)), size, size)
    assert scores.shape == (2, 1, size, size)
    for image in range(2):
        torch.testing.assert_close(scores[image, 0], score_by_hand(taught.levels[level][image]))


def test_where_no_level_has_the_stride_the_nearest_is_resized(draw_batch, draw_prediction, detector):
    taught = draw_prediction()
    scores = masks.score_map(Lesson(draw_batch(), 4, taught, detector().head, (8, 16, 32)), 16, 16)
    own = torch.stack([score_by_hand(level) for level in taught.levels[0]])[:, None]
    torch.testing.assert_close(scores, F.interpolate(own, scale_factor=2, mode="bilinear"))


def test_scores_are_float32_and_without_gradient(draw_batch, draw_prediction, detector):
    levels = tuple(level.bfloat16().requires_grad_() for level in draw_prediction().levels)
    scores = masks.score_map(Lesson(draw_batch(), 8, Prediction(levels), detector().head, (8, 16, 32)), 8, 8)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


@pytest.mark.parametrize("kind", ["dfl", "direct"])
def test_without_anchors_the_score_is_that_of_the_likeliest_class(draw_batch, kind):
    taught = make_levels(kind)
    scores = masks.score_map(Lesson(draw_batch(), 16, taught, make_head(kind), (8, 16, 32)), 4, 4)
    assert torch.equal(scores, taught.levels[1][:, -3:].amax(1, keepdim=True).sigmoid())
