"""MuSGD: directions of one length, and otherwise SGD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from engine.muon import MuSGD, is_matrix, orthogonalised, stretch


def conditioned(rows: int, columns: int) -> Tensor:
    """A matrix whose singular values run from 1 to 0.02."""
    rank = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(side, rank)).Q for side in (rows, columns))
    return left * torch.logspace(0, -1.7, rank) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 40), (40, 8), (64, 576)])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_every_direction_gets_about_the_same_length(rows: int, columns: int, scale: float) -> None:
    matrix = conditioned(rows, columns)
    found = orthogonalised(scale * matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    # the directions are those of the decomposition: in its bases, the result is diagonal
    inside = left.T @ found @ right.T
    assert (inside - inside.diag().diag()).abs().max() < 0.02


def test_a_matrix_of_zeros_has_no_direction() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_bfloat16_comes_out_as_it_came_in() -> None:
    matrix = conditioned(16, 24)
    found = orthogonalised(matrix.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - orthogonalised(matrix)).abs().max() < 0.1


def learner() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 2, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    loss = (model(images) - images[:, :2].roll(1, 3)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_without_the_directions_it_is_sgd_with_nesterov_momentum() -> None:
    own, reference = learner(), learner()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    ours = MuSGD(own.parameters(), muon=0.0, sgd=1.0, **options)
    theirs = torch.optim.SGD(reference.parameters(), nesterov=True, **options)
    for seed in range(5):
        assert step(own, ours, seed) == pytest.approx(step(reference, theirs, seed))
    for one, other in zip(own.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_norms_and_biases_make_the_steps_of_sgd() -> None:
    own, reference = learner(), learner()
    step(own, MuSGD(own.parameters(), lr=0.1, momentum=0.9), 0)
    step(reference, torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True), 0)
    for (name, one), other in zip(own.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other) == (one.ndim == 1), name


def test_the_step_of_a_convolution_is_the_formula() -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last)
    before, gradient = layer.weight.detach().clone(), torch.randn_like(layer.weight)
    layer.weight.grad = gradient
    MuSGD(layer.parameters(), lr=0.5, momentum=0.8, muon=0.3, sgd=0.7).step()
    update = 1.8 * gradient  # the first momentum is the gradient
    wanted = before - 0.5 * (0.7 * update + 0.3 * orthogonalised(update.reshape(6, 36)).view(6, 4, 3, 3))
    torch.testing.assert_close(layer.weight.detach(), wanted)


def test_single_rows_and_columns_are_no_matrices_and_tall_ones_move_farther() -> None:
    assert is_matrix(torch.zeros(2, 1, 3, 3)) and is_matrix(torch.zeros(2, 2))
    assert not any(map(is_matrix, (torch.zeros(5), torch.zeros(1, 8, 1, 1), torch.zeros(8, 1))))
    assert (stretch(torch.zeros(4, 8)), stretch(torch.zeros(32, 8))) == (1.0, 2.0)


def test_it_trains() -> None:
    model = learner()
    optimizer = MuSGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = [step(model, optimizer, seed % 4) for seed in range(60)]
    assert losses[-1] < 0.5 * losses[0]


def test_it_goes_on_where_it_stopped() -> None:
    model = learner()
    optimizer = MuSGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    step(model, optimizer, 0)
    again = copy.deepcopy(model)
    resumed = MuSGD(again.parameters(), lr=1.0, momentum=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        assert step(model, optimizer, seed) == step(again, resumed, seed)


def test_parameters_in_bfloat16_and_without_gradient() -> None:
    model = learner().bfloat16()
    model[3].requires_grad_(False)
    before = model[0].weight.detach().clone()
    optimizer = MuSGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 6, 6).bfloat16()).float().square().mean().backward()
    optimizer.step()
    assert model[0].weight.isfinite().all() and not torch.equal(model[0].weight, before)


def test_a_closure_is_computed_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = MuSGD([weight], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert (weight < 1).all()
