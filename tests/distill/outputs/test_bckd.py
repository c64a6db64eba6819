"""Scores as NMS sees them."""

from __future__ import annotations

import math

import pytest
import torch

from distill.outputs.view import joint_logit
from utils.errors import UserError
from utils.types import Prediction


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def scores(row):
    return [sigmoid(row[4]) * sigmoid(value) for value in row[5:]]


def entropy(q, p):
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


def slow_parts(cells, overlap_of, beta, iou):
    """Boxes, classes: sums over cells, over the sum of the teacher's highest scores."""
    boxes = labels = believed = 0.0
    for cell in cells:
        if max(sigmoid(cell.mine[4]), sigmoid(cell.theirs[4])) <= 0.01:
            continue
        pairs = list(zip(scores(cell.mine), scores(cell.theirs), strict=True))
        boxes += max(abs(p - q) for q, p in pairs) * (1 - overlap_of(cell, iou))
        labels += sum(abs(p - q) ** beta * entropy(q, p) for q, p in pairs) / len(pairs)
        believed += max(p for _, p in pairs)
    return boxes / believed, labels / believed


@pytest.mark.parametrize(
    ("beta", "box", "classes", "iou"),
    [(1.0, 4.0, 1.0, "giou"), (2.0, 0.0, 1.0, "giou"), (0.5, 1.0, 0.0, "iou"), (0.0, 2.0, 3.0, "ciou")],
)
def test_bckd_is_its_formula(beta, box, classes, iou, loss_of, draw_boxes, draw_batch, gains, cells_of, overlap_of):
    student, taught, batch = draw_boxes(), draw_boxes(), draw_batch()
    boxes, labels = slow_parts(cells_of(student, taught), overlap_of, beta, iou)
    loss = loss_of("bckd", beta=beta, box=box, classes=classes, iou=iou)
    expected = 3 * (box * gains.box * boxes + classes * gains.cls * labels)
    assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)
    if beta == 1:
        assert loss_of("bckd")(student, taught, batch) == loss(student, taught, batch)


def test_the_difference_of_scores_is_a_weight_and_not_learned(loss_of, draw_prediction, draw_batch, gains):
    student, taught = draw_prediction(), draw_prediction()
    learning = Prediction(tuple(level.clone().requires_grad_() for level in student.levels))
    loss_of("bckd", box=0)(learning, taught, draw_batch()).backward()

    naive = [level.double().requires_grad_() for level in student.levels]
    total = believed = 0.0
    for own, other in zip(naive, taught.levels, strict=True):
        q, p = (x[..., 4:5].sigmoid() * x[..., 5:].sigmoid() for x in (own, other.double()))
        matters = torch.maximum(own[..., 4], other[..., 4].double()).sigmoid() > 0.01
        entropy = -(p * q.log() + (1 - p) * (1 - q).log())
        total += ((p - q).abs().detach() * entropy).mean(-1)[matters].sum()
        believed += p.amax(-1)[matters].sum()
    (3 * gains.cls * total / believed).backward()
    for own, expected in zip(learning.levels, naive, strict=True):
        torch.testing.assert_close(own.grad.double(), expected.grad, rtol=1e-4, atol=1e-8)


def test_what_is_left_out_of_background_is_next_to_nothing(loss_of, draw_prediction, draw_batch, cells_of, gains):
    """Of background as trained heads see it: objectness about 1e-4, and the classes undecided."""
    student, taught = draw_prediction(), draw_prediction()
    for prediction in (student, taught):
        for level in prediction.levels:
            level[..., 4] = (level[..., 4] / 3 - 8).clamp(max=-5)
    for own, other in zip(student.levels, taught.levels, strict=True):
        own[:, :, 0, 0, 4], other[:, :, 0, 0, 4] = 0.0, 2.0  # an object or two
    cells = cells_of(student, taught)
    everything = 0.0
    for cell in cells:
        everything += sum(
            abs(p - q) * (entropy(q, p) - entropy(p, p))
            for q, p in zip(scores(cell.mine), scores(cell.theirs), strict=True)
        ) / 3  # fmt: skip
    kept = sum(
        abs(p - q) * (entropy(q, p) - entropy(p, p)) / 3
        for cell in cells
        if max(sigmoid(cell.mine[4]), sigmoid(cell.theirs[4])) > 0.01
        for q, p in zip(scores(cell.mine), scores(cell.theirs), strict=True)
    )
    assert 0.9999 * everything < kept < everything
    learning = Prediction(tuple(level.requires_grad_() for level in student.levels))
    loss_of("bckd")(learning, taught, draw_batch()).backward()
    assert sum((level.grad.abs().sum(-1) > 0).sum().item() for level in learning.levels) == 2 * 2 * 3


@pytest.mark.parametrize("objectness", [-80.0, -9.0, 0.0, 3.0, 40.0, 80.0])
@pytest.mark.parametrize("label", [-80.0, -2.0, 0.5, 40.0, 80.0])
def test_the_logit_of_a_score_is_right_where_its_parts_are_saturated(objectness, label):
    parts = [torch.tensor(value, requires_grad=True) for value in (objectness, label)]
    found = joint_logit(*parts)
    found.backward()
    # p / (1 - p), in numbers of 300 digits
    no_object, no_class = (math.exp(-value) for value in (objectness, label))
    odds = no_object + no_class + no_object * no_class
    assert found.item() == pytest.approx(-math.log(odds), rel=1e-6, abs=1e-6)
    slopes = [(no_object + no_object * no_class) / odds, (no_class + no_object * no_class) / odds]
    assert [part.grad.item() for part in parts] == pytest.approx(slopes, rel=1e-5)


def test_a_sure_and_wrong_student_is_pulled(loss_of, draw_prediction, draw_batch):
    student, taught = draw_prediction(), draw_prediction()
    for own, other in zip(student.levels, taught.levels, strict=True):
        own[..., 4:], other[..., 4:] = 30.0, -30.0  # 1 - sigmoid is 0 in float32
        own.requires_grad_()
    loss_of("bckd", box=0)(student, taught, draw_batch()).backward()
    assert all((level.grad[..., 4:] > 1e-4).all() for level in student.levels)


def test_the_score_of_a_single_class_is_objectness(loss_of, draw_prediction, draw_batch):
    """Of a teacher with one class, too: nothing trains its class logit."""
    student, taught, batch = draw_prediction(num_classes=1), draw_prediction(num_classes=1), draw_batch()
    sure = [Prediction(tuple(level.clone() for level in side.levels)) for side in (student, taught)]
    for prediction in sure:
        for level in prediction.levels:
            level[..., 5] = 100.0
    loss = loss_of("bckd", own=["cat"], other=["cat"])
    assert loss(student, taught, batch) == loss(*sure, batch)
    wide = draw_prediction(num_classes=2)
    loss = loss_of("bckd", own=["cat", "dog"], other=["cat"])
    assert loss(wide, taught, batch) == loss(wide, sure[1], batch)


def test_a_pull_of_nothing_is_refused(loss_of):
    with pytest.raises(UserError, match="'bckd': classes and box are both 0"):
        loss_of("bckd", classes=0, box=0)
    with pytest.raises(UserError, match="'bckd': beta: got -1, expected a number of at least 0"):
        loss_of("bckd", beta=-1)
