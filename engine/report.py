"""What an evaluation leaves in its folder: figures, label files, COCO files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine import coco
from engine.evaluator import Detections, Report
from utils.files import write_text
from utils.pictures import Panel, drawable, read, sheet
from utils.plots import confidence_curve, confusion_matrix, precision_recall_curve

log = logging.getLogger(__name__)

DRAWN = 0.25  # confidence from which on a detection is drawn
DRAWN_IMAGES = 8  # of val_predictions.jpg, two in a row


class CocoScores(NamedTuple):
    """By pycocotools."""

    map: float
    map50: float
    source: str  # where its ground truth is from


def draw_report(report: Report, names: Sequence[str], folder: Path) -> list[Path]:
    """PR, F1, P and R curves, the confusion matrix, and labels beside predictions where detections were collected."""
    evaluation, curves = report.evaluation, report.evaluation.curves
    shown = [result.name for result in evaluation.per_class]
    areas = [result.map50 for result in evaluation.per_class]
    paths = [
        precision_recall_curve(curves.recall_axis, curves.precision_at_recall, areas, shown, folder / "PR_curve.png"),
        confidence_curve(curves.confidence, curves.f1, shown, "F1", folder / "F1_curve.png"),
        confidence_curve(curves.confidence, curves.precision, shown, "precision", folder / "P_curve.png"),
        confidence_curve(curves.confidence, curves.recall, shown, "recall", folder / "R_curve.png"),
        confusion_matrix(report.confusion.matrix, names, folder / "confusion_matrix.png"),
    ]
    if report.detections and drawable():
        paths.append(draw_predictions(report.detections, names, folder / "val_predictions.jpg"))
    return paths


def draw_predictions(detections: Sequence[Detections], names: Sequence[str], path: Path) -> Path:
    """Labels beside predictions, of images evenly spread over the data."""
    panels = []
    for place in np.linspace(0, len(detections) - 1, min(DRAWN_IMAGES, len(detections))).round().astype(int):
        one = detections[place]
        image, sure = read(one.path), one.found[one.found[:, 4] >= DRAWN]
        panels.append(Panel(image, one.labels[:, 1:], one.labels[:, 0], caption=Path(one.path).name))
        panels.append(Panel(image, sure[:, :4], sure[:, 5], sure[:, 4]))
    rows = [panels[start : start + 4] for start in range(0, len(panels), 4)]
    return sheet(rows, ("labels", "predictions") * (len(rows[0]) // 2), names, path)


def save_txt(detections: Sequence[Detections], folder: Path, with_confidence: bool) -> Path:
    """One label file an image: class, centre x, y, width, height in [0, 1], and the confidence if wanted."""
    for one in detections:
        size = np.array([one.width, one.height] * 2)
        corners = one.found[:, :4] / size
        centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        lines = [
            " ".join((f"{row[5]:.0f}", *(f"{value:.6f}" for value in (*centre, *side, *row[4 : 4 + with_confidence]))))
            for row, centre, side in zip(one.found, centres, sides, strict=True)
        ]
        write_text(folder / f"{Path(one.path).stem}.txt", "".join(f"{line}\n" for line in lines))
    return folder


def save_json(detections: Sequence[Detections], names: Sequence[str], folder: Path) -> CocoScores | None:
    """predictions.json in COCO's format, scored by pycocotools where it is installed.

    COCO's own annotations are the ground truth where they lie beside the images; elsewhere they are made from the
    labels and written beside the predictions.
    """
    results = coco.predictions(detections, names)
    write_text(folder / "predictions.json", json.dumps(results))
    published = coco.annotation_file(detections[0].path) if coco.category_ids(names) == coco.COCO_IDS else None
    truth = published or coco.ground_truth(detections, names)
    if published is None:
        write_text(folder / "ground_truth.json", json.dumps(truth))
    try:
        scores = coco.coco_scores(truth, results, coco.image_ids([one.path for one in detections]))
    except ImportError:
        log.warning("pycocotools is not installed, so its scores are missing (pip install pycocotools)")
        return None
    return CocoScores(*scores, source=str(published or "the labels"))
