"""Cross-entropies and absolute differences, scaled by objectness."""

from __future__ import annotations

import math

import pytest


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def entropy(x, y):
    q, p = sigmoid(x), sigmoid(y)
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


def box(cell):
    sizes = [[2 * sigmoid(side[i]) for side in (cell.mine, cell.theirs)] for i in (2, 3)]
    return (sum(entropy(cell.mine[i], cell.theirs[i]) for i in (0, 1)) + sum(abs(a - b) for a, b in sizes)) / 4


def classes(mine, theirs):
    return sum(entropy(x, y) for x, y in zip(mine, theirs, strict=True)) / 3


def test_objectness_scaled_bce_is_its_formula(loss_of, draw_prediction, draw_batch, gains, cells_of, believed):
    student, taught = draw_prediction(), draw_prediction()
    boxes, everywhere, labels = believed(cells_of(student, taught), box, entropy, classes)
    expected = 3 * (gains.box * boxes + gains.obj * everywhere + gains.cls * labels)
    assert loss_of("objectness_scaled_bce")(student, taught, draw_batch()).item() == pytest.approx(expected, rel=1e-5)


def test_where_both_agree_it_is_the_entropy_of_the_teacher(
    loss_of, draw_prediction, draw_batch, gains, cells_of, believed
):
    taught = draw_prediction()

    def own(y):
        return entropy(y, y)

    boxes, everywhere, labels = believed(
        cells_of(taught, taught),
        lambda cell: (own(cell.theirs[0]) + own(cell.theirs[1])) / 4,
        lambda x, y: own(y),
        lambda mine, theirs: sum(map(own, theirs)) / 3,
    )
    expected = 3 * (gains.box * boxes + gains.obj * everywhere + gains.cls * labels)
    assert loss_of("objectness_scaled_bce")(taught, taught, draw_batch()).item() == pytest.approx(expected, rel=1e-5)
