"""Figures: arrays in, one PNG out. Matplotlib's file back end alone: no global figure, no window, no font fetched."""

from __future__ import annotations

import csv
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.errors import printable
from utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

GREY = "#b8bcc2"
# curves of one panel; dashes, because learning rates of groups often lie on each other
LINES = (("#1f6fb4", "-"), ("#e66101", "-"), ("#111111", "--"), ("#8c56be", ":"), ("#009e73", "-."))
FEW = 12  # classes that a figure can name one by one
MANY = 30  # classes up to which ticks are written
CROWDED = 200  # classes up to which each has a curve or a bar: of more, one hides the other, and they take minutes
MOST = 1_000_000  # boxes that a figure of positions and sizes takes, evenly from all: more of them look the same


# -- training ----------------------------------------------------------------------------------------------------------


def read_results(path: Path | str) -> dict[str, Array]:
    """results.csv as columns of numbers; an empty cell is nan."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    return {key.strip(): np.array([float(row[key] or "nan") for row in rows]) for key in columns}


def results_curves(columns: Mapping[str, ArrayLike], path: Path | str) -> Path:
    """results.png: a panel for each loss term (training and validation), each metric, and the learning rates.

    Args:
        columns: as `read_results` gives them: epoch, train/<term>, val/<term>, metrics/<name>, lr/<group>.
    """
    panels = _results_panels(list(columns))
    epochs = np.asarray(columns["epoch"], dtype=np.float64)
    across = min(4, len(panels)) or 1
    figure, axes = _figure(across, math.ceil(len(panels) / across) or 1, (3.4, 2.5))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        for index, (label, key) in enumerate(series.items()):
            values = np.asarray(columns[key], dtype=np.float64)
            known = np.isfinite(values)
            shade, dash = LINES[index % len(LINES)]
            mark = "." if known.sum() <= 30 and dash == "-" else ""
            axis.plot(epochs[known], values[known], dash, color=shade, marker=mark, markersize=4, lw=1.4, label=label)
        axis.set_title(_plain(title), fontsize=10)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    return _save(figure, path)


def _results_panels(keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Title -> {label: column}, in reading order: losses, metrics, learning rates."""
    panels: dict[str, dict[str, str]] = {}
    for kind in ("train", "val"):
        for key in keys:
            if key.startswith(f"{kind}/"):
                panels.setdefault(f"loss: {key.split('/', 1)[1]}", {})[kind] = key
    for key in keys:
        if key.startswith("metrics/"):
            panels[key.split("/", 1)[1]] = {"validation": key}
    rates = {key.split("/", 1)[1]: key for key in keys if key.startswith("lr/")}
    return {**panels, "learning rate": rates} if rates else panels


# -- data --------------------------------------------------------------------------------------------------------------


def label_statistics(classes: ArrayLike, boxes: ArrayLike, names: Sequence[str], path: Path | str) -> Path:
    """labels.png: boxes a class, their shapes laid over each other, where their centres lie, how large they are.

    Args:
        classes: (n,).
        boxes: (n, 4) centre x, y, width, height in [0, 1].
    """
    classes = np.asarray(classes, dtype=np.int64).reshape(-1)
    every = math.ceil(len(classes) / MOST) or 1
    boxes = np.asarray(np.asarray(boxes).reshape(-1, 4)[::every], dtype=np.float64)
    figure, axes = _figure(2, 2, (4.4, 3.6))
    _class_histogram(axes[0], classes, names)
    _box_shapes(axes[1], classes[::every], boxes)
    for axis, columns, title in ((axes[2], (0, 1), ("x", "y")), (axes[3], (2, 3), ("width", "height"))):
        edges = np.linspace(0, 1, 51)
        counts = np.histogram2d(boxes[:, columns[1]], boxes[:, columns[0]], bins=(edges, edges))[0]
        axis.imshow(np.sqrt(counts), extent=(0, 1, 0, 1), origin="lower", cmap="Blues", aspect="auto")
        axis.set_xlabel(f"{title[0]} of the box, share of the image", fontsize=8)
        axis.set_ylabel(title[1], fontsize=8)
        axis.grid(False)
    axes[2].invert_yaxis()  # images grow downwards
    return _save(figure, path)


def _class_histogram(axis: Any, classes: NDArray[np.int64], names: Sequence[str]) -> None:
    counts = np.bincount(classes[classes >= 0], minlength=len(names))
    if len(counts) <= CROWDED:
        axis.bar(np.arange(len(counts)), counts, color=[_shade(i) for i in range(len(counts))])
    else:
        axis.fill_between(np.arange(len(counts)), counts, step="mid", color=GREY)
    axis.set_ylabel("boxes", fontsize=8)
    axis.set_title(f"{len(classes):,} boxes in {np.count_nonzero(counts)} of {len(names)} classes", fontsize=9)
    axis.grid(False, axis="x")
    if len(names) <= MANY:
        axis.set_xticks(np.arange(len(names)), [_plain(_short(name)) for name in names])
        axis.tick_params(axis="x", labelrotation=90 if len(names) > 5 else 0, labelsize=7)
    else:
        axis.set_xlabel("class", fontsize=8)


