"""Guides that move: a teacher trained along with the student, and averages of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.teacher import Shown, watch
from utils.ema import ModelEma
from utils.types import Batch, Prediction


class _Mean(ModelEma):
    """At first the plain mean of all weights so far, so that it differs from the model from the first step on."""

    def momentum(self) -> float:
        return min(self.decay, 1 - 1 / (self.updates + 1))


class Average(nn.Module):
    """A guide: the exponential moving average of a model's weights, always in eval mode.

    As the teacher of the model that it follows this is self-distillation with a mean teacher. It is a submodule of
    whoever holds it, so that it is saved and resumed; it has no gradient, so that no optimizer moves it.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.

    Args:
        model: copied as it is now; followed by `follow`.
        decay: of the average; until it has seen 1 / (1 - decay) steps it is their plain mean, as in the paper.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        self._ema = (_Mean(model, decay),)
        self.model: Any = self._ema[0].model
        self.model.head.use("one_to_many")  # see `distill.course.Course`
        super().train(False)

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.model.head
        return head

    def networks(self) -> list[nn.Module]:
        """What is run in each step."""
        return [self]

    def follow(self, model: nn.Module) -> None:
        """One step towards `model`."""
        self._ema[0].update(model)

    def train(self, mode: bool = True) -> Average:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Average:
        """Never learns, whatever is asked."""
        return super().requires_grad_(False)

    def get_extra_state(self) -> int:
        return self._ema[0].updates

    def set_extra_state(self, state: int) -> None:
        self._ema[0].updates = state

    @torch.no_grad()
    def forward(self, images: Tensor, layers: Sequence[int] = (), want_prediction: bool = True) -> Shown:
        """The raw prediction and the outputs of `layers`, as `distill.teacher.Teacher`."""
        return watch(self.model, images, layers, want_prediction)


class OnlineTeacher(nn.Module):
    """A guide that learns with its own detection loss while it teaches; a submodule of the task.

    Args:
        model: it is this one that is trained, not a copy.
        criterion: its own detection loss.
        decay: of an average of its weights, which then guides in its stead; 0 for none.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, decay: float = 0.0) -> None:
        super().__init__()
        self.model: Any = model
        self.criterion = criterion
        self.average = Average(model, decay) if decay else None
        self._learners = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.model.head
        return head

    def networks(self) -> list[nn.Module]:
        """What is run in each step."""
        return [self.model] if self.average is None else [self.model, self.average]

    def learn(self, active: bool) -> None:
        """Whether it learns or rests; what has never asked for a gradient (the bins of DFL) does not in either case."""
        for parameter in self._learners:
            parameter.requires_grad_(active)

    def study(self, batch: Batch, layers: Sequence[int], want_prediction: bool) -> tuple[Tensor, Shown]:
        """Its own detection loss, and what it shows: of itself, or of its average."""
        prediction, maps = watch(self.model, batch.images, layers if self.average is None else ())
        assert prediction is not None, "watched without leaving it out"
        loss = torch.stack([term.float() for term in self.criterion(prediction, batch).values()]).sum()
        if self.average is not None:
            return loss, self.average(batch.images, layers, want_prediction)
        levels, aux = (tuple(level.detach() for level in part) for part in prediction)
        return loss, (Prediction(levels, aux), [x.detach() for x in maps])
