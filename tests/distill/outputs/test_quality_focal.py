"""Scores everywhere, boxes and distributions where an object is."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from tests.distill.heads import make_head, make_levels
from tests.distill.outputs.conftest import FREE_GAINS, answering, sigmoid
from utils.boxes import xywh_to_xyxy
from utils.errors import UserError


def rows_of(prediction, bins):
    """(B, N, 4, bins) softmaxes, (B, N, 3) class logits and (B, N, 4) xyxy in pixels."""
    flat = torch.cat([level.flatten(2) for level in prediction.levels], dim=2).transpose(1, 2).double()
    boxes = make_head({1: "direct", 8: "dfl", 12: "more bins"}[bins]).decode(prediction.levels)[..., :4]
    return flat[..., :-3].unflatten(-1, (4, bins)).softmax(-1), flat[..., -3:], xywh_to_xyxy(boxes.double())


def slow(student, taught, batch, beta, positives, bins=(8, 8)):
    """Sums of the three parts and the number of cells that answer for an object."""
    (own, mine, boxes), (other, theirs, others) = rows_of(student, bins[0]), rows_of(taught, bins[1])
    classes = overlap = spread = 0.0
    for image in range(len(mine)):
        for cell in range(mine.shape[1]):
            logits, wanted = mine[image, cell].tolist(), theirs[image, cell].tolist()
            if max(*logits, *wanted) > math.log(0.01 / 0.99):
                for x, y in zip(logits, wanted, strict=True):
                    p, t = sigmoid(x), sigmoid(y)
                    classes -= abs(p - t) ** beta * (t * math.log(p) + (1 - t) * math.log(1 - p)) / 3
            if positives[image, cell]:
                overlap += 1 - generalized_box_iou(boxes[image, cell, None], others[image, cell, None]).item()
                if bins[0] == bins[1]:
                    p, t = own[image, cell], other[image, cell]
                    spread += (t * (t.log() - p.log())).sum().item() / 4
    return classes, overlap, spread, int(positives.sum())


@pytest.mark.parametrize("beta", [2.0, 0.5])
@pytest.mark.parametrize("labelled", [(True, True), (True, False)])
def test_it_is_its_formula(beta, labelled, loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("dfl")
    batch = draw_batch()._replace(labelled=torch.tensor(labelled))
    positives = answering(student, taught, batch)
    assert positives[0].any() and positives[1].any()
    classes, boxes, spread, count = slow(student, taught, batch, beta, positives)
    for factors in ((1, 1, 1), (2, 0, 0), (0, 0.5, 0), (0, 0, 3)):
        loss = loss_between("quality_focal", beta=beta, classes=factors[0], box=factors[1], dfl=factors[2])
        gains = FREE_GAINS.cls * factors[0], FREE_GAINS.box * factors[1], FREE_GAINS.dfl * factors[2]
        expected = (gains[0] * classes + gains[1] * boxes + gains[2] * spread) / count
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)


def test_cells_are_those_of_the_recipes_detection_loss(loss_between, draw_batch):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), draw_batch()
    few = answering(student, taught, batch, topk=1)
    assert 0 < few.sum() < answering(student, taught, batch).sum()
    _, boxes, _, count = slow(student, taught, batch, 2.0, few)
    loss = loss_between("quality_focal", classes=0, dfl=0, tal_topk=1)
    assert loss(student, taught, batch).item() == pytest.approx(FREE_GAINS.box * boxes / count, rel=1e-4)


def test_cells_of_images_without_labels_are_those_where_the_teacher_is_sure(loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("dfl")
    batch = draw_batch()._replace(labelled=torch.tensor([False, False]))
    sure = answering(student, taught, batch, threshold=0.9)
    assert 0 < sure.sum() < answering(student, taught, batch).sum()
    _, boxes, _, count = slow(student, taught, batch, 2.0, sure)
    loss = loss_between("quality_focal", classes=0, dfl=0, threshold=0.9)
    assert loss(student, taught, batch).item() == pytest.approx(FREE_GAINS.box * boxes / count, rel=1e-4)


@pytest.mark.parametrize("teacher", ["more bins", "direct", "anchors"])
def test_without_equal_bins_distributions_are_left_out_and_the_log_says_so(teacher, loss_between, draw_batch, caplog):
    with caplog.at_level(logging.INFO):
        loss = loss_between("quality_focal", teacher=teacher)
    assert len(caplog.messages) == 1
    assert "output loss 'quality_focal': distributions of boxes are left out; they need" in caplog.text
    student, taught, batch = make_levels("dfl"), make_levels(teacher), draw_batch()
    assert loss(student, taught, batch) == loss_between("quality_focal", teacher=teacher, dfl=0)(student, taught, batch)
    if teacher != "anchors":
        positives = answering(student, taught, batch)
        classes, boxes, _, count = slow(student, taught, batch, 2.0, positives, (8, {"direct": 1}.get(teacher, 12)))
        expected = (FREE_GAINS.cls * classes + FREE_GAINS.box * boxes) / count
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)


def test_with_equal_bins_the_log_is_quiet(loss_between, caplog):
    with caplog.at_level(logging.INFO):
        loss_between("quality_focal")
    assert not caplog.messages


def test_the_boxes_of_an_unknown_class_count_as_much_as_the_teacher_believes(loss_between, draw_batch):
    """The student's class that the teacher does not know: what it says there is no proof."""
    student, taught, batch = make_levels("dfl", num_classes=4), make_levels("dfl"), draw_batch()
    for level in taught.levels:
        level[:, -3:] = -30.0
    for level in student.levels:
        level.requires_grad_()
    loss = loss_between("quality_focal", own=("cat", "dog", "bird", "helmet"))
    loss(student, taught, batch).backward()
    assert all(level.grad.abs().max() < 1e-6 for level in student.levels)


def test_options_are_checked(loss_between):
    for option, value, said in (
        ("beta", -1, "a number of at least 0"),
        ("iou", "niou", "did you mean"),
        ("threshold", 1.5, "a number from 0 to 1"),
        ("tal_topk", 0, "a whole number above 0"),
        ("small_objects", 1, "true or false"),
    ):
        with pytest.raises(UserError, match=f"output loss 'quality_focal': {option}: got .*{said}"):
            loss_between("quality_focal", **{option: value})
    with pytest.raises(UserError, match="'quality_focal': classes, box and dfl are all 0, which leaves nothing"):
        loss_between("quality_focal", teacher="direct", classes=0, box=0)
