"""All rounds of a row, and the tables of `steps.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import NONE, markdown, ratio
from benchmarks.step import Job, Parts
from benchmarks.step_memory import PEAK_STEPS, Peaks
from benchmarks.step_peers import SNIPPETS


class Row(NamedTuple):
    """All rounds of one model and batch size."""

    job: Job
    parts: dict[str, list[Parts]]  # of "ours", "float32", "with teacher", and of a peer by its name
    bare: list[float]  # seconds of the teacher's forward pass alone
    peer: str  # '' for none

    @property
    def ours(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds("ours"))

    @property
    def overhead(self) -> float:
        """Step with teacher ÷ (student's step + bare forward pass of the teacher), of medians."""
        together = statistics.median(self.seconds("with teacher"))
        return together / (self.ours + statistics.median(self.bare))

    def seconds(self, name: str) -> list[float]:
        return [parts.step for parts in self.parts[name]]


def report(rows: Sequence[Row], memory: Sequence[Peaks], peers: Sequence[str], where: str) -> str:
    """Markdown."""
    absent = ", ".join(sorted(set(SNIPPETS) - set(peers)))
    parts = [
        where,
        *([f"Not given by --peer, so not measured: {absent}."] if absent else []),
        "Training step, milliseconds (medians); peer / ours above 1: ours is faster.",
        speed_table(rows),
        "A step with the default methods and a frozen teacher, milliseconds.",
        teacher_table(rows),
        "Where the time goes, milliseconds (medians of each, so that they need not add up).",
        parts_table(rows),
    ]
    if memory:
        parts += [
            f"Growth of a fresh process to the peak of {PEAK_STEPS} steps, megabytes; in the precision of a run.",
            memory_table(memory),
        ]
    return "\n\n".join(parts)


def speed_table(rows: Sequence[Row]) -> str:
    head = ["model", "batch", "ours", "float32", "float32 / ours", "peer", "its step", "peer / ours", "peer / float32"]
    cells = []
    for row in rows:
        plain = row.seconds("float32") if "float32" in row.parts else row.seconds("ours")
        other = row.seconds(row.peer) if row.peer else []
        cells.append(
            [
                *(row.job.model, str(row.job.batch_size), _ms(row.seconds("ours")), _ms(plain)),
                f"{ratio(plain, row.seconds('ours')):.2f}",
                *(row.peer or NONE, _ms(other)),
                *(f"{ratio(other, own):.2f}" if other else NONE for own in (row.seconds("ours"), plain)),
            ]
        )
    return markdown(head, cells)


def teacher_table(rows: Sequence[Row]) -> str:
    head = ["student", "teacher", "batch", "student alone", "teacher alone", "together", "overhead"]
    return markdown(
        head,
        [
            [
                *(row.job.model, Path(row.job.teacher).name, str(row.job.batch_size), _ms(row.seconds("ours"))),
                *(_ms(row.bare), _ms(row.seconds("with teacher")), f"{row.overhead:.3f}"),
            ]
            for row in rows
        ],
    )


def parts_table(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        for name, found in row.parts.items():
            columns = [statistics.median(column) for column in zip(*found, strict=True)]
            cells.append([row.job.model, str(row.job.batch_size), name, *(f"{1000 * value:.1f}" for value in columns)])
    return markdown(["model", "batch", "whose", *Parts._fields], cells)


def memory_table(memory: Sequence[Peaks]) -> str:
    cells = []
    for one in memory:
        peer = [NONE, NONE] if one.peer is None else [f"{one.peer / 1e6:.0f}", f"{one.peer / one.student:.2f}"]
        values = [f"{one.student / 1e6:.0f}", f"{one.taught / 1e6:.0f}"]
        cells.append([one.job.model, Path(one.job.teacher).name, str(one.job.batch_size), *values, *peer])
    return markdown(["student", "teacher", "batch", "student alone", "with teacher", "peer", "peer / ours"], cells)


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f}" if seconds else NONE
