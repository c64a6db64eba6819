"""Raw numbers beside raw numbers."""

from __future__ import annotations

import pytest


def test_logit_mse_is_the_mean_of_all_squared_differences(loss_of, draw_prediction, draw_batch, cells_of):
    student, taught = draw_prediction(), draw_prediction()
    squares = [
        (x - y) ** 2
        for cell in cells_of(student, taught)
        for x, y in zip(cell.mine, cell.theirs, strict=True)
    ]  # fmt: skip
    loss = loss_of("logit_mse")
    assert loss(student, taught, draw_batch()).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert loss.default_weight == 0.25


def test_only_classes_of_both_are_compared(loss_of, draw_prediction, draw_batch, cells_of):
    student, taught = draw_prediction(num_classes=2), draw_prediction(num_classes=2)
    for level in taught.levels:
        level[..., 5] = -50.0  # the teacher never sees what the student does not have
    squares = [
        (x - y) ** 2
        for cell in cells_of(student, taught)
        for x, y in zip(cell.mine[:5] + cell.mine[5:6], cell.theirs[:5] + cell.theirs[6:7], strict=True)
    ]
    loss = loss_of("logit_mse", own=["cat", "cat food"], other=["dog", "cat"])
    weighted = loss(student, taught, draw_batch()).item()
    assert 0 < weighted < sum(squares) / len(squares)  # the teacher does not know all classes
    for level in taught.levels:
        level[..., 4] = 50.0  # so sure that its word counts in full
    squares = [
        (x - y) ** 2
        for cell in cells_of(student, taught)
        for x, y in zip(cell.mine[:5] + cell.mine[5:6], cell.theirs[:5] + cell.theirs[6:7], strict=True)
    ]
    assert loss(student, taught, draw_batch()).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