def _box_shapes(axis: Any, classes: NDArray[np.int64], boxes: Array, limit: int = 500) -> None:
    """Up to `limit` boxes, evenly taken from all, drawn around one centre."""
    from matplotlib.collections import PolyCollection

    chosen = np.linspace(0, len(boxes) - 1, min(limit, len(boxes))).astype(int)
    halves = boxes[chosen, 2:] / 2
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    shapes = 0.5 + halves[:, None] * signs  # (n, 4 corners, x y)
    axis.add_collection(
        PolyCollection(
            list(shapes), facecolors="none", edgecolors=[_shade(c) for c in classes[chosen]], linewidths=0.4, alpha=0.6
        )
    )
    axis.set(xlim=(0, 1), ylim=(0, 1), title="shapes", xticks=[], yticks=[])
    axis.title.set_fontsize(9)


# -- evaluation --------------------------------------------------------------------------------------------------------


def precision_recall_curve(
    recall: ArrayLike, precision: ArrayLike, average_precision: ArrayLike, names: Sequence[str], path: Path | str
) -> Path:
    """PR_curve.png: precision over recall at IoU 0.5, every class and their mean.

    Args:
        recall: (P,) the points of the horizontal axis.
        precision: (C, P), the classes in the order of `names`.
        average_precision: (C,) the areas, for the legend.
    """
    areas = np.asarray(average_precision, dtype=np.float64)
    legend = [f"{name} {area:.3f}" for name, area in zip(names, areas, strict=True)]
    mean = f"all classes {areas.mean():.3f} mAP50" if len(areas) else "no class"
    return _class_curves(recall, precision, legend, mean, ("recall", "precision"), path)


def confidence_curve(
    confidence: ArrayLike, values: ArrayLike, names: Sequence[str], measure: str, path: Path | str
) -> Path:
    """F1_curve.png, P_curve.png, R_curve.png: a measure over the confidence threshold.

    Args:
        confidence: (P,).
        values: (C, P), the classes in the order of `names`.
        measure: name of the vertical axis.
    """
    confidence, values = np.asarray(confidence, dtype=np.float64), np.asarray(values, dtype=np.float64)
    mean = "no class"
    if len(values):
        overall = values.mean(axis=0)
        best = int(overall.argmax())
        mean = f"all classes {overall[best]:.2f} at {confidence[best]:.3f}"
    return _class_curves(confidence, values, list(names), mean, ("confidence", measure), path)


def _class_curves(
    across: ArrayLike, values: ArrayLike, legend: Sequence[str], mean: str, labels: tuple[str, str], path: Path | str
) -> Path:
    across, values = np.asarray(across, dtype=np.float64), np.asarray(values, dtype=np.float64)
    figure, (axis,) = _figure(1, 1, (8.0, 5.2))
    few = len(legend) <= FEW
    for index in np.linspace(0, len(values) - 1, min(CROWDED, len(values))).astype(int):
        shade = _shade(index) if few else GREY
        label = _plain(_short(legend[index], 32)) if few else None
        axis.plot(across, values[index], color=shade, linewidth=1.1, alpha=1.0 if few else 0.6, label=label)
    if len(values):
        axis.plot(across, values.mean(axis=0), color="#111111", linewidth=2.4, label=_plain(mean))
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=labels[0], ylabel=labels[1])
    return _save(figure, path)


def confusion_matrix(matrix: ArrayLike, names: Sequence[str], path: Path | str) -> Path:
    """confusion_matrix.png: what the objects of each class were taken for, as shares of the class.

    Args:
        matrix: (C + 1, C + 1) counts, predicted by true; the last row is "missed", the last column "nothing there";
            (0, 0) where they were not counted, which the figure then says.
    """
    counts = np.asarray(matrix, dtype=np.float32)
    shares = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1)
    size = len(counts)
    if not size:
        return _left_out(f"{len(names)} classes are too many to count which is taken for which", path)
    side = min(max(4.5, 0.42 * size), 13.0)
    figure, (axis,) = _figure(1, 1, (side + 1.6, side))
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, fraction=0.045, pad=0.02).set_label("share of the true class", fontsize=8)
    if size <= MANY + 1:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "#222222"
            axis.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", fontsize=7, color=ink)
    if size <= 101:
        letters = 8 if size <= MANY else 5
        ticks = np.arange(size)
        short = [_plain(_short(name)) for name in names]
        axis.set_xticks(ticks, [*short, "nothing"], rotation=90, fontsize=letters)
        axis.set_yticks(ticks, [*short, "missed"], fontsize=letters)
    axis.set(xlabel="true", ylabel="predicted")
    axis.grid(False)
    return _save(figure, path)


def _left_out(reason: str, path: Path | str) -> Path:
    log.info("%s: %s", path, reason)
    figure, (axis,) = _figure(1, 1, (6.0, 1.5))
    axis.axis("off")
    axis.text(0.5, 0.5, reason, ha="center", va="center", fontsize=9)
    return _save(figure, path)


# -- small things ------------------------------------------------------------------------------------------------------


def _figure(across: int, down: int, panel: tuple[float, float]) -> tuple[Figure, list[Any]]:
    """A figure of its own (pyplot knows nothing of it) and its axes, row by row; `panel` is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(across * panel[0], down * panel[1]), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes:
        axis.grid(True, color="#e6e8eb", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, color="#9aa0a6")
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#9aa0a6")
    return figure, axes


def _save(figure: Figure, path: Path | str) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts that matplotlib's own font lacks
        return write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))


def _shade(index: int) -> tuple[float, ...]:
    """The colour that the class has in pictures, as matplotlib wants it."""
    from utils.pictures import color

    return tuple(part / 255 for part in color(int(index)))


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _plain(text: str) -> str:
    """Text that fonts can draw, and in which a dollar is a dollar and starts no formula."""
    return printable(text).replace("$", r"\$")
