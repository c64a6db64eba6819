from __future__ import annotations

import pytest
import torch

from distill.features.mgd import MaskedGeneration
from utils.errors import UserError


def convolved(x, convolution):
    """3x3 with zeros around, one number at a time; lists of (C, H, W)."""
    weight, bias = convolution.weight.tolist(), convolution.bias.tolist()
    height, width = len(x[0]), len(x[0][0])
    near = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]

    def at(plane, row, column):
        return plane[row][column] if 0 <= row < height and 0 <= column < width else 0.0

    return [
        [
            [
                bias[out]
                + sum(
                    at(plane, row + dr, column + dc) * weight[out][c][dr + 1][dc + 1]
                    for c, plane in enumerate(x)
                    for dr, dc in near
                )
                for column in range(width)
            ]
            for row in range(height)
        ]
        for out in range(len(bias))
    ]


def test_it_is_the_mean_squared_error_of_what_is_generated_from_the_positions_that_are_seen():
    student, teacher, loss = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5), MaskedGeneration(3, mask=0.4)
    torch.manual_seed(1)
    value = loss(student, teacher, None)
    torch.manual_seed(1)
    draws = torch.rand(2, 1, 6, 5)
    total = 0.0
    for image in range(2):
        seen = (student[image] * (draws[image] >= 0.4)).tolist()
        hidden = [[[max(0.0, v) for v in line] for line in plane] for plane in convolved(seen, loss.generate[0])]
        made = torch.tensor(convolved(hidden, loss.generate[2]))
        total += (made - teacher[image]).square().sum().item()
    assert value.item() == pytest.approx(total / teacher.numel(), rel=1e-4)


def shown(loss, images=2, size=64):
    """What the generating part gets of a map of ones."""
    got = []
    loss.generate[0].register_forward_hook(lambda module, inputs, output: got.append(inputs[0].detach()))
    loss(torch.ones(images, 4, size, size), torch.zeros(images, 4, size, size), None)
    return got[-1]


def test_a_position_is_hidden_in_all_channels_or_in_none():
    seen = shown(MaskedGeneration(4))
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("mask", [0.0, 0.3, 0.65])
def test_so_many_are_hidden_as_was_asked(mask):
    assert shown(MaskedGeneration(4, mask))[:, 0].mean().item() == pytest.approx(1 - mask, abs=0.03)


def test_each_step_hides_other_positions():
    loss = MaskedGeneration(4)
    assert not torch.equal(shown(loss), shown(loss))


def test_it_learns_to_generate_what_can_be_told_from_the_surroundings():
    torch.manual_seed(0)
    loss = MaskedGeneration(2, mask=0.3)
    columns = torch.linspace(-1, 1, 8).expand(1, 2, 8, 8)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    first = loss(columns, columns, None).item()
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(columns, columns, None)
        value.backward()
        optimizer.step()
    assert value.item() < 0.5 * first


@pytest.mark.parametrize("mask", [-0.1, 1.5, "most", True])
def test_the_mask_is_a_probability(mask):
    with pytest.raises(UserError, match="feature loss 'mgd': mask: got"):
        MaskedGeneration(4, mask)


def test_something_must_be_left_to_generate_from():
    with pytest.raises(UserError, match="mask 1 hides everything"):
        MaskedGeneration(4, 1)
