"""A student that learns from labels and from teachers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.balance import DynamicWeightAverage
from distill.course import Course, Shown, layers_of
from distill.schedule import Schedule
from distill.teacher import watch
from utils.errors import UserError
from utils.phases import Phase, stretch_at
from utils.types import Batch, Progress

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
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.courses = nn.ModuleList(courses)
        self.schedule = schedule
        self.balance = balance
        self.phases = tuple(phases)
        self.deepest_first = deepest_first
        self.detects = True  # whether the loss on labels counts in this epoch
        self._epoch: tuple[int, int] | None = None  # of how many, for which the active terms were chosen
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
        if self._epoch == (progress.epoch, progress.epochs):
            return
        self._epoch = (progress.epoch, progress.epochs)
        part = stretch_at(self.phases, *self._epoch)
        if part is not None and progress.epoch == part.start:
            log.info("phase %s: %s", part.phase.name or part.start + 1, ", ".join(part.phase.terms))
        self.detects, active = self.plan(progress)
        for course in self._courses():
            course.activate(active)

    def plan(self, progress: Progress) -> tuple[bool, set[str]]:
        """Whether the loss on labels counts in this epoch, and which imitation terms do.

        Raises:
            UserError: the run is too short for its phases, or for the epochs without a teacher.
        """
        part = stretch_at(self.phases, progress.epoch, progress.epochs)
        words = None if part is None else set(part.phase.terms)
        active: set[str] = set()
        for course in self._courses() if self.schedule.active(progress) else []:
            wanted = {name for name, own in course.kinds.items() if words is None or words & set(own)}
            active |= course.deepest(wanted) if progress.epoch < self.deepest_first else wanted
        return words is None or "detection" in words, active

    def check(self, epochs: int) -> None:
        """Looks through a run of so many epochs before it begins.

        Raises:
            UserError: as `plan`, or an epoch in which nothing would be trained.
        """
        ever: set[str] = set()
        for epoch in range(epochs):
            detects, active = self.plan(Progress(epoch, 0, epochs, 1))
            if not detects and not active:
                raise UserError(
                    f"epoch {epoch + 1} of {epochs} would train nothing: its phase leaves out the detection loss, and "
                    "no imitation term is active (see phases, off_epochs and deepest_first of the recipe)"
                )
            ever |= active
        if silent := [name for name in self.term_names if name not in ever]:
            log.warning("never active in these %d epochs: %s", epochs, ", ".join(silent))

    def learners(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients are clipped together: teachers that learn apart from all else."""
        apart = [list(course.guide.model.parameters()) for course in self._courses() if course.own_term is not None]
        theirs = {id(parameter) for group in apart for parameter in group}
        return [[parameter for parameter in self.parameters() if id(parameter) not in theirs], *apart]

    def networks(self) -> list[nn.Module]:
        """The student, and all guides."""
        return [self.model, *(network for course in self._courses() for network in course.guide.networks())]

    def after_step(self) -> None:
        """Averages follow what they average."""
        for course in self._courses():
            course.after_step(self.model)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms, float32 scalars; inactive ones are 0, and a teacher without an active one is not run."""
        courses = [course for course in self._courses() if course.active]
        shown = [course.show(batch) for course in courses]  # before the student, whose graph then takes the memory
        layers = layers_of(courses)
        prediction, found = watch(self.model, batch.images, layers)
        assert prediction is not None, "watched without leaving it out"
        maps = dict(zip(layers, found, strict=True))

        batch = _labelled(batch, courses, shown)
        detection = dict(self.criterion(prediction, batch))
        imitation: dict[str, Tensor] = {}
        for course, seen in zip(courses, shown, strict=True):
            imitation |= course(prediction, maps, seen, batch)
        if self.balance is not None and self.training:
            self.balance.observe(detection, {name: value.detach() for name, value in imitation.items()})
        if not self.detects:  # still in the graph: DDP wants a gradient, if only 0, for all that may have one
            detection = {name: 0 * value for name, value in detection.items()}
        own = {course.own_term: seen.loss for course, seen in zip(courses, shown, strict=True) if seen.loss is not None}
        theirs = {name: own.get(name, self._silence()) for name in self.own_terms}
        return detection | self._weighed(imitation) | theirs

    def _weighed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every imitation term, 0 where it is not found."""
        terms = {name: self._silence() for name in self.term_names}
        for name, value in found.items():
            balance = 1.0 if self.balance is None else self.balance.weight(name)
            terms[name] = self.schedule.weight * balance * value
        return terms

    @property
    def own_terms(self) -> list[str]:
        """Of the teachers that learn: the names of their own losses."""
        return [course.own_term for course in self._courses() if course.own_term is not None]

    def _silence(self) -> Tensor:
        return torch.zeros((), device=self.schedule.weight.device)

    def _courses(self) -> list[Course]:
        return list(self.courses)  # type: ignore[arg-type]


def _labelled(batch: Batch, courses: Sequence[Course], shown: Sequence[Shown]) -> Batch:
    """The batch, where images without labels have those that a teacher makes for them."""
    for course, seen in zip(courses, shown, strict=True):
        if course.labeller is not None and seen.prediction is not None:
            batch = course.labeller(batch, seen.prediction)
    return batch
