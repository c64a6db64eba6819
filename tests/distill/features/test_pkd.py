from __future__ import annotations

import math

import pytest
import torch

from distill.features.pkd import PearsonCorrelation


def correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    common = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return common / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def test_it_is_one_minus_the_correlation_of_channels():
    teacher = 3 * torch.randn(2, 4, 6, 5) + 2
    student = torch.randn(2, 4, 6, 5) + torch.tensor([0, 0.3, -0.3, 3])[:, None, None] * teacher
    channels = [[x[:, c].flatten().tolist() for c in range(4)] for x in (student, teacher)]
    correlations = [correlation(*sides) for sides in zip(*channels, strict=True)]
    assert max(correlations) > 0.9 and min(correlations) < 0
    expected = 1 - sum(correlations) / 4
    assert PearsonCorrelation()(student, teacher, None).item() == pytest.approx(expected, rel=1e-4)


def test_neither_strength_nor_zero_of_a_channel_matters():
    student, teacher, loss = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), PearsonCorrelation()
    value = loss(50 * student + 7, 0.1 * teacher - 30, None)
    torch.testing.assert_close(value, loss(student, teacher, None), rtol=1e-3, atol=1e-3)


def test_the_teacher_upside_down_is_the_worst_that_there_is():
    teacher = torch.randn(2, 4, 8, 8)
    assert PearsonCorrelation()(-teacher, teacher, None).item() == pytest.approx(2, rel=1e-4)


def test_a_channel_that_is_dead_on_both_sides_costs_nothing():
    student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    student[:, 0], teacher[:, 0] = 3, -2
    loss = PearsonCorrelation()
    torch.testing.assert_close(loss(student, teacher, None), 0.75 * loss(student[:, 1:], teacher[:, 1:], None))
