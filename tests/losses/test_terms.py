"""Overlaps and cross-entropies, against torchvision and against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_convert, complete_box_iou, distance_box_iou, generalized_box_iou, sigmoid_focal_loss
from torchvision.ops import box_iou as plain_box_iou

from losses.terms import bbox_iou, bce, distribution_focal, smoothed

KINDS = ("iou", "giou", "diou", "ciou")
REFERENCE = dict(zip(KINDS, (plain_box_iou, generalized_box_iou, distance_box_iou, complete_box_iou), strict=True))


def some_boxes(count: int = 200) -> torch.Tensor:
    """xywh, some far from each other, some within each other."""
    return torch.cat((torch.rand(count, 2) * 40, torch.rand(count, 2) * 30 + 1), dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_equals_torchvision(kind):
    boxes, others = some_boxes(), some_boxes()
    expected = REFERENCE[kind](box_convert(boxes, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy")).diagonal()
    assert (bbox_iou(boxes, others, kind) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_of_boxes_give_the_same_overlap(kind):
    boxes, others = some_boxes(), some_boxes()
    corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, others))
    assert torch.allclose(bbox_iou(boxes, others, kind), bbox_iou(*corners, kind, "xyxy"), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_overlap_fully(kind):
    boxes = some_boxes()
    assert torch.allclose(bbox_iou(boxes, boxes, kind), torch.ones(len(boxes)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_of_empty_and_far_boxes_has_a_finite_gradient(kind):
    boxes = torch.tensor([[5.0, 5, 0, 0], [5, 5, 0, 3], [5, 5, 3, 0], [1e4, 5, 1, 1], [5, 5, 1e-20, 1e-20]])
    boxes.requires_grad_()
    bbox_iou(boxes, torch.tensor([5.0, 5, 0, 0]), kind).sum().backward()
    assert boxes.grad.isfinite().all()


def test_trade_off_of_ciou_is_not_learned():
    boxes, others = some_boxes(8).double(), some_boxes(8).double()
    boxes.requires_grad_()
    bbox_iou(boxes, others, "ciou").sum().backward()
    value = bbox_iou(boxes, others, "ciou") - bbox_iou(boxes, others, "diou")
    ratio = torch.atan(others[:, 2] / others[:, 3]) - torch.atan(boxes[:, 2] / boxes[:, 3])
    shape = 4 / math.pi**2 * ratio**2
    constant = (-value / shape).detach()
    (expected,) = torch.autograd.grad((bbox_iou(boxes, others, "diou") - constant * shape).sum(), boxes)
    assert torch.allclose(boxes.grad, expected, atol=1e-9)


def test_an_unknown_overlap_is_refused():
    with pytest.raises(ValueError, match="siou"):
        bbox_iou(some_boxes(), some_boxes(), "siou")


def test_cross_entropy_weighs_the_positive_part():
    logits, targets = torch.randn(50), torch.rand(50)
    probability = logits.sigmoid()
    expected = -(3 * targets * probability.log() + (1 - targets) * (1 - probability).log())
    assert torch.allclose(bce(logits, targets, positive_weight=3), expected, atol=1e-5)


def test_focal_factor_equals_torchvision():
    logits, targets = torch.randn(50), (torch.rand(50) > 0.5).float()
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=1.5)
    assert torch.allclose(bce(logits, targets, gamma=1.5), expected, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5])
def test_saturated_logits_have_a_finite_gradient(gamma):
    logits = torch.tensor([-1e4, -100.0, 0, 100, 1e4]).repeat(2).requires_grad_()
    bce(logits, torch.tensor([0.0, 1]).repeat_interleave(5), gamma=gamma).sum().backward()
    assert logits.grad.isfinite().all()


def test_smoothing_moves_both_targets_by_half_of_epsilon():
    assert smoothed(0.0) == (1, 0)
    assert smoothed(0.1) == pytest.approx((0.95, 0.05))


def test_distribution_focal_equals_a_loop_over_sides():
    logits = torch.randn(20, 4, 16)
    distances = torch.rand(20, 4) * 20 - 2
    distances[0] = torch.tensor([0.0, 3, 14.99, 15])
    for row, aims, found in zip(logits, distances, distribution_focal(logits, distances), strict=True):
        expected = 0.0
        for bins, aim in zip(row.tolist(), aims.tolist(), strict=True):
            aim = min(max(aim, 0), 14.99)
            log_sum = math.log(sum(math.exp(x) for x in bins))
            above = min(int(aim) + 1, 15)
            nearness = aim - above + 1
            expected -= ((1 - nearness) * (bins[above - 1] - log_sum) + nearness * (bins[above] - log_sum)) / 4
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_distribution_learns_the_distance_that_is_wanted():
    logits, distances = torch.zeros(1, 4, 8, requires_grad=True), torch.tensor([[0.0, 2.25, 5.9, 30]])
    for _ in range(300):
        (slope,) = torch.autograd.grad(distribution_focal(logits, distances).sum(), logits)
        logits = (logits - 10 * slope).detach().requires_grad_()
    expected = (logits.softmax(-1) * torch.arange(8)).sum(-1)
    assert torch.allclose(expected, torch.tensor([[0.0, 2.25, 5.9, 6.99]]), atol=0.1)
