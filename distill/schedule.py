"""How strongly the teacher is heard over a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.registry import find
from utils.types import Progress

# share of the way from 1 to `end`, as a function of the share of the run (or epoch) that is done
SHAPES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "constant": lambda done: 0.0,
        "linear": lambda done: done,
        "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
    }
)


class Schedule(nn.Module):
    """A weight that goes from 1 to `end` over the run; off in the last `off_epochs` epochs.

    `at` writes it into the buffer `weight`, which is not saved: it depends on the progress alone, so a resumed run
    has it again at its first step.

    Args:
        kind: constant (always 1, whatever `end` says), linear or cosine.
        end: the weight at the end of the way.
        within: "run", or "epoch": each epoch walks the whole way again.
        warmup_epochs: in which the weight also rises from 0, linearly.
        off_epochs: epochs at the end without a teacher. The way to `end` is still as long as the whole run.
    """

    weight: Tensor

    def __init__(
        self,
        kind: str = "constant",
        end: float = 0.1,
        off_epochs: int = 0,
        within: str = "run",
        warmup_epochs: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = find("schedule", kind, SHAPES)
        self.end = end
        self.off_epochs = off_epochs
        self.within = within
        self.warmup_epochs = warmup_epochs
        self.register_buffer("weight", torch.ones(()), persistent=False)

    def value(self, progress: Progress) -> float:
        """The weight at one step, 0 where the teacher is off."""
        if not self.active(progress):
            return 0.0
        way = progress.fraction
        if self.within == "epoch":  # the last step of an epoch is at its end, so that `end` is reached
            way = progress.step / max(1, progress.steps_per_epoch - 1)
        return self._warmth(progress) * (1 + (self.end - 1) * self.shape(way))

    def _warmth(self, progress: Progress) -> float:
        length = self.warmup_epochs * progress.steps_per_epoch
        return min(1.0, (progress.iteration + 1) / length) if length >= 1 else 1.0

    def active(self, progress: Progress) -> bool:
        """Whether the teacher is run at all; changes between epochs only.

        Raises:
            UserError: there is no epoch at all in which it is.
        """
        if self.off_epochs >= progress.epochs > 0:
            raise UserError(
                f"schedule: off_epochs {self.off_epochs} leaves none of the {progress.epochs} epochs to the teacher"
            )
        return progress.epoch < progress.epochs - self.off_epochs

    def at(self, progress: Progress) -> None:
        self.weight.fill_(self.value(progress))
