from __future__ import annotations

import pytest
import torch

from distill.features.pointwise import L1, L2


def differences(student, teacher):
    return [a - b for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]


def test_l1_is_the_mean_absolute_difference():
    student, teacher = torch.randn(2, 4, 6, 5), 3 * torch.randn(2, 4, 6, 5)
    expected = sum(abs(d) for d in differences(student, teacher)) / student.numel()
    assert L1()(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)


def test_l2_is_the_mean_squared_difference():
    student, teacher = torch.randn(2, 4, 6, 5), 3 * torch.randn(2, 4, 6, 5)
    expected = sum(d**2 for d in differences(student, teacher)) / student.numel()
    assert L2()(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)
