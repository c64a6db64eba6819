"""Student beside teacher: one table, metrics.json, and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from models.summary import count_parameters, gflops
from utils.files import megabytes, write_text
from utils.metrics import Evaluation, match
from utils.pictures import Image, Panel, sheet

ROLES = ("student", "teacher", "baseline")
SURE = 0.25  # confidence from which on a box is compared and drawn: what a user would be shown
CLASSES_SHOWN = 20
WEIGHTS_SHOWN = 25  # letters of a path, its end


@dataclass(frozen=True)
class Contender:
    """One weights file and what it came to."""

    weights: str
    role: str  # student, teacher or baseline
    evaluation: Evaluation
    parameters: int
    gflops: float  # one image of 640 px, fused
    ms_per_image: float  # forward pass and decoding
    size_mb: float  # of the file

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"a contender is {', '.join(ROLES)}; got {self.role}")

    def to_json(self) -> dict[str, Any]:
        """As metrics.json has it; a number that is not finite becomes null."""
        evaluation = self.evaluation
        record = {
            "weights": self.weights,
            "role": self.role,
            **_scores(evaluation),
            "parameters": self.parameters,
            "gflops": self.gflops,
            "ms_per_image": self.ms_per_image,
            "size_mb": self.size_mb,
            "per_class": [
                {"name": result.name, "images": result.images, "labels": result.labels, **_scores(result)}
                for result in evaluation.per_class
            ],
        }
        return _finite(record)


def contender(weights: str | Path, role: str, model: nn.Module, evaluation: Evaluation, ms_per_image: float) -> Contender:
    """The record of a weights file and the model read from it (not fused yet, so that its parameters are the file's)."""
    parameters = count_parameters(model)
    stored = megabytes(weights) if Path(weights).is_file() else parameters * 2 / 1e6  # float16, as ours are saved
    return Contender(str(weights), role, evaluation, parameters, gflops(model), ms_per_image, stored)


def write_metrics(path: Path | str, contenders: Sequence[Contender]) -> Path:
    """metrics.json: a list with one entry for each weights file evaluated."""
    return write_text(path, json.dumps([one.to_json() for one in contenders], indent=2, allow_nan=False) + "\n")


# -- agreement ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How many boxes two models share: same class, IoU of 0.5 at least, one to one."""

    shared: int
    student: int  # boxes of each, of a confidence of `SURE` at least
    teacher: int

    @property
    def share(self) -> float:
        """Shared boxes of all boxes, in [0, 1]; 1 where neither found any."""
        total = self.student + self.teacher
        return 2 * self.shared / total if total else 1.0

    def line(self) -> str:
        return (
            f"agreement {self.share:.1%}: of {self.student} student and {self.teacher} teacher boxes (confidence "
            f"{SURE:g} and more), {self.shared} match at IoU 0.5"
        )


def agreement(student: Sequence[ArrayLike], teacher: Sequence[ArrayLike]) -> Agreement:
    """Compares detections (n, 6) of the same images: xyxy, confidence, class."""
    shared, counts = 0, [0, 0]
    for own, other in zip(student, teacher, strict=True):
        mine, theirs = _sure(own), _sure(other)
        counts[0] += len(mine)
        counts[1] += len(theirs)
        shared += _matched(mine, theirs)
    return Agreement(shared, *counts)


# -- the table ---------------------------------------------------------------------------------------------------------

# title, width, the number, its form
Column = tuple[str, int, Callable[[Contender], float], str]
SCORES: tuple[Column, ...] = (
    ("P", 8, lambda one: one.evaluation.precision, ".3f"),
    ("R", 8, lambda one: one.evaluation.recall, ".3f"),
    ("mAP50", 8, lambda one: one.evaluation.map50, ".3f"),
    ("mAP50-95", 10, lambda one: one.evaluation.map, ".4f"),
)
COSTS: tuple[Column, ...] = (
    ("parameters", 12, lambda one: one.parameters, ",.0f"),
    ("GFLOPs", 8, lambda one: one.gflops, ".1f"),
    ("ms/image", 10, lambda one: one.ms_per_image, ".1f"),
    ("MB", 8, lambda one: one.size_mb, ".1f"),
)


def table(contenders: Sequence[Contender], agreed: Agreement | None = None, all_classes: bool = False) -> str:
    """What a person reads at the end; at most 110 columns wide.

    With a student and a teacher: their difference, and the share of the teacher's scores that the student reaches; with
    a baseline: the student's gain over it, and the share of the gap between baseline and teacher that it closes.

    Args:
        all_classes: every class; else those that differ most.
    """
    columns = (*SCORES, *COSTS)
    lines = [_row("", [title for title, *_ in columns], "weights")]
    for one in contenders:
        lines.append(_row(one.role, [format(get(one), form) for _, _, get, form in columns], _ending(one.weights)))
    student, teacher, baseline = (_first(contenders, role) for role in ROLES)
    if student and teacher:
        costs = [_percent(get(student), get(teacher)) for _, _, get, _ in COSTS]
        lines.append(_row("difference", _differences(student, teacher) + costs, "student - teacher"))
    if student and baseline:
        lines.append(_row("gain", _differences(student, baseline), "student - baseline"))
    if student and teacher and baseline:
        closed = [_gap_closed(get(student), get(baseline), get(teacher)) for _, _, get, _ in SCORES]
        lines.append(_row("gap closed", closed, "gain / (teacher - base.)"))
    elif student and teacher:
        reached = [_percent(get(student), get(teacher)) for _, _, get, _ in SCORES]
        lines.append(_row("reached", reached, "student / teacher"))
    if agreed is not None:
        lines += ["", agreed.line()]
    rivals = [one for one in (teacher, baseline) if one is not None]
    if student and rivals:
        lines += ["", *_class_table(student, rivals, all_classes)]
    return "\n".join(lines)


def class_table(evaluation: Evaluation) -> str:
    """Scores of a single model: all classes, then each that has labels."""
    rows = [("all", "", str(sum(result.labels for result in evaluation.per_class)), evaluation)]
    rows += [(result.name, str(result.images), str(result.labels), result) for result in _present(evaluation)]
    lines = [f"{'class':<24}{'images':>8}{'labels':>8}" + "".join(f"{title:>{width}}" for title, width, *_ in SCORES)]
    for name, images, labels, result in rows:
        scores = "".join(
            f"{value:>{width}{form}}"
            for value, (_, width, _, form) in zip(_scores(result).values(), SCORES, strict=True)
        )
        lines.append(f"{name[:23]:<24}{images:>8}{labels:>8}{scores}")
    return "\n".join(lines)


def _class_table(student: Contender, rivals: Sequence[Contender], everything: bool) -> list[str]:
    """mAP50-95 a class: the student, and each rival with its distance."""
    scores = [{result.index: result.map for result in rival.evaluation.per_class} for rival in rivals]
    present = _present(student.evaluation)
    chosen = sorted(present, key=lambda result: abs(result.map - scores[0].get(result.index, 0.0)), reverse=True)
    chosen = sorted(chosen if everything else chosen[:CLASSES_SHOWN], key=lambda result: result.index)
    title = "mAP50-95 of each class"
    if len(chosen) < len(present):
        title = f"mAP50-95 of the {len(chosen)} of {len(present)} classes that differ most"
    header = "".join(f"{rival.role:>12}{'difference':>12}" for rival in rivals)
    lines = [title, f"{'class':<24}{'images':>8}{'labels':>8}{'student':>12}{header}"]
    for result in chosen:
        others = [score.get(result.index, 0.0) for score in scores]
        cells = "".join(f"{other:>12.3f}{result.map - other:>+12.3f}" for other in others)
        lines.append(f"{result.name[:23]:<24}{result.images:>8}{result.labels:>8}{result.map:>12.3f}{cells}")
    return lines


def _row(title: str, cells: Sequence[str], remark: str) -> str:
    widths = [width for _, width, *_ in (*SCORES, *COSTS)]
    padded = [*cells, *[""] * (len(widths) - len(cells))]
    return f"{title:<10}" + "".join(f"{cell:>{width}}" for cell, width in zip(padded, widths, strict=True)) + "  " + remark


def _differences(one: Contender, other: Contender) -> list[str]:
    return [format(get(one) - get(other), "+" + form) for _, _, get, form in SCORES]


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _gap_closed(student: float, baseline: float, teacher: float) -> str:
    """The share of the way from baseline to teacher; no number where the teacher is not ahead."""
    return f"{(student - baseline) / (teacher - baseline):.0%}" if teacher > baseline else "-"


# -- the picture -------------------------------------------------------------------------------------------------------


def picture(
    images: Sequence[Image],
    labels: Sequence[ArrayLike],
    found: dict[str, Sequence[ArrayLike]],
    names: Sequence[str],
    path: Path | str,
) -> Path:
    """Each image in a row: ground truth, then what each model found.

    Args:
        images: RGB, in their own size.
        labels: (m, 5) class and xyxy pixels, an image each.
        found: role -> detections (n, 6) of each image.
    """
    rows = []
    for index, image in enumerate(images):
        truth = np.asarray(labels[index], dtype=np.float64).reshape(-1, 5)
        row = [Panel(image, truth[:, 1:], truth[:, 0])]
        for detections in found.values():
            sure = _sure(detections[index])
            row.append(Panel(image, sure[:, :4], sure[:, 5], sure[:, 4]))
        rows.append(row)
    return sheet(rows, ["ground truth", *found], names, path)


def show_cases(labels: Sequence[ArrayLike], count: int = 6) -> list[int]:
    """Which images to show: evenly spread over those with objects (over all, where there are none); nothing is picked
    for how well it went."""
    busy = [index for index, own in enumerate(labels) if np.size(own)] or list(range(len(labels)))
    return [busy[int(place)] for place in np.linspace(0, len(busy) - 1, min(count, len(busy))).round()]


# -- small things ------------------------------------------------------------------------------------------------------


def _scores(result: Any) -> dict[str, float]:
    """Of an Evaluation or of one of its classes."""
    return {
        "precision": float(result.precision),
        "recall": float(result.recall),
        "mAP50": float(result.map50),
        "mAP50-95": float(result.map),
    }


def _present(evaluation: Evaluation) -> list[Any]:
    return [result for result in evaluation.per_class if result.labels]


def _first(contenders: Sequence[Contender], role: str) -> Contender | None:
    return next((one for one in contenders if one.role == role), None)


def _sure(detections: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(detections, dtype=np.float32).reshape(-1, 6)
    return rows[rows[:, 4] >= SURE]


def _ending(path: str) -> str:
    return path if len(path) <= WEIGHTS_SHOWN else f"…{path[1 - WEIGHTS_SHOWN :]}"


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
