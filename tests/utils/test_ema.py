"""The average follows the model by the published rule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.families import read_spec
from models.yolo import Model
from utils.ema import ModelEma, _state


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


def test_what_is_averaged_is_what_is_saved() -> None:
    model = Model(read_spec("yolov5p"), 2)
    ema = ModelEma(model)
    averaged = {tensor.data_ptr() for tensor in _state(ema.model)}
    assert averaged == {tensor.data_ptr() for tensor in ema.model.state_dict().values()}


def test_a_tensor_that_is_replaced_is_followed() -> None:
    model = net()
    ema = ModelEma(model, decay=0.0)
    ema.update(model)
    model[0].weight = nn.Parameter(torch.full((3, 3), 5.0))
    model[1].register_buffer("running_mean", torch.full((3,), 7.0))
    ema.update(model)
    assert torch.equal(ema.model[0].weight, model[0].weight)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
