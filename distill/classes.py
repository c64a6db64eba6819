"""Which class of the teacher is which of the student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from utils.classes import listed, same_classes
from utils.errors import UserError

log = logging.getLogger(__name__)


class ClassMap(NamedTuple):
    """Student class `student[k]` is teacher class `teacher[k]`; only these are taught."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    num_student: int
    num_teacher: int

    @property
    def identical(self) -> bool:
        """Both lists are the same, in the same order."""
        return self.student == self.teacher == tuple(range(self.num_student)) and self.num_teacher == self.num_student

    @property
    def teaches_all(self) -> bool:
        """Every class of the student is known to the teacher."""
        return len(set(self.student)) == self.num_student

    @property
    def learns_all(self) -> bool:
        """Every class of the teacher is one of the student's."""
        return len(set(self.teacher)) == self.num_teacher


def match_classes(
    student: Sequence[str] | None, teacher: Sequence[str] | None, num_student: int, num_teacher: int
) -> ClassMap:
    """Classes by name; by index where a side has no names and the counts are equal.

    Args:
        student, teacher: the names, None where they are not known (numbers made up in their place do not count).

    Raises:
        UserError: nothing to go by, or no class in common.
    """
    if student is None or teacher is None:
        return _by_index(student, teacher, num_student, num_teacher)
    shared = same_classes(student, teacher)
    if not shared:
        raise UserError(
            f"no class of the teacher ({listed(teacher)}) is one of the student's ({listed(student)}); "
            "use features only (--d_feature with outputs: {} in the hyp file), or name the same things alike"
        )
    own, others = zip(*shared, strict=True)
    classes = ClassMap(own, others, num_student, num_teacher)
    _report(classes, student, teacher)
    return classes


def _by_index(
    student: Sequence[str] | None, teacher: Sequence[str] | None, num_student: int, num_teacher: int
) -> ClassMap:
    sides = [side for side, names in (("student", student), ("teacher", teacher)) if names is None]
    if num_student != num_teacher:
        raise UserError(
            f"the student has {num_student} classes and the teacher {num_teacher}, and the {' and the '.join(sides)} "
            "has no class names to map them by; use a checkpoint that holds its names, or features only "
            "(--d_feature with outputs: {} in the hyp file)"
        )
    log.info("no class names in the %s: its %d classes are taken in order", " and the ".join(sides), num_student)
    indices = tuple(range(num_student))
    return ClassMap(indices, indices, num_student, num_teacher)


def _report(classes: ClassMap, student: Sequence[str], teacher: Sequence[str]) -> None:
    """Says who learns what from whom, unless the lists are the same."""
    if list(student) == list(teacher):
        return
    untaught = [name for index, name in enumerate(student) if index not in classes.student]
    ignored = [name for index, name in enumerate(teacher) if index not in classes.teacher]
    taught = [
        f"{teacher[other]} -> {student[own]}" for own, other in zip(classes.student, classes.teacher, strict=True)
    ]
    log.info(
        "%d of %d teacher classes are the student's%s",
        len(set(classes.teacher)),
        classes.num_teacher,
        f"; not taught: {listed(untaught)}" if untaught else "",
    )
    log.info("teacher classes taught: %s%s", listed(taught), f"; ignored: {listed(ignored)}" if ignored else "")
