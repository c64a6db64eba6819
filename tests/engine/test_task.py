"""The contract of a task, for detection; `tests/distill/test_task.py` has it for distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.task import DetectionTask
from utils.types import Batch, Prediction, Progress


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 1)

    def forward(self, images: Tensor) -> Prediction:
        return Prediction((self.layer(images)[:, None].movedim(2, -1),))


class Criterion(nn.Module):
    def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        mean = prediction.levels[0].mean()
        return {"box": mean.square(), "obj": mean.abs() * batch.labelled.sum()}


def batch() -> Batch:
    return Batch(torch.rand(2, 3, 8, 8), torch.zeros(0, 6), torch.ones(2, dtype=torch.bool))


def test_terms_are_the_criterions_of_the_models_prediction() -> None:
    model, criterion = Model(), Criterion()
    task, images = DetectionTask(model, criterion), batch()
    assert task(images) == criterion(model(images.images), images)


def test_everything_that_learns_is_found_and_learns() -> None:
    task = DetectionTask(Model(), Criterion())
    sum(task(batch()).values()).backward()
    assert [name for name, value in task.named_parameters() if value.grad is not None] == [
        "model.layer.weight",
        "model.layer.bias",
    ]


def test_without_a_criterion_that_does_nothing_changes_over_time() -> None:
    task, images = DetectionTask(Model(), Criterion()), batch()
    before = task(images)
    task.at(Progress(3, 1, 10, 5))
    assert task(images) == before


def test_a_criterion_that_changes_over_time_hears_where_the_run_is() -> None:
    class Changing(Criterion):
        def at(self, progress: Progress) -> None:
            self.heard = progress

    task = DetectionTask(Model(), Changing())
    task.at(Progress(3, 1, 10, 5))
    assert task.criterion.heard == Progress(3, 1, 10, 5)
