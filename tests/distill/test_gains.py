"""That a part of an output loss counts as much as its counterpart in the detection loss."""

from __future__ import annotations

import pytest
import torch

from distill.classes import match_classes
from distill.gains import output_gains
from distill.outputs import OUTPUTS
from distill.outputs.base import Sides
from losses.anchor import rescaled_gains
from losses.build import build_criterion
from models.heads.anchor import Detect
from models.heads.anchor_free import AnchorFreeDetect
from utils.hyp import Hyp
from utils.types import Batch, Prediction

ANCHORS = [[10, 13, 16, 30]] * 4


def test_of_anchors_each_level_counts():
    for levels in (2, 3, 4):
        head = Detect(20, ANCHORS[:levels], [4] * levels, [8 * 2**i for i in range(levels)])
        gains = rescaled_gains(Hyp(box=0.05), levels, 20, (320, 640))
        # rescaled for the number of levels, so that it does not matter
        assert output_gains(head, gains) == pytest.approx((0.15, 1.5, 3 * 0.5 * 20 / 80, 0))


def test_without_anchors_classes_are_added_up():
    head = AnchorFreeDetect(20, [4] * 3, (8, 16, 32))
    gains = build_criterion(head, Hyp(box=7.5), (64, 64)).gains
    assert output_gains(head, gains) == pytest.approx((7.5, 0, 0.5 * 20, 1.5))


def test_kl_pulls_as_the_detection_loss_does_with_the_teachers_scores_as_its_targets():
    """Without anchors: gain * sum of cross-entropies / sum of what classes are to score."""
    head = AnchorFreeDetect(4, [4] * 3, (8, 16, 32))
    hyp, names = Hyp(box=7.5), ("a", "b", "c", "d")
    gains = output_gains(head, build_criterion(head, hyp, (64, 64)).gains)
    levels = [torch.randn(2, 64 + 4, 64 // stride, 64 // stride) for stride in (8, 16, 32)]
    student = [level.clone().requires_grad_() for level in levels]
    taught = [torch.randn_like(level) for level in levels]
    for level in taught:
        level[:, 64] = torch.where(level[:, 64] > 1, 3.0, -9.0)  # a few objects, all of one class
        level[:, 65:] = -9.0
    batch = Batch(torch.zeros(2, 3, 64, 64), torch.zeros(0, 6), torch.ones(2, dtype=torch.bool))
    loss = OUTPUTS["kl"](Sides(head, head, match_classes(names, names, 4, 4), gains))
    loss(Prediction(tuple(student)), Prediction(tuple(taught)), batch).backward()

    targets = [level[:, 64:].sigmoid() for level in taught]
    worth = sum(target.amax(1).sum() for target in targets)
    for own, target in zip(student, targets, strict=True):
        expected = hyp.cls * (own[:, 64:].detach().sigmoid() - target) / worth
        torch.testing.assert_close(own.grad[:, 64:], expected, rtol=1e-3, atol=1e-6)
