"""Which level of the student belongs to which of the teacher: those of one stride."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from utils.errors import UserError

log = logging.getLogger(__name__)


def by_stride(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    """Positions in both lists that have one stride, in the student's order; the rest is left out.

    Raises:
        UserError: no stride is common to both.
    """
    pairs = [(place, teacher.index(stride)) for place, stride in enumerate(student) if stride in teacher]
    if not pairs:
        raise UserError(
            f"student and teacher have no level of one stride: student {listed(student)}, teacher {listed(teacher)}; "
            "nothing can be compared cell by cell"
        )
    return pairs


def report_unmatched(what: str, student: Sequence[int], teacher: Sequence[int]) -> None:
    """Says in the log which levels nobody teaches or learns."""
    alone = [stride for stride in student if stride not in teacher]
    unheard = [stride for stride in teacher if stride not in student]
    if alone:
        log.warning("%s: the teacher has no level of stride %s; the student's is not taught", what, listed(alone))
    if unheard:
        log.warning("%s: the student has no level of stride %s; the teacher's is not used", what, listed(unheard))


def listed(strides: Sequence[int]) -> str:
    return ", ".join(str(stride) for stride in strides)
