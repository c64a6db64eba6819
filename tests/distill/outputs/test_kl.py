"""KL of yes and no."""

from __future__ import annotations

import math

import pytest

from utils.errors import UserError
from utils.types import Prediction, Progress


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def divergence(x, y, temperature):
    q, p = sigmoid(x / temperature), sigmoid(y / temperature)
    return temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_its_formula(temperature, loss_of, draw_prediction, draw_batch, gains, cells_of, believed):
    student, taught, batch = draw_prediction(), draw_prediction(), draw_batch()

    def classes(mine, theirs):
        return sum(divergence(x, y, temperature) for x, y in zip(mine, theirs, strict=True)) / 3

    _, everywhere, labels = believed(
        cells_of(student, taught), lambda cell: 0, lambda x, y: divergence(x, y, temperature), classes
    )
    for factors in ((1.0, 1.0), (0.0, 1.0), (0.5, 0.0)):
        loss = loss_of("kl", temperature=temperature, objectness=factors[0], classes=factors[1])
        expected = 3 * (factors[0] * gains.obj * everywhere + factors[1] * gains.cls * labels)
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)


def test_kl_pulls_like_cross_entropy_with_the_teachers_probability(loss_of, draw_prediction, draw_batch, gains):
    student = Prediction(tuple(level.requires_grad_() for level in draw_prediction().levels))
    taught = draw_prediction()
    loss_of("kl")(student, taught, draw_batch()).backward()
    cells = sum(level[..., 4].numel() for level in student.levels)
    for own, other in zip(student.levels, taught.levels, strict=True):
        expected = 3 * gains.obj * (own[..., 4].sigmoid() - other[..., 4].sigmoid()) / cells
        assert own.grad[..., 4].sub(expected).abs().max() < 1e-7


def test_kl_cools_as_its_schedule_says(loss_of, draw_prediction, draw_batch):
    student, taught, batch = draw_prediction(), draw_prediction(), draw_batch()
    loss = loss_of("kl", temperature={"start": 3, "drop": 1, "every": 2, "least": 1})
    for epoch, temperature in ((0, 3.0), (3, 2.0), (50, 1.0)):
        loss.temperature.at(Progress(epoch, 0, 100, 10))
        assert loss(student, taught, batch) == loss_of("kl", temperature=temperature)(student, taught, batch)


def test_kl_of_nothing_is_refused(loss_of):
    with pytest.raises(UserError, match="leaves nothing to compare"):
        loss_of("kl", objectness=0, classes=0)


@pytest.mark.parametrize("name", ["kl", "softmax_kl", "decoupled"])
@pytest.mark.parametrize("temperature", [0, -1, "warm", True])
def test_a_temperature_is_a_positive_number(name, temperature, loss_of):
    with pytest.raises(UserError, match=f"output loss '{name}': temperature: got .* expected a number above 0"):
        loss_of(name, temperature=temperature)
