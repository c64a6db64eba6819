"""Matching, against definitions written out in loops and against one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.utils.scored import data_set, overlap, slow_match
from utils.boxes import iou_matrix
from utils.matching import IOU_THRESHOLDS, Metric, match


def match_one(detections: Tensor, labels: Tensor, *more) -> np.ndarray:
    (right,) = match([detections], [labels], *more)
    return right


def slow_first_choice(detections: Tensor, labels: Tensor, threshold: float) -> list[bool]:
    """The most confident first: each takes the label that it overlaps most, of those that are left."""
    left, right = dict(enumerate(labels.tolist())), []
    for detection in detections.tolist():
        near = [(overlap(detection[:4], label[1:]), n) for n, label in left.items() if label[0] == detection[5]]
        near = [pair for pair in near if pair[0] >= threshold]
        right.append(bool(near))
        if near:
            del left[max(near)[1]]
    return right


def crowd(rng: np.random.Generator, count: int) -> Tensor:
    """Boxes on one heap, of two classes: (count, 5)."""
    first, last = rng.uniform(0, 12, (count, 2)), rng.uniform(40, 52, (count, 2))
    return torch.tensor(np.concatenate((rng.integers(0, 2, (count, 1)), first, last), axis=1), dtype=torch.float32)


@pytest.mark.parametrize("seed", range(10))
def test_whoever_is_turned_away_may_claim_the_next(seed):
    rng = np.random.default_rng(seed)
    labels, found = crowd(rng, 12), crowd(rng, 30)
    detections = torch.cat((found[:, 1:], torch.linspace(0.9, 0.1, 30)[:, None], found[:, :1]), dim=1)
    right = match_one(detections, labels, IOU_THRESHOLDS, "ultralytics")
    assert right.T.tolist() == [slow_first_choice(detections, labels, threshold) for threshold in IOU_THRESHOLDS]
    assert right.sum() > match_one(detections, labels).sum()


def test_one_gives_way_to_a_more_confident_one_that_was_turned_away():
    labels = torch.tensor([[0, 0, 0, 10, 10], [0, 0, 2, 10, 12], [0, 0, 4, 10, 14]])
    detections = torch.tensor(
        [[0, 2, 10, 12, 0.9, 0], [0, 1.9, 10, 12, 0.8, 0], [0, 0.2, 10, 10, 0.7, 0], [0, 3.8, 10, 14, 0.6, 0]]
    )
    right = match_one(detections, labels, [0.5], "ultralytics")
    assert right.flatten().tolist() == slow_first_choice(detections, labels, 0.5)
    assert right.sum() == 3


def test_matching_equals_a_loop_at_every_threshold():
    for detections, labels in data_set():
        right = match_one(detections, labels)
        expected = [slow_match(detections, labels, threshold) for threshold in IOU_THRESHOLDS]
        assert right.T.tolist() == expected


def test_each_label_is_found_once():
    labels = torch.tensor([[0.0, 10, 10, 50, 50]])
    detections = torch.tensor([[10.0, 10, 50, 50, 0.9, 0]] * 3)
    assert match_one(detections, labels).any(axis=1).tolist() == [True, False, False]


def test_the_more_confident_of_two_is_right_though_the_other_fits_better():
    labels = torch.tensor([[0.0, 0, 0, 100, 100]])
    detections = torch.tensor([[0.0, 0, 100, 70, 0.9, 0], [0, 0, 100, 100, 0.8, 0]])
    right = match_one(detections, labels)
    assert right[0].tolist() == [True] * 5 + [False] * 5  # overlap 0.7
    assert right[1].tolist() == [False] * 5 + [True] * 5


def test_a_class_mistaken_is_not_right():
    labels = torch.tensor([[1.0, 10, 10, 50, 50]])
    assert not match_one(torch.tensor([[10.0, 10, 50, 50, 0.9, 0]]), labels).any()


@pytest.mark.parametrize(("found", "present"), [(0, 0), (0, 3), (3, 0)])
def test_matching_with_nothing_on_a_side(found, present):
    right = match_one(torch.rand(found, 6), torch.rand(present, 5))
    assert right.shape == (found, 10) and not right.any()


def test_matching_takes_arrays():
    detections, labels = data_set()[0]
    assert np.array_equal(match_one(detections.numpy(), labels.numpy()), match_one(detections, labels))


# -- many images -------------------------------------------------------------------------------------------------------


def plain_match(detections: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    """One image, by its whole matrix of overlaps."""
    limits = torch.tensor(IOU_THRESHOLDS, dtype=detections.dtype)
    if not len(detections) or not len(labels):
        return torch.zeros(len(detections), len(limits), dtype=torch.bool)
    left = iou_matrix(detections[:, :4], labels[:, 1:]).masked_fill(detections[:, 5:6] != labels[:, 0], -1)
    left = left[:, None].repeat(1, len(limits), 1)  # (n, T, m): what has not turned them away
    while True:
        best, claimed = left.max(dim=2)  # (n, T)
        reaches = best >= limits
        rank = torch.arange(len(reaches))[:, None].expand_as(reaches)
        standing = torch.where(reaches, rank, len(reaches))
        first = standing.new_full((len(labels), len(limits)), len(reaches)).scatter_reduce_(
            0, claimed, standing, "amin"
        )
        right = reaches & (first.gather(0, claimed) == rank)
        if metric == "yolov5" or torch.equal(right, reaches):
            return right
        left.scatter_(2, claimed[..., None], best.masked_fill(reaches & ~right, -1)[..., None])


@pytest.mark.parametrize("metric", ["yolov5", "ultralytics"])
@pytest.mark.parametrize("seed", range(5))
def test_many_images_at_once_are_matched_like_one_by_one(seed, metric):
    pairs = [*data_set(seed, spread=15), (torch.zeros(0, 6), torch.zeros(0, 5))]
    rng = np.random.default_rng(seed)
    for _ in range(5):  # heaps, in which many are turned away
        labels, found = crowd(rng, 12), crowd(rng, 30)
        pairs.append((torch.cat((found[:, 1:], torch.rand(30, 1), found[:, :1]), dim=1), labels))
    expected = [plain_match(found, labels, metric) for found, labels in pairs]
    obtained = match(*zip(*pairs, strict=True), metric=metric)
    assert all(np.array_equal(one, other.numpy()) for one, other in zip(obtained, expected, strict=True))
    assert sum(int(right.sum()) for right in obtained) > 100


@pytest.mark.parametrize("metric", ["yolov5", "ultralytics"])
def test_of_labels_that_lie_upon_each_other_the_first_is_claimed(metric):
    """As whole matrices say it, whatever order the pairs come in."""
    labels = torch.tensor([[0.0, 0, 0, 10, 10]] * 3)
    detections = torch.tensor([[0.0, 0, 10, 10, 0.9, 0]] * 4)
    right = match_one(detections, labels, IOU_THRESHOLDS, metric)
    assert np.array_equal(right, plain_match(detections, labels, metric).numpy())
    assert right[:, 0].sum() == {"yolov5": 1, "ultralytics": 3}[metric]


def test_empty_boxes_overlap_nothing():
    empty = torch.zeros(1, 4)
    detections, labels = torch.cat((empty, torch.ones(1, 2)), dim=1), torch.cat((torch.ones(1, 1), empty), dim=1)
    assert not match_one(detections, labels).any()


def test_no_images_have_no_matches():
    assert match([], []) == []
