"""A student that learns from labels and from teachers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distill.balance import DynamicWeightAverage
from distill.course import Course, Shown, layers_of
from distill.guides import run
from distill.schedule import Schedule
from utils.phases import Phase, stretch_at
from utils.types import Batch, Prediction, Progress

log = logging.getLogger(__name__)


class DistillationTask(nn.Module):
    """Detection loss plus imitation terms; fulfils the contract of `engine/task.py`.

    Student, criterion, adapters, losses and teachers that move are submodules, so that whatever learns is optimised,
    synchronised and resumed. A frozen teacher is not (`Course`).

    Args:
        courses: one a teacher.
        schedule: multiplies every imitation term.
        balance: multiplies each by a weight of its own, which it finds itself.
        phases: the parts of the run, each with its own terms.
        deepest_first: epochs at the start in which of all feature pairs only the deepest counts.
        pseudo_labels: the first teacher's confident boxes, as labels of images that have none.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        courses: Sequence[Course],
        schedule: Schedule,
        balance: DynamicWeightAverage | None = None,
        phases: Sequence[Phase] = (),
        deepest_first: int = 0,
        pseudo_labels: Callable[[Batch, Prediction], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.courses = nn.ModuleList(courses)
        self.schedule = schedule
        self.balance = balance
        self.phases = tuple(phases)
        self.deepest_first = deepest_first
        self.pseudo_labels = pseudo_labels
        self.detects = True  # whether the loss on labels counts in this epoch
        self._active: frozenset[str] = frozenset(self.term_names)
        # whatever changes over time: schedule, temperatures, balance, criteria
        self._clocked = tuple(m for m in self.modules() if m is not self and callable(getattr(m, "at", None)))

    @property
    def term_names(self) -> tuple[str, ...]:
        """Of the imitation terms, in the order in which they follow the detection loss's."""
        return tuple(name for course in self._courses() for name in course.term_names)

    def at(self, progress: Progress) -> None:
        """Sets weights, temperatures and the active terms of this moment."""
        for module in self._clocked:
            module.at(progress)  # type: ignore[operator]
        part = stretch_at(self.phases, progress.epoch, progress.epochs)
        if part is not None and progress.epoch == part.start and progress.step == 0:
            log.info("phase %s: %s", part.phase.name or part.start + 1, ", ".join(part.phase.terms))
        wanted = None if part is None else part.phase.terms
        self.detects = wanted is None or "detection" in wanted
        active = frozenset(name for name in self.term_names if self.schedule.active(progress))
        for course in self._courses():
            late = {name for name in course.term_names if not course.deepest(name)}
            if progress.epoch < self.deepest_first:
                active -= late
            if wanted is not None:
                active -= {name for name, words in course.kinds.items() if not set(words) & set(wanted)}
        if active != self._active:
            self._active = active
            for course in self._courses():
                course.activate(active)

    def after_step(self) -> None:
        """Averages follow what they average."""
        for course in self._courses():
            course.after_step(self.model)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms, float32 scalars; inactive ones are 0, and a teacher without an active one is not run."""
        courses = [course for course in self._courses() if course.active]
        shown = [course.show(batch) for course in courses]  # before the student, whose graph then takes the memory
        layers = layers_of(courses)
        prediction, found = run(self.model, batch.images, layers)
        maps = dict(zip(layers, found, strict=True))

        detection = dict(self.criterion(prediction, self._labelled(batch, shown)))
        imitation: dict[str, Tensor] = {}
        for course, seen in zip(courses, shown, strict=True):
            imitation |= course(prediction, maps, seen, batch)
        if self.balance is not None and self.training:
            self.balance.observe(detection, {name: value.detach() for name, value in imitation.items()})
        if not self.detects:  # still in the graph: DDP wants a gradient, if only 0, for all that may have one
            detection = {name: 0 * value for name, value in detection.items()}
        own = {course.own_term: seen.loss for course, seen in zip(courses, shown, strict=True) if seen.loss is not None}
        return detection | self._weighed(imitation) | self._own_terms(own)

    def _weighed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every imitation term, 0 where it is not found."""
        terms = {name: self._silence() for name in self.term_names}
        for name, value in found.items():
            balance = 1.0 if self.balance is None else self.balance.weight(name)
            terms[name] = self.schedule.weight * balance * value
        return terms

    def _own_terms(self, found: dict[str | None, Tensor]) -> dict[str, Tensor]:
        names = [course.own_term for course in self._courses() if course.own_term is not None]
        return {name: found.get(name, self._silence()) for name in names}

    def _silence(self) -> Tensor:
        return torch.zeros((), device=self.schedule.weight.device)

    def _labelled(self, batch: Batch, shown: Sequence[Shown]) -> Batch:
        """The batch, with the first teacher's confident boxes where it has no labels."""
        if self.pseudo_labels is None or not shown or shown[0].prediction is None:
            return batch
        return self.pseudo_labels(batch, shown[0].prediction)

    def _courses(self) -> list[Course]:
        return list(self.courses)  # type: ignore[arg-type]
