"""From many decoded boxes to the few that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from utils.boxes import xywh_to_xyxy

MOST_CANDIDATES = 30000  # an image; suppression is quadratic in them
FIRST_TRY = 4  # candidates for each detection wanted


def non_max_suppression(
    decoded: Tensor,
    conf: float = 0.001,
    iou: float = 0.6,
    max_det: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> list[Tensor]:
    """Detections of each image, the most confident first.

    Confidence is objectness times class probability. Rows that are not finite are dropped. No image is left out for
    want of time.

    Args:
        decoded: (B, N, 5 + C): x, y, w, h (centre) in pixels, objectness, class probabilities.
        conf: candidates have an objectness and a confidence above it.
        iou: a box that overlaps a more confident one of its class by more than this is suppressed.
        max_det: so many at most are kept in an image.
        multi_label: a box counts for every class it is confident of, not only for the likeliest.
        agnostic: boxes of different classes suppress each other too.
        classes: only these are kept; None keeps all.

    Returns:
        For each image (n, 6) float32: x1, y1, x2, y2 in pixels, confidence, class.
    """
    # image by image: their candidates differ in number, and suppressing all in one call takes memory quadratic in B
    found = [_candidates(rows[rows[:, 4] > conf], conf, multi_label) for rows in decoded.detach()]
    return [_suppress(_of_classes(candidates, classes), iou, max_det, agnostic) for candidates in found]


def highest_scores(
    decoded: Tensor,
    conf: float = 0.001,
    max_det: int = 300,
    multi_label: bool = True,
    classes: Sequence[int] | None = None,
) -> list[Tensor]:
    """As `non_max_suppression`, without suppressing anything: for heads that have one box an object by themselves.

    The most confident pairs of a box and a class are kept, `max_det` at most, as with YOLOv10 (Wang et al., NeurIPS
    2024, arXiv:2405.14458). Of pairs that are equally confident, the one of the earlier box comes first.
    """
    found = [_of_classes(_candidates(rows, conf, multi_label), classes) for rows in decoded.detach()]
    return [rows[rows[:, 4].argsort(descending=True, stable=True)[:max_det]] for rows in found]


def _candidates(rows: Tensor, conf: float, multi_label: bool) -> Tensor:
    """(n, 5 + C) decoded rows to (m, 6) xyxy, confidence, class, in no order."""
    rows = rows[rows.isfinite().all(dim=1)].float()  # pixels beyond 2048 have no fractions in half precision
    boxes, scores = xywh_to_xyxy(rows[:, :4]), rows[:, 5:] * rows[:, 4:5]
    if multi_label:
        row, label = (scores > conf).nonzero(as_tuple=True)
        confidence = scores[row, label]
    else:
        best, likeliest = scores.max(dim=1)
        (row,) = (best > conf).nonzero(as_tuple=True)
        confidence, label = best[row], likeliest[row]
    return torch.cat((boxes[row], confidence[:, None], label[:, None].to(rows.dtype)), dim=1)


def _of_classes(candidates: Tensor, classes: Sequence[int] | None) -> Tensor:
    if classes is None:
        return candidates
    wanted = torch.isin(candidates[:, 5], candidates.new_tensor(list(classes)))
    return candidates[wanted]


def _suppress(candidates: Tensor, iou: float, max_det: int, agnostic: bool) -> Tensor:
    """The survivors of (m, 6), most confident first; of equals the one that came first.

    Whether a box survives depends on more confident ones alone. So the most confident few are tried first, and more of
    them only while too few of those survive.
    """
    order = candidates[:, 4].argsort(descending=True, stable=True)[:MOST_CANDIDATES]
    tried = FIRST_TRY * max_det
    while True:
        survivors = _survivors(candidates[order[:tried]], iou, agnostic)
        if len(survivors) >= max_det or tried >= len(order):
            return survivors[:max_det]
        tried *= 4


def _survivors(candidates: Tensor, iou: float, agnostic: bool) -> Tensor:
    """All that greedy suppression leaves of (m, 6) candidates in order of confidence, in that order."""
    if not len(candidates):
        return candidates
    boxes, confidence, label = candidates[:, :4], candidates[:, 4], candidates[:, 5]
    # torchvision tells classes apart by moving their boxes away from each other, which asks for coordinates from 0 on
    kept = batched_nms(boxes - boxes.min(), confidence, torch.zeros_like(label) if agnostic else label, iou)
    survivors: Tensor = candidates[kept.sort().values]  # it orders by confidence, but leaves ties to chance
    return survivors
