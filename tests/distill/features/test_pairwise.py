from __future__ import annotations

import math

import pytest
import torch

from distill.features.pairwise import PairwiseSimilarity
from utils.errors import UserError


def regions(x, image, grid):
    """Mean feature of each cell, by loops."""
    channels, height, width = x.shape[1:]
    found = []
    for i in range(grid):
        for j in range(grid):
            cell = x[
                image, :, i * height // grid : (i + 1) * height // grid, j * width // grid : (j + 1) * width // grid
            ]
            found.append([sum(cell[c].flatten().tolist()) / cell[c].numel() for c in range(channels)])
    return found


def cosine(a, b):
    lengths = [math.sqrt(sum(v * v for v in x)) for x in (a, b)]
    return sum(u * v for u, v in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def test_it_is_the_mean_squared_difference_of_cosines_between_regions():
    student, teacher = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 6, 6)
    total = 0.0
    for image in range(2):
        own, shown = regions(student, image, 3), regions(teacher, image, 3)
        for i in range(9):
            for j in range(9):
                total += (cosine(own[i], own[j]) - cosine(shown[i], shown[j])) ** 2
    value = PairwiseSimilarity(grid=3)(student, teacher, None)
    assert value.item() == pytest.approx(total / (2 * 9 * 9), rel=1e-5)


def test_maps_smaller_than_the_grid_are_compared_as_they_are():
    student, teacher = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(
        PairwiseSimilarity(grid=8)(student, teacher, None), PairwiseSimilarity(grid=6)(student, teacher, None)
    )


@pytest.mark.parametrize("grid", [0, 2.5, True, "fine"])
def test_the_grid_is_a_whole_number(grid):
    with pytest.raises(UserError, match=r"feature loss 'pairwise': grid: got .* expected a whole number above 0"):
        PairwiseSimilarity(grid=grid)
