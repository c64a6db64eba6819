from __future__ import annotations

import math

import pytest
import torch

from distill.features.mimic import Mimic


def test_it_is_the_mean_squared_difference_of_standardised_maps():
    student, teacher = 6 * torch.randn(2, 4, 6, 5) + 1, 2 * torch.randn(2, 4, 6, 5)
    total = 0.0
    for channel in range(4):
        sides = []
        for x in (student, teacher):
            values = x[:, channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            sides.append([(v - mean) / math.sqrt(variance + 1e-5) for v in values])
        total += sum((a - b) ** 2 for a, b in zip(*sides, strict=True))
    value = Mimic().standardised(student, teacher, None)
    assert value.item() == pytest.approx(total / student.numel(), rel=1e-4)
