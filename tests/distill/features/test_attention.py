from __future__ import annotations

import math

import pytest
import torch

from distill.features.attention import AttentionTransfer


def attention(x):
    """Nested lists (C, H, W) -> where it fires, of length 1."""
    squares = [sum(v**2 for v in values) for values in zip(*([v for row in c for v in row] for c in x), strict=True)]
    length = math.sqrt(sum(v**2 for v in squares))
    return [v / length for v in squares]


def test_it_is_the_squared_distance_of_attention_maps_of_length_one():
    student, teacher = torch.randn(3, 2, 4, 5), torch.randn(3, 6, 4, 5)
    total = 0.0
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(attention(own), attention(other), strict=True))
    assert AttentionTransfer()(student, teacher, None).item() == pytest.approx(total / 3, rel=1e-5)


def test_strength_and_sign_do_not_matter():
    student, teacher, loss = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), AttentionTransfer()
    torch.testing.assert_close(loss(-20 * student, 0.1 * teacher, None), loss(student, teacher, None))


def test_maps_that_fire_at_different_places_are_as_far_apart_as_can_be():
    student, teacher = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    student[:, :, 2, 3], teacher[:, :, 5, 5] = 1, 7
    assert AttentionTransfer()(student, teacher, None).item() == pytest.approx(2)
