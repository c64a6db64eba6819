"""Exponential moving average of a model's weights: what is validated and saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


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
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [other for _, other in floats], weight)
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_([own for own, _ in counts], [other for _, other in counts])


def _state(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of `state_dict()`, as they are now: walked through at each step, since they may be replaced."""
    for module in model.modules():
        yield from (parameter for parameter in module._parameters.values() if parameter is not None)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer
