from __future__ import annotations

import math

import pytest
import torch

from distill.features.adaptive_attention import AdaptiveAttention


def with_mask(channels=4, spread=1.0):
    loss = AdaptiveAttention(channels)
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return loss


def position_errors(student, teacher):
    """(B, HW)"""
    return (student - teacher).square().mean(1).flatten(1)


def test_it_is_the_squared_error_under_a_mask_of_mean_one():
    student, teacher, loss = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), with_mask(3)
    weight, bias = loss.mask.weight[0].tolist(), loss.mask.bias.item()
    total = 0.0
    for image in range(2):
        masks, errors = [], []
        for place in range(20):
            own, other = (x[image].flatten(1)[:, place].tolist() for x in (student, teacher))
            logit = bias + sum(w * abs(a - b) for w, a, b in zip(weight, own, other, strict=True))
            masks.append(1 / (1 + math.exp(-logit)))
            errors.append([(a, b) for a, b in zip(own, other, strict=True)])
        mean = sum(masks) / len(masks)
        total += sum(
            (mask / mean * b - mask / mean * a) ** 2
            for mask, pairs in zip(masks, errors, strict=True)
            for a, b in pairs
        )
    assert loss(student, teacher, None).item() == pytest.approx(total / student.numel(), rel=1e-4)


def test_maps_that_differ_everywhere_by_as_much_cost_the_same_under_any_mask():
    teacher = torch.randn(2, 4, 8, 8)
    student = teacher + torch.tensor([0.5, -1, 2, 0])[:, None, None]
    for spread in (0.1, 1, 10):
        assert with_mask(spread=spread)(student, teacher, None).item() == pytest.approx(5.25 / 4, rel=1e-4)


def test_training_the_mask_alone_cannot_make_the_loss_vanish():
    torch.manual_seed(0)
    teacher, loss = torch.randn(2, 4, 8, 8), with_mask(spread=0.1)
    student = teacher + torch.rand(2, 1, 8, 8) * torch.randn(2, 4, 8, 8)  # nearer at some places
    errors = position_errors(student, teacher)
    harmonic = (1 / (1 / errors).mean(1)).mean().item()  # no mask of mean 1 gets below, and only 1 / error gets there
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(student, teacher, None)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]  # it did learn to look away
    assert min(values) > harmonic > errors.min().item() > 0


def test_the_bound_is_reached_by_a_mask_in_proportion_to_one_over_the_error():
    """So it is the bound, not just any number that happens to be lower."""
    errors = torch.rand(1, 64) + 0.1
    mask = (1 / errors) / (1 / errors).mean()
    assert (mask.square() * errors).mean().item() == pytest.approx(1 / (1 / errors).mean().item())


@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_a_saturated_sigmoid_is_still_a_mask_of_mean_one(bias):
    loss, student, teacher = AdaptiveAttention(4), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    torch.nn.init.zeros_(loss.mask.weight)
    torch.nn.init.constant_(loss.mask.bias, bias)
    expected = position_errors(student, teacher).mean()
    torch.testing.assert_close(loss(student, teacher, None), expected)


def test_the_student_cannot_steer_the_mask():
    student, teacher, loss = torch.randn(1, 4, 8, 8).requires_grad_(), torch.randn(1, 4, 8, 8), with_mask()
    loss(student, teacher, None).backward()
    difference = student.detach() - teacher
    logits = torch.nn.functional.conv2d(difference.abs(), loss.mask.weight[..., None, None], loss.mask.bias)
    mask = logits.sigmoid() / logits.sigmoid().mean()
    torch.testing.assert_close(student.grad, 2 * mask.square() * difference / difference.numel())
    assert loss.mask.weight.grad.abs().sum() > 0
