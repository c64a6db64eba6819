from __future__ import annotations

import pytest
import torch

from distill.weighing import Weighing, difficulty, emphasised
from utils.types import Prediction


def weighed(value, **options):
    x = torch.tensor(value, requires_grad=True)
    term = Weighing(**options)(x)
    term.backward()
    return term.item(), x.grad.item()


def test_weight_multiplies_value_and_gradient():
    assert weighed(2.0, weight=0.5) == (1.0, 0.5)


def test_clip_holds_large_terms_down_and_leaves_small_ones():
    assert weighed(4.0, weight=0.5, clip=1.0) == (1.0, 0.25)
    assert weighed(1.0, weight=0.5, clip=1.0) == (0.5, 0.5)
    assert weighed(0.0, clip=1.0) == (0.0, 1.0)


def test_gradient_gain_leaves_the_value():
    assert weighed(4.0, weight=0.5, gradient_gain=2.0) == (2.0, 1.0)
    assert weighed(4.0, clip=2.0, gradient_gain=3.0) == (2.0, 1.5)


def test_emphasis_multiplies_each_images_gradient_and_no_value():
    level = torch.randn(2, 3, 4, 4, 8, requires_grad=True)
    feature = torch.randn(2, 5, 4, 4, requires_grad=True)
    prediction, maps = emphasised(Prediction((level,)), {7: feature}, torch.tensor([0.5, 1.5]))
    assert torch.equal(prediction.levels[0], level)
    (prediction.levels[0].sum() + maps[7].square().sum()).backward()
    assert torch.equal(level.grad[0], torch.full_like(level.grad[0], 0.5))
    assert torch.equal(level.grad[1], torch.full_like(level.grad[1], 1.5))
    torch.testing.assert_close(feature.grad, 2 * feature.detach() * torch.tensor([0.5, 1.5])[:, None, None, None])


def test_images_on_which_both_disagree_are_hard():
    teacher = torch.full((3, 10), -8.0)
    teacher[:, :2] = 8.0
    student = teacher.clone()
    student[1, 0] = -8.0  # one object missed
    student[2, :2] = -8.0  # both missed
    weights = difficulty([student], [teacher], 1.0)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0].item() == pytest.approx(0, abs=1e-3)
    assert weights[2].item() == pytest.approx(2 * weights[1].item(), rel=1e-3)
    assert torch.equal(difficulty([student], [teacher], 0.0), torch.ones(3))


def test_the_number_of_objects_makes_no_image_hard():
    teacher = torch.full((2, 100), -9.0)
    teacher[0, :4] = teacher[1, :40] = 9.0
    student = teacher.clone()
    student[0, :2] = student[1, :20] = -9.0  # half of the objects missed on both
    torch.testing.assert_close(difficulty([student], [teacher], 1.0), torch.ones(2), rtol=1e-2, atol=0)


def test_agreement_everywhere_is_finite():
    level = torch.zeros(2, 5)
    assert difficulty([level], [level], 1.0).isfinite().all()
