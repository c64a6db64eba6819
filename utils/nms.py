"""From many decoded boxes to the few that count."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor

from utils.boxes import xywh_to_xyxy
from utils.types import DecodedRows
from utils.vision import nms

MOST_CANDIDATES = 30000  # an image; suppression is quadratic in them
AT_ONCE = 2  # candidates for each detection wanted that compete at a time: of a trained model's about half survive
LEAST_AT_ONCE = 512  # fewer take no less time


def non_max_suppression(
    decoded: Tensor,
    conf: float = 0.001,
    iou: float = 0.6,
    max_det: int = 300,
    multi_label: bool = True,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> list[Tensor]:
    """Detections of each image, the most confident first: `suppressed` of the rows of (B, N, 5 + C)."""
    return suppressed(confident_rows(decoded, conf), conf, iou, max_det, multi_label, agnostic, classes)


def confident_rows(decoded: Tensor, conf: float) -> DecodedRows:
    """Of decoded rows (B, N, 5 + C) those whose objectness is above `conf` or not a number, float32."""
    decoded = decoded.detach()
    image, row = (~(decoded[..., 4] <= conf)).nonzero(as_tuple=True)
    chosen = decoded.flatten(0, 1).index_select(0, image * decoded.shape[1] + row)
    return DecodedRows(chosen.float(), image, len(decoded))  # pixels beyond 2048 have no fractions in half precision


def suppressed(
    decoded: DecodedRows,
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
        conf: candidates have an objectness and a confidence above it.
        iou: a box that overlaps a more confident one of its class by more than this is suppressed.
        max_det: so many at most are kept in an image.
        multi_label: a box counts for every class it is confident of, not only for the likeliest.
        agnostic: boxes of different classes suppress each other too.
        classes: only these are kept; None keeps all.

    Returns:
        For each image (n, 6) float32: x1, y1, x2, y2 in pixels, confidence, class.
    """
    if decoded.rows.device.type == "mps":  # which has no float64
        decoded = DecodedRows(decoded.rows.cpu(), decoded.image.cpu(), decoded.images)

    # image by image: suppressing all in one call takes memory quadratic in B
    candidates = [_ordered(own, MOST_CANDIDATES) for own in _candidates(decoded, conf, multi_label, classes)]
    boxes = [_apart(own, agnostic) for own in candidates]
    tasks = candidates, boxes, repeat(iou), repeat(max_det)
    if decoded.rows.device.type != "cpu":
        return list(map(_survivors, *tasks))
    # the kernel itself takes one core; nothing that is done here is large enough for PyTorch to take more
    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), decoded.images))) as pool:
        return list(pool.map(_survivors, *tasks))


def highest_scores(
    decoded: DecodedRows,
    conf: float = 0.001,
    max_det: int = 300,
    multi_label: bool = True,
    classes: Sequence[int] | None = None,
) -> list[Tensor]:
    """As `suppressed`, without suppressing anything: for heads that have one box an object by themselves.

    The most confident pairs of a box and a class are kept, `max_det` at most, as with YOLOv10 (Wang et al., NeurIPS
    2024, arXiv:2405.14458). Of pairs that are equally confident, the one of the earlier box comes first.
    """
    return [_ordered(own, max_det) for own in _candidates(decoded, conf, multi_label, classes)]


def finite_rows(decoded: DecodedRows) -> Tensor:
    """(M,) bool: which rows have finite numbers only."""
    if bool(decoded.rows.sum().isfinite()):  # then all are, and the sum is the cheaper question
        return torch.ones_like(decoded.image, dtype=torch.bool)
    return decoded.rows.isfinite().all(dim=1)


def _candidates(decoded: DecodedRows, conf: float, multi_label: bool, classes: Sequence[int] | None) -> list[Tensor]:
    """Of each image (m, 6) xyxy, confidence, class: its rows in their order, a row's classes in theirs."""
    kept = finite_rows(decoded) & (decoded.rows[:, 4] > conf)
    rows, image = (decoded.rows, decoded.image) if bool(kept.all()) else (decoded.rows[kept], decoded.image[kept])
    if bool((image[1:] < image[:-1]).any()):  # heads give level after level
        image, order = image.sort(stable=True)
        rows = rows[order]
    own = rows.split(image.bincount(minlength=decoded.images).tolist())
    # image by image: a row may stand for as many candidates as there are classes
    return [_of_rows(rows, conf, multi_label, classes) for rows in own]


def _of_rows(rows: Tensor, conf: float, multi_label: bool, classes: Sequence[int] | None) -> Tensor:
    """(n, 5 + C) decoded rows of an image to (m, 6) xyxy, confidence, class."""
    scores = rows[:, 5:] * rows[:, 4:5]
    if multi_label:
        row, label = (scores > conf).nonzero(as_tuple=True)
        confidence = scores[row, label]
    else:
        best, likeliest = scores.max(dim=1)
        (row,) = (best > conf).nonzero(as_tuple=True)
        confidence, label = best[row], likeliest[row]
    found = torch.cat((xywh_to_xyxy(rows[:, :4])[row], confidence[:, None], label[:, None].to(rows.dtype)), dim=1)
    return found if classes is None else found[torch.isin(found[:, 5], found.new_tensor(list(classes)))]


def _ordered(candidates: Tensor, most: int) -> Tensor:
    """The most confident first; of equals the one that came first."""
    return candidates[candidates[:, 4].argsort(descending=True, stable=True)[:most]]


def _apart(candidates: Tensor, agnostic: bool) -> Tensor:
    """Their boxes (m, 4) in float64, those of each class so far from others that they cannot overlap."""
    boxes = candidates[:, :4].double()
    if agnostic or not len(boxes):
        return boxes
    return boxes + candidates[:, 5:] * (boxes.max() - boxes.min() + 1)  # in float64 that changes no overlap


def _survivors(candidates: Tensor, boxes: Tensor, iou: float, max_det: int) -> Tensor:
    """The first that greedy suppression leaves of (m, 6) candidates in order of confidence, in that order.

    Whether a box survives depends on more confident survivors alone. So they compete a few at a time against those who
    have survived, until there are enough.

    Args:
        boxes: (m, 4) see `_apart`.
    """
    kept = torch.zeros(0, dtype=torch.long, device=candidates.device)
    for few in torch.arange(len(candidates), device=candidates.device).split(max(AT_ONCE * max_det, LEAST_AT_ONCE)):
        rivals = torch.cat((kept, few))
        ranks = torch.arange(len(rivals), 0, -1, device=rivals.device, dtype=boxes.dtype)  # no ties for it to break
        kept = rivals[nms(boxes[rivals], ranks, iou)]
        if len(kept) >= max_det:
            break
    survivors: Tensor = candidates[kept[:max_det]]
    return survivors
