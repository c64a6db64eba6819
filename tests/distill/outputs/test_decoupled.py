"""Classes, boxes and objectness, each in its own way."""

from __future__ import annotations

import math

import pytest

from utils.errors import UserError


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(row, temperature):
    heights = [math.exp(value / temperature) for value in row]
    return [height / sum(heights) for height in heights]


def slow_parts(cells, believed, overlap_of, temperature=3.0, iou="ciou", gamma=2.0, alpha=0.25):
    def classes(mine, theirs):
        pairs = zip(softmax(mine, temperature), softmax(theirs, temperature), strict=True)
        return temperature**2 * sum(p * math.log(p / q) for q, p in pairs) / 3

    def objectness(x, y):
        q, p = sigmoid(x), sigmoid(y)
        entropy = -p * math.log(q) - (1 - p) * math.log(1 - q)
        return (alpha * p + (1 - alpha) * (1 - p)) * abs(p - q) ** gamma * entropy

    return believed(cells, lambda cell: 1 - overlap_of(cell, iou), objectness, classes)


@pytest.mark.parametrize(
    "options",
    [{}, {"iou": "giou"}, {"temperature": 1.0, "gamma": 1.5}, {"iou": "iou", "alpha": 0.9}, {"iou": "diou"}],
)
def test_decoupled_is_its_formula(options, loss_of, draw_boxes, draw_batch, gains, cells_of, believed, overlap_of):
    student, taught, batch = draw_boxes(), draw_boxes(), draw_batch()
    boxes, everywhere, labels = slow_parts(cells_of(student, taught), believed, overlap_of, **options)
    for box, objectness, classes in ((0.5, 0.3, 1.0), (0.0, 2.0, 0.0), (1.0, 0.0, 0.5)):
        chosen = {"box": box, "objectness": objectness, "classes": classes}
        loss = loss_of("decoupled", **options, **chosen)
        expected = 3 * (box * gains.box * boxes + objectness * gains.obj * everywhere + classes * gains.cls * labels)
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)
        if chosen == {"box": 0.5, "objectness": 0.3, "classes": 1.0}:
            assert loss_of("decoupled", **options)(student, taught, batch) == loss(student, taught, batch)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_objectness_vanishes_where_both_agree(gamma, loss_of, draw_prediction, draw_batch):
    student, taught = draw_prediction(), draw_prediction()
    for own, other in zip(student.levels, taught.levels, strict=True):
        own[..., 4] = other[..., 4]
        own.requires_grad_()
    value = loss_of("decoupled", gamma=gamma, classes=0, box=0)(student, taught, draw_batch())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert all(level.grad.abs().max() < 1e-7 for level in student.levels)


def test_a_mismatch_of_nothing_is_refused(loss_of):
    with pytest.raises(UserError, match="'decoupled': classes, box and objectness are all 0"):
        loss_of("decoupled", classes=0, box=0, objectness=0)
    with pytest.raises(UserError, match="'decoupled': alpha: got 25, expected a number from 0 to 1"):
        loss_of("decoupled", alpha=25)
