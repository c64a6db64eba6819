"""Groups, the choice of an optimizer, and the numbers at any moment of a run."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from engine.optim import (
    FUSED,
    GROUPS,
    OPTIMIZERS,
    Recipe,
    Timetable,
    build_optimizer,
    choose,
    decay,
    decay_scale,
    fused_form,
    lay_out_alike,
    parameter_groups,
)
from utils.errors import UserError
from utils.hyp import Hyp
from utils.phases import Phase
from utils.types import Progress


def timetable(batch_size: int = 16, kind: str = "linear", **hyp: Any) -> Timetable:
    return Timetable(Recipe("SGD", 0.01, 0.937, 0.1), Hyp(lr0=0.01, **hyp), kind, batch_size)


def test_each_phase_decays_from_its_own_learning_rate() -> None:
    phases = (Phase(2, lr0=1e-3), Phase(4), Phase(2, lr0=1e-5))
    table = timetable(warmup_epochs=0, lrf=0.1, phases=phases)
    rates = [table.learning_rate(Progress(epoch, 0, 8, 5), "weights") for epoch in range(8)]
    of_four = [0.01 * (1 - 0.9 * epoch / 4) for epoch in range(4)]
    assert rates == pytest.approx([1e-3, 5.5e-4, *of_four, 1e-5, 5.5e-6])


def test_only_weights_of_layers_that_are_no_norm_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = {group["name"]: group for group in parameter_groups(module, 0.1)}
    assert [len(groups[name]["params"]) for name in GROUPS] == [2, 1, 3]
    assert [groups[name]["weight_decay"] for name in GROUPS] == [0.1, 0, 0]


def test_every_parameter_is_in_exactly_one_group() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False)))
    grouped = [id(p) for group in parameter_groups(module, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    optimizer = build_optimizer(module, Recipe(name, 0.01, 0.9, 0.1), 0.0)
    inputs = torch.randn(32, 4)
    losses = []
    for _ in range(30):
        loss = (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def curve(name: str, **plainly: bool) -> torch.Tensor:
    """Weights of a small net after ten steps; `plainly`, with an optimizer that goes through them one by one."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    module.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(module, Recipe(name, 0.01, 0.9, 0.1), 0.01)
    assert optimizer.param_groups[0]["fused"]
    if plainly:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group.update(plainly)
    for step in range(10):
        module[2].requires_grad_(step > 4)  # learns later than the rest
        optimizer.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_form_of_an_optimizer_makes_the_same_steps(name: str) -> None:
    torch.testing.assert_close(curve(name), curve(name, fused=False, foreach=False), rtol=1e-5, atol=1e-5)


def test_parameters_that_no_fused_kernel_takes_are_stepped_all_the_same() -> None:
    assert fused_form("SGD", nn.Linear(2, 2)) == {"fused": True}
    assert fused_form("SGD", nn.Linear(2, 2, device="meta")) == {}
    assert fused_form("RAdam", nn.Linear(2, 2)) == {}


def test_auto_takes_adamw_for_short_runs_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        recipe = choose("auto", Hyp(), iterations=260, num_classes=3)
    assert recipe == Recipe("AdamW", 0.001429, 0.9, 0.0)
    assert "AdamW" in caplog.text
    assert "260 iterations" in caplog.text


def test_auto_takes_sgd_for_long_runs() -> None:
    assert choose("auto", Hyp(), iterations=10_001, num_classes=3).name == "SGD"


def test_a_misspelt_optimizer_is_answered_with_the_right_one() -> None:
    with pytest.raises(UserError, match="did you mean 'AdamW'"):
        choose("AdamWW", Hyp(), 100, 3)


@pytest.mark.parametrize("kind", ["linear", "cosine", "poly"])
def test_the_learning_rate_falls_from_one_to_its_end(kind: str) -> None:
    values = [decay(kind, done / 20, 0.1) for done in range(21)]
    assert values[0] == pytest.approx(1)
    assert values[-1] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)


def test_cosine_is_halfway_in_the_middle() -> None:
    assert decay("cosine", 0.5, 0.2) == pytest.approx(0.6)


def test_biases_warm_up_from_above_and_weights_from_zero() -> None:
    start = Progress(0, 0, 100, 1000)
    table = timetable()
    assert table.learning_rate(start, "weights") == 0
    assert table.learning_rate(start, "biases") == pytest.approx(0.1)
    assert table.momentum(start) == pytest.approx(0.8)


def test_after_warm_up_every_group_has_the_decayed_rate() -> None:
    later = Progress(50, 0, 100, 1000)
    rates = [timetable(lrf=0.01).learning_rate(later, group) for group in GROUPS]
    assert rates == pytest.approx([0.01 * (1 - 0.5 * 0.99)] * 3)


def test_warm_up_lasts_at_least_a_hundred_iterations_unless_it_is_counted_in_iterations() -> None:
    progress = Progress(0, 0, 100, 10)
    assert timetable().warmup(progress) == 100
    assert timetable(warmup_epochs=0).warmup(progress) == 0
    assert timetable(warmup_iterations=7).warmup(progress) == 7


def test_accumulation_grows_to_the_nominal_batch() -> None:
    table = timetable(batch_size=16)
    assert table.accumulate(Progress(0, 0, 10, 1000)) == 1
    assert table.accumulate(Progress(9, 0, 10, 1000)) == 4


def test_a_recipe_may_step_with_every_batch() -> None:
    assert timetable(batch_size=16, nominal_batch=16).accumulate(Progress(9, 0, 10, 1000)) == 1


def test_large_batches_do_not_accumulate_and_decay_more() -> None:
    assert timetable(batch_size=128).accumulate(Progress(9, 0, 10, 1000)) == 1
    assert decay_scale(16, 64) == 1
    assert decay_scale(128, 64) == 2


def test_apply_writes_momentum_or_betas() -> None:
    progress = Progress(50, 0, 100, 1000)
    for name in ("SGD", "AdamW"):
        optimizer = build_optimizer(nn.Linear(2, 2), Recipe(name, 0.01, 0.937, 0.1), 0.0)
        timetable().apply(optimizer, progress)
        group = optimizer.param_groups[0]
        assert (group["momentum"] if name == "SGD" else group["betas"][0]) == pytest.approx(0.937)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_state_of_another_layout_is_brought_into_that_of_its_parameter(name: str) -> None:
    """PyTorch's fused kernels read it as it lies in memory, and say nothing."""

    def module(layout: torch.memory_format) -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3).to(memory_format=layout)

    def trained(one: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        one.zero_grad()
        one(images).square().sum().backward()
        optimizer.step()
        return one.weight.detach().clone()

    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    saved, plain = module(torch.channels_last), module(torch.contiguous_format)
    optimizers = [build_optimizer(one, Recipe(name, 1e-3, 0.9, 0.0), 0.0) for one in (saved, plain)]
    for _ in range(2):
        trained(saved, optimizers[0])
    plain.load_state_dict(saved.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    lay_out_alike(optimizers[1])
    torch.testing.assert_close(trained(plain, optimizers[1]), trained(saved, optimizers[0]))
