"""Student beside teacher: one table, metrics.json, and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.summary import count_parameters, gflops
from utils.files import megabytes, write_text
from utils.metrics import Evaluation, agreement
from utils.pictures import Panel, drawable, read, sheet

if TYPE_CHECKING:
    from models.yolo import Model

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


def contender(
    weights: str | Path, role: str, model: nn.Module, evaluation: Evaluation, ms_per_image: float
) -> Contender:
    """The record of a weights file and the model read from it, which is not fused (then it has fewer parameters)."""
    parameters = count_parameters(model)
    stored = megabytes(weights) if Path(weights).is_file() else parameters * 2 / 1e6  # float16, as ours are saved
    return Contender(str(weights), role, evaluation, parameters, gflops(cast("Model", model)), ms_per_image, stored)


def write_metrics(path: Path | str, contenders: Sequence[Contender]) -> Path:
    """metrics.json: a list with one entry for each weights file evaluated."""
    return write_text(path, json.dumps([one.to_json() for one in contenders], indent=2, allow_nan=False) + "\n")


def conclude(
    contenders: Sequence[Contender],
    found: Mapping[str, Sequence[Found]],
    names: Sequence[str],
    folder: Path,
    *,
    picture: bool = True,
    all_classes: bool = False,
) -> str:
    """Writes metrics.json, comparison.txt and comparison.jpg into the folder; returns the table and where they are.

    Args:
        found: role -> what that model found in the same images, in the same order; empty leaves the agreement and the
            picture out.
    """
    student, teacher = ([one.found for one in found.get(role, ())] for role in ("student", "teacher"))
    text = table(contenders, agreement(student, teacher, conf=SURE) if student and teacher else None, all_classes)
    write_text(folder / "comparison.txt", f"{text}\n")
    lines = [text, "", f"results: {folder}", f"scores of each: {write_metrics(folder / 'metrics.json', contenders)}"]
    if picture and any(found.values()) and drawable():
        lines.append(f"student beside teacher: {beside(found, names, folder / 'comparison.jpg')}")
    return "\n".join(lines)


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


def table(contenders: Sequence[Contender], agreed: float | None = None, all_classes: bool = False) -> str:
    """What a person reads at the end; at most 110 columns wide.

    With a student and a teacher: their difference, and the student's share of the teacher's scores and costs; with a
    baseline: the student's gain over it, and the share of the gap between baseline and teacher that it closes.

    Args:
        agreed: how far student and teacher agree, as `utils.metrics.agreement` says.
        all_classes: every class; else those that differ most.
    """
    columns = (*SCORES, *COSTS)
    lines = [_row("", [title for title, *_ in columns], "weights")]
    for one in contenders:
        lines.append(_row(one.role, [format(get(one), form) for _, _, get, form in columns], _ending(one.weights)))
    student, teacher, baseline = (_first(contenders, role) for role in ROLES)
    if student and teacher:
        lines.append(_row("difference", _differences(student, teacher), "student - teacher"))
        lines.append(
            _row("share", [_percent(get(student), get(teacher)) for _, _, get, _ in columns], "student / teacher")
        )
    if student and baseline:
        lines.append(_row("gain", _differences(student, baseline), "student - baseline"))
    if student and teacher and baseline:
        closed = [_gap_closed(get(student), get(baseline), get(teacher)) for _, _, get, _ in SCORES]
        lines.append(_row("gap closed", closed, "gain / (teacher - base.)"))
    if agreed is not None:
        lines += [
            "",
            f"student and teacher share {agreed:.1%} of their boxes above {SURE:g} (same class, IoU above 0.5)",
        ]
    rivals = [one for one in (teacher, baseline) if one is not None]
    if student and rivals:
        lines += ["", *_class_table(student, rivals, all_classes)]
    return "\n".join(lines)


def class_table(evaluation: Evaluation) -> str:
    """Scores of a single model: over all classes, then of each that has labels."""
    rows: list[tuple[str, int, int, Any]] = [("all", evaluation.images, evaluation.labels, evaluation)]
    rows += [(result.name, result.images, result.labels, result) for result in evaluation.per_class]
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
    present = student.evaluation.per_class
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
    return (
        f"{title:<10}" + "".join(f"{cell:>{width}}" for cell, width in zip(padded, widths, strict=True)) + "  " + remark
    )


def _differences(one: Contender, other: Contender) -> list[str]:
    return [format(get(one) - get(other), "+" + form) for _, _, get, form in SCORES]


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _gap_closed(student: float, baseline: float, teacher: float) -> str:
    """The share of the way from baseline to teacher; no number where the teacher is not ahead."""
    return f"{(student - baseline) / (teacher - baseline):.0%}" if teacher > baseline else "-"


# -- the picture -------------------------------------------------------------------------------------------------------


class Found(Protocol):
    """What a model found in one image, beside what is there (`engine.evaluator.Detections` is one)."""

    @property
    def path(self) -> str: ...

    @property
    def found(self) -> NDArray[np.float32]:
        """(n, 6) xyxy in pixels of the original, confidence, class."""

    @property
    def labels(self) -> NDArray[np.float32]:
        """(m, 5) class, xyxy."""


def beside(found: Mapping[str, Sequence[Found]], names: Sequence[str], path: Path | str, count: int = 6) -> Path:
    """Images in rows: ground truth, then what each model found with a confidence of `SURE` or more.

    The images are spread evenly over those with objects: nothing is picked for how well it went.

    Args:
        found: role -> the same images in the same order.
    """
    (first, *_) = found.values()
    busy = [index for index, one in enumerate(first) if len(one.labels)] or list(range(len(first)))
    rows = []
    for place in np.linspace(0, len(busy) - 1, min(count, len(busy))).round().astype(int):
        truth = first[busy[place]]
        image = read(truth.path)
        row = [Panel(image, truth.labels[:, 1:], truth.labels[:, 0], caption=Path(truth.path).name)]
        for detections in found.values():
            rows_found = detections[busy[place]].found
            sure = rows_found[rows_found[:, 4] >= SURE]
            row.append(Panel(image, sure[:, :4], sure[:, 5], sure[:, 4]))
        rows.append(row)
    return sheet(rows, ["ground truth", *found], names, path)


# -- small things ------------------------------------------------------------------------------------------------------


def _scores(result: Any) -> dict[str, float]:
    """Of an Evaluation or of one of its classes."""
    return {
        "precision": float(result.precision),
        "recall": float(result.recall),
        "mAP50": float(result.map50),
        "mAP50-95": float(result.map),
    }


def _first(contenders: Sequence[Contender], role: str) -> Contender | None:
    return next((one for one in contenders if one.role == role), None)


def _ending(path: str) -> str:
    return path if len(path) <= WEIGHTS_SHOWN else f"…{path[1 - WEIGHTS_SHOWN :]}"


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
