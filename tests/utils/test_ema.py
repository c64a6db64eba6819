"""The average follows the model by the published rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from utils.ema import ModelEma


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def test_the_average_equals_a_slow_loop() -> None:
    model = net()
    ema = ModelEma(model, decay=0.9, ramp=5)
    slow = {key: value.clone() for key, value in model.state_dict().items()}
    for update in range(1, 6):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1)
        ema.update(model)
        keep = 0.9 * (1 - math.exp(-update / 5))
        for key, value in model.state_dict().items():
            slow[key] = keep * slow[key] + (1 - keep) * value if value.is_floating_point() else value
    for key, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, slow[key])


def test_the_average_neither_trains_nor_shares_memory() -> None:
    model = net()
    ema = ModelEma(model)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not ema.model.training
    assert ema.model[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_early_on_it_forgets_quickly() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = ModelEma(model)
    with torch.no_grad():
        model.weight.fill_(5)
    ema.update(model)
    assert ema.model.weight.item() == pytest.approx(5, abs=0.01)
