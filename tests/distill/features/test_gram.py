from __future__ import annotations

import pytest
import torch

from distill.features.gram import Gram


def gram(x, image):
    """By loops: mean over positions of the product of each two channels."""
    channels = [x[image, c].flatten().tolist() for c in range(x.shape[1])]
    return [[sum(a * b for a, b in zip(one, two, strict=True)) / len(one) for two in channels] for one in channels]


def test_it_is_the_mean_squared_difference_of_products_of_channels():
    student, teacher = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    total = 0.0
    for image in range(2):
        own, shown = gram(student, image), gram(teacher, image)
        total += sum((own[i][j] - shown[i][j]) ** 2 for i in range(3) for j in range(3))
    assert Gram()(student, teacher, None).item() == pytest.approx(total / (2 * 3 * 3), rel=1e-5)


def test_where_something_fires_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    moved = student.flatten(2)[:, :, torch.randperm(16)].unflatten(2, (4, 4))
    torch.testing.assert_close(Gram()(moved, teacher, None), Gram()(student, teacher, None))


def test_size_depends_neither_on_channels_nor_on_positions():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    once = Gram()(student, teacher, None)
    torch.testing.assert_close(Gram()(student.repeat(1, 1, 3, 2), teacher.repeat(1, 1, 3, 2), None), once)
    torch.testing.assert_close(Gram()(student.repeat(1, 4, 1, 1), teacher.repeat(1, 4, 1, 1), None), once)
