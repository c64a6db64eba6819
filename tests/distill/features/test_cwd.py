from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.features import cwd
from distill.features.base import FeatureLoss, standardise
from distill.features.cwd import ChannelWiseDistillation


def maps(*size):
    return 2 * torch.randn(size or (2, 4, 8, 6))


def divergence(student, teacher, temperature):
    """By torch's own parts."""
    student, teacher = (x.flatten(2) / temperature for x in (student, teacher))
    value = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), reduction="sum", log_target=True)
    return temperature**2 * value / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_divergence_of_each_channels_distribution(temperature):
    student, teacher = maps(), maps()
    total = 0.0
    for image in range(2):
        for channel in range(4):
            heights = [
                [math.exp(v / temperature) for v in x[image, channel].flatten().tolist()] for x in (student, teacher)
            ]
            q, p = ([h / sum(side) for h in side] for side in heights)
            total += sum(p_i * math.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True))
    loss = ChannelWiseDistillation(temperature)
    assert loss(student, teacher, None).item() == pytest.approx(temperature**2 * total / (2 * 4), rel=1e-5)


def test_it_does_not_care_how_strongly_a_channel_fires():
    student, teacher = maps(), maps()
    loss = ChannelWiseDistillation()
    torch.testing.assert_close(loss(student + 5, teacher - 3, None), loss(student, teacher, None))


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("cached", [1, 500, 1 << 18])  # one image at a time, some, all
def test_value_and_gradient_are_those_of_torchs_softmax_and_batch_norm(standardised, temperature, cached, monkeypatch):
    monkeypatch.setattr(cwd, "CACHED", cached)
    # far from 0, of unequal size
    student = (maps(5, 4, 8, 6) * torch.tensor([0.1, 1, 10, 3])[:, None, None] + 7).requires_grad_()
    teacher = 5 * maps(5, 4, 8, 6) - 3
    if standardised:
        value = ChannelWiseDistillation(temperature).standardised(student, teacher, None)
        expected = divergence(*(F.batch_norm(x, None, None, training=True) for x in (student, teacher)), temperature)
    else:
        value = ChannelWiseDistillation(temperature)(student, teacher, None)
        expected = divergence(student, teacher, temperature)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    gradient, other = (torch.autograd.grad(3 * x, student)[0] for x in (value, expected))
    for channel in range(4):  # each at its own scale
        size = other[:, channel].abs().max().item()
        torch.testing.assert_close(gradient[:, channel], other[:, channel], rtol=1e-4, atol=2e-5 * size)


def test_standardising_on_the_way_is_standardising_before():
    student, teacher, loss = maps().requires_grad_(), maps(), ChannelWiseDistillation()
    values = loss.standardised(student, teacher, None), FeatureLoss.standardised(loss, student, teacher, None)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_that_of_small_steps():
    student, teacher, loss = maps(2, 2, 3, 3), maps(2, 2, 3, 3), ChannelWiseDistillation()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss.standardised(student, teacher, None), student)
    step = torch.randn_like(student)
    ahead, behind = (
        divergence(standardise(student + sign * 1e-2 * step), standardise(teacher), 1.0) for sign in (1, -1)
    )
    assert ((ahead - behind) / 2e-2).item() == pytest.approx((gradient * step).sum().item(), rel=1e-2, abs=1e-4)


def test_peaks_that_no_power_can_hold_are_finite():
    student, teacher = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    student[0, 0, 0, 0], teacher[0, 0, 7, 7] = 3e4, -3e4
    student.requires_grad_()
    value = ChannelWiseDistillation(0.1)(student, teacher, None)
    value.backward()
    assert math.isfinite(value.item())
    assert student.grad.isfinite().all()


def test_the_temperature_may_fall():
    student, teacher = maps(), maps()
    loss = ChannelWiseDistillation({"start": 4, "drop": 2, "every": 1, "least": 1})
    before = loss(student, teacher, None)
    loss.temperature.value.fill_(1.0)
    torch.testing.assert_close(before, ChannelWiseDistillation(4.0)(student, teacher, None))
    torch.testing.assert_close(loss(student, teacher, None), ChannelWiseDistillation(1.0)(student, teacher, None))
