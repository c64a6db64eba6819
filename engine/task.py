"""What is trained is a task; the loop knows nothing else.

The contract, fulfilled by `DetectionTask` here and by `DistillationTask` in `distill/task.py`:

    task.model            the student; the only part that is validated, averaged (EMA) and saved as weights
    task(batch)           -> dict of weighted scalar terms, means per image, whose sum is minimised; the keys stay
                          the same through a run
    task.at(progress)     called before each step, pure in `progress` (so resume needs nothing)
    task.learners()       lists of parameters, each clipped by its own norm
    task.networks()       what is run in each step and may be compiled: the student, and whatever stands beside it
    task.after_step()     called after each step of the optimizer, for averages that follow the weights

Everything that learns is a submodule of the task, so that optimizer, DDP and checkpoint find it unasked. Which
parameters require a gradient may change in `at`, but only at the first step of an epoch: there the trainer wraps the
task for DDP anew.
"""

from __future__ import annotations

from torch import Tensor, nn

from utils.types import Batch, Progress


class DetectionTask(nn.Module):
    """A model and its detection loss."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def at(self, progress: Progress) -> None:
        """Passes it on to a criterion that changes over time."""
        follow = getattr(self.criterion, "at", None)
        if follow is not None:
            follow(progress)

    def learners(self) -> list[list[nn.Parameter]]:
        """The model alone learns."""
        return [list(self.parameters())]

    def networks(self) -> list[nn.Module]:
        """The model alone is run."""
        return [self.model]

    def after_step(self) -> None:
        """Nothing here follows the weights."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.criterion(self.model(batch.images), batch)
        return terms
