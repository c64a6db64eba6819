"""Detections in COCO's format, and what pycocotools says of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.evaluator import Detections

# COCO numbers its 80 classes from 1 to 90; these were never used
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(number for number in range(1, 91) if number not in UNUSED_IDS)


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """COCO's own numbers where the classes are COCO's 80, else the index of the class."""
    is_coco = len(names) == len(COCO_IDS) and (names[0], names[-1]) == ("person", "toothbrush")
    return COCO_IDS if is_coco else tuple(range(len(names)))


def image_ids(paths: Sequence[str]) -> list[int]:
    """The number that a file name is (000000123.jpg -> 123), or positions from 1 where one is none or not alone."""
    stems = [Path(path).stem for path in paths]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(paths) + 1))


def predictions(detections: Sequence[Detections], names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's result format: boxes are left, top, width, height in pixels."""
    categories, identities = category_ids(names), image_ids([one.path for one in detections])
    return [
        {
            "image_id": identity,
            "category_id": categories[int(row[5])],
            "bbox": box,
            "score": round(float(row[4]), 5),
        }
        for identity, one in zip(identities, detections, strict=True)
        for row, box in zip(one.found, _corner_boxes(one.found[:, :4]), strict=True)
    ]


def ground_truth(detections: Sequence[Detections], names: Sequence[str]) -> dict[str, Any]:
    """The labels as a COCO annotation file, with the same image and category numbers as `predictions`."""
    categories, identities = category_ids(names), image_ids([one.path for one in detections])
    annotations: list[dict[str, Any]] = []
    for identity, one in zip(identities, detections, strict=True):
        for label, box in zip(one.labels[:, 0], _corner_boxes(one.labels[:, 1:]), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                    "image_id": identity,
                    "category_id": categories[int(label)],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    images = [
        {"id": identity, "file_name": Path(one.path).name, "height": one.height, "width": one.width}
        for identity, one in zip(identities, detections, strict=True)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in zip(categories, names, strict=True)],
    }


def annotation_file(image: str) -> Path | None:
    """COCO's own annotations of an image's folder (images/val2017 -> annotations/instances_val2017.json), if there."""
    folder = Path(image).parent
    found = folder.parent.parent / "annotations" / f"instances_{folder.name}.json"
    return found if found.is_file() else None


def coco_scores(
    truth: Mapping[str, Any] | Path, results: Sequence[Mapping[str, Any]], images: Sequence[int]
) -> tuple[float, float]:
    """mAP50-95 and mAP50 as pycocotools counts them, over these images.

    Raises:
        ImportError: pycocotools is not installed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        if isinstance(truth, Path):
            known = COCO(str(truth))
        else:
            known = COCO()
            known.dataset = dict(truth)
            known.createIndex()
        judge = COCOeval(known, known.loadRes([dict(result) for result in results]), "bbox")
        judge.params.imgIds = sorted(images)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


def _corner_boxes(boxes: NDArray[np.float32]) -> list[list[float]]:
    """xyxy -> left, top, width, height, to a thousandth of a pixel."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    rows: list[list[float]] = np.concatenate((boxes[:, :2], sizes), axis=1).astype(np.float64).round(3).tolist()
    return rows
