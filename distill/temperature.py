"""A temperature that may fall over a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.options import not_negative, positive
from utils.errors import UserError, nearest
from utils.types import Progress

_KEYS = ("start", "drop", "every", "least")


class Temperature(nn.Module):
    """What both sides' logits are divided by, a number or `{start: 5, drop: 1, every: 10, least: 1}`.

    The mapping starts at `start` and falls by `drop` each `every` epochs, not below `least`. `at` writes the value into
    a buffer that is not saved: it depends on the progress alone, so a resumed run has it again at its first step.

    Args:
        where: what an error starts with, such as "output loss 'kl'".

    Raises:
        UserError: neither a number above 0 nor such a mapping.
    """

    value: Tensor

    def __init__(self, where: str, option: Any) -> None:
        super().__init__()
        self.start, self.drop, self.every, self.least = _read(f"{where}: temperature", option)
        self.register_buffer("value", torch.tensor(self.start), persistent=False)

    def at(self, progress: Progress) -> None:
        self.value.fill_(max(self.least, self.start - self.drop * int(progress.epoch // self.every)))

    def soften(self, x: Tensor) -> Tensor:
        """Float32 logits, divided."""
        return x.float() / self.value


def _read(where: str, option: Any) -> tuple[float, float, float, float]:
    if not isinstance(option, Mapping):
        value = positive(where, option)
        return value, 0.0, 1.0, value
    for key in option:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), _KEYS) or ';'} known: {', '.join(_KEYS)}")
    start = positive(f"{where}: start", option.get("start", 5))
    drop = not_negative(f"{where}: drop", option.get("drop", 1))
    every = positive(f"{where}: every", option.get("every", 10))
    least = positive(f"{where}: least", option.get("least", 1))
    if least > start:
        raise UserError(f"{where}: least {least:g} is above start {start:g}")
    return start, drop, every, least
