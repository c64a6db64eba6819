"""Squared errors of what the head means."""

from __future__ import annotations

import math

import pytest


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def square(x, y):
    return (sigmoid(x) - sigmoid(y)) ** 2


def test_objectness_scaled_is_its_formula(loss_of, draw_prediction, draw_batch, gains, cells_of, believed):
    student, taught = draw_prediction(), draw_prediction()

    def box(cell):  # of 2 sigmoid(x) - 0.5 and of the root of the size over the anchor's
        return sum(4 * square(cell.mine[i], cell.theirs[i]) for i in range(4)) / 4

    def classes(mine, theirs):
        return sum(square(x, y) for x, y in zip(mine, theirs, strict=True)) / 3

    boxes, everywhere, labels = believed(cells_of(student, taught), box, square, classes)
    expected = 3 * (gains.box * boxes + gains.obj * everywhere + gains.cls * labels)
    assert loss_of("objectness_scaled")(student, taught, draw_batch()).item() == pytest.approx(expected, rel=1e-5)


def test_objectness_may_be_scaled_too(loss_of, draw_prediction, draw_batch, gains, cells_of, believed):
    student, taught = draw_prediction(), draw_prediction()

    def scaled(x, y):
        return sigmoid(y) * square(x, y)

    cells = cells_of(student, taught)
    _, plain, _ = believed(cells, lambda cell: 0.0, square, lambda mine, theirs: 0.0)
    _, less, _ = believed(cells, lambda cell: 0.0, scaled, lambda mine, theirs: 0.0)
    values = [
        loss_of("objectness_scaled", scale_objectness=chosen)(student, taught, draw_batch()).item()
        for chosen in (False, True)
    ]
    assert values[0] - values[1] == pytest.approx(3 * gains.obj * (plain - less), rel=1e-4)
