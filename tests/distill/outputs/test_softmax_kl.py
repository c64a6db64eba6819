"""The classic recipes: one softmax a cell."""

from __future__ import annotations

import math

import pytest
import torch

from distill.outputs.terms import softmax_divergence
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Prediction


def softmax(row, temperature):
    heights = [math.exp(value / temperature) for value in row]
    return [height / sum(heights) for height in heights]


def divergence(mine, theirs, temperature):
    pairs = zip(softmax(mine, temperature), softmax(theirs, temperature), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for q, p in pairs)


@pytest.mark.parametrize("temperature", [None, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.9])
@pytest.mark.parametrize(("channels", "first"), [("all", 0), ("classes", 5)])
def test_softmax_kl_is_its_formula(
    channels, first, threshold, temperature, loss_of, draw_prediction, draw_batch, cells_of
):
    student, taught = draw_prediction(), draw_prediction()
    values = [
        divergence(cell.mine[first:], cell.theirs[first:], temperature or 3.0)
        for cell in cells_of(student, taught)
        if 1 / (1 + math.exp(-cell.theirs[4])) >= threshold
    ]
    assert len(values) == 336 if not threshold else 0 < len(values) < 336
    options = {} if temperature is None else {"temperature": temperature}
    loss = loss_of("softmax_kl", channels=channels, threshold=threshold, **options)
    expected = sum(values) / len(values)
    assert loss(student, taught, draw_batch()).item() == pytest.approx(expected, rel=1e-5)


def test_by_default_it_compares_all_channels_of_all_cells(loss_of, draw_prediction, draw_batch):
    student, taught, batch = draw_prediction(), draw_prediction(), draw_batch()
    spelt = loss_of("softmax_kl", channels="all", threshold=0, temperature=3)
    assert loss_of("softmax_kl")(student, taught, batch) == spelt(student, taught, batch)


def test_where_no_cell_passes_the_threshold_it_is_zero_and_in_the_graph(loss_of, draw_prediction, draw_batch):
    student = Prediction(tuple(level.requires_grad_() for level in draw_prediction().levels))
    taught = Prediction(tuple(level - 100 for level in draw_prediction().levels))
    value = loss_of("softmax_kl", channels="classes", threshold=0.05)(student, taught, draw_batch())
    value.backward()
    assert value.item() == 0
    assert all(level.grad.abs().sum() == 0 for level in student.levels)


@pytest.mark.parametrize("classes", [2, 15, 16, 80])  # two ways to the same softmax
def test_long_and_short_rows_have_the_same_divergence(classes):
    student, teacher = 5 * torch.randn(4, classes), 5 * torch.randn(4, classes)
    found = softmax_divergence(student, teacher, Temperature("here", 2.0))
    expected = [divergence(mine, theirs, 2.0) for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("own", [["cat"], ["cat", "horse"]])
def test_the_softmax_of_one_class_is_refused(own, loss_of):
    with pytest.raises(UserError, match="only one in common; use channels: all, or the output loss 'kl'"):
        loss_of("softmax_kl", own=own, channels="classes")
    assert loss_of("softmax_kl", own=own, channels="all")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "some", True])
def test_a_threshold_is_a_probability(threshold, loss_of):
    with pytest.raises(UserError, match=r"'softmax_kl': threshold: got .* expected a number from 0 to 1"):
        loss_of("softmax_kl", threshold=threshold)
