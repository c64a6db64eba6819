from __future__ import annotations

import math

import pytest
import torch

from distill.features.fsp import FlowOfSolution
from distill.pairs import FlowPair
from utils.types import FeatureInfo


def flow(fine, coarse, image):
    """By loops: the finer map by the greatest of 2 x 2, then mean over positions of the products of channels."""
    height, width = coarse.shape[2:]
    matrix = []
    for one in range(fine.shape[1]):
        row = []
        for two in range(coarse.shape[1]):
            total = 0.0
            for y in range(height):
                for x in range(width):
                    greatest = max(fine[image, one, 2 * y + i, 2 * x + j].item() for i in (0, 1) for j in (0, 1))
                    total += greatest * coarse[image, two, y, x].item()
            row.append(total / (height * width))
        matrix.append(row)
    return matrix


def sides(images=2):
    return [[torch.randn(images, 3, 8, 6), torch.randn(images, 2, 4, 3)] for _ in range(2)]


def test_it_is_the_mean_squared_difference_of_products_across_two_layers():
    students, teachers = sides()
    total = 0.0
    for image in range(2):
        own, shown = flow(*students, image), flow(*teachers, image)
        total += sum((own[i][j] - shown[i][j]) ** 2 for i in range(3) for j in range(2))
    assert FlowOfSolution()(students, teachers, None).item() == pytest.approx(total / (2 * 3 * 2), rel=1e-5)


def test_layers_of_one_grid_are_taken_as_they_are():
    students, teachers = ([torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)] for _ in range(2))
    own, shown = (torch.einsum("bihw,bjhw->bij", *maps) / 16 for maps in (students, teachers))
    torch.testing.assert_close(FlowOfSolution()(students, teachers, None), (own - shown).square().mean())


def test_equal_maps_cost_nothing_and_a_batch_twice_costs_the_same():
    students, teachers = sides()
    loss = FlowOfSolution()
    assert loss(students, [x.clone() for x in students], None).item() == 0
    twice = [[x.repeat(2, 1, 1, 1) for x in maps] for maps in (students, teachers)]
    torch.testing.assert_close(loss(*twice, None), loss(students, teachers, None))


def pair_of(c_students=(4, 5), c_teachers=(6, 3)):
    students = [FeatureInfo(17, c_students[0], 8), FeatureInfo(20, c_students[1], 16)]
    teachers = [FeatureInfo(3, c_teachers[0], 8), FeatureInfo(9, c_teachers[1], 16)]
    return FlowPair("fsp", students, teachers, FlowOfSolution())


@pytest.mark.parametrize("size", [0.0, 1.0, 6e4])
def test_it_is_finite_and_teaches_the_student_and_both_adapters_alone(size):
    students = [(size * torch.randn(2, 4, 8, 8)).requires_grad_(), (size * torch.randn(2, 5, 4, 4)).requires_grad_()]
    teachers = [(size * torch.randn(2, 6, 8, 8)).requires_grad_(), (size * torch.randn(2, 3, 4, 4)).requires_grad_()]
    pair = pair_of()
    value = pair(students, teachers, None)
    value.backward()
    learning = [*students, *pair.parameters()]
    assert math.isfinite(value.item())
    assert len(learning) == 4
    assert all(x.grad.isfinite().all() for x in learning)
    assert size != 1 or all(x.grad.abs().sum() > 0 for x in learning)
    assert all(x.grad is None for x in teachers)


def test_float32_inside_beside_a_half_precision_teacher():
    students, teachers = (
        [torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 4)],
        [torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 4)],
    )
    pair = pair_of(c_teachers=(4, 5))
    pair.adapters = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = pair([x.bfloat16() for x in students], [x.half() for x in teachers], None)
    full = pair([x.bfloat16().float() for x in students], [x.half().float() for x in teachers], None)
    assert half.dtype == torch.float32
    assert torch.equal(half, full)
