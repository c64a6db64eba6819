"""Exponential moving average of a model's weights: what is validated and saved."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn


class ModelEma:
    """A frozen copy that follows the model; parameters and batch statistics alike.

    The decay ramps up as decay * (1 - exp(-updates / ramp)), so that early weights are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = 2000) -> None:
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0

    def momentum(self) -> float:
        """Share of the average that stays in this update."""
        return self.decay * (1 - math.exp(-self.updates / self.ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average one step towards `model`."""
        self.updates += 1
        weight = 1 - self.momentum()
        own, other = self.model.state_dict(), model.state_dict()
        pairs = [(own[key], other[key]) for key in own]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], weight)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
