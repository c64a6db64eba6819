"""The recipe chooses the loss."""

from __future__ import annotations

import pytest

from losses.anchor import AnchorLoss
from losses.build import build_criterion
from losses.matching import IouMatcher, Matcher
from losses.ota import OtaLoss
from losses.tal import TaskAlignedLoss
from utils.hyp import Hyp


@pytest.mark.parametrize(("loss_ota", "kind"), [(0, AnchorLoss), (1, OtaLoss)])
def test_loss_ota_chooses_by_what_is_predicted(loss_ota, kind, head_with):
    loss = build_criterion(head_with(3), Hyp(loss_ota=loss_ota), (64, 96))
    assert type(loss) is kind
    assert loss.gains == AnchorLoss(head_with(3), Hyp(), (64, 96)).gains


@pytest.mark.parametrize(("assign", "kind", "ignored_above"), [("ratio", Matcher, 1.0), ("iou", IouMatcher, 0.6)])
def test_assign_chooses_the_matches(assign, kind, ignored_above, head_with):
    loss = build_criterion(head_with(3), Hyp(assign=assign, assign_iou=0.4, ignore_iou=0.6), (64, 96))
    assert type(loss.match) is kind
    assert loss.ignore_iou == ignored_above
    assert assign == "ratio" or loss.match.threshold == 0.4


@pytest.mark.parametrize("recipe", [{}, {"loss_ota": 1}, {"assign": "iou"}])
def test_without_anchors_there_is_one_loss(recipe, free_head_with):
    assert type(build_criterion(free_head_with(3), Hyp(**recipe), (64, 96))) is TaskAlignedLoss
