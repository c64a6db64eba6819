"""Where on a map are objects: by ground truth, and by the teacher.

A position of the map is a square of the image, `stride` pixels wide. A box covers the positions that it touches, at
least one, so that no object is too small to be seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.outputs.view import cells_of
from utils.types import Batch

if TYPE_CHECKING:
    from distill.pairs import Lesson

TOLERANCE = 1e-3  # positions: a box that ends on a border does not touch the neighbour by an error of rounding
LARGEST_CHUNK = 1 << 23  # pairs of box and position looked at together: 32 MiB of ranks


def smallest_box(batch: Batch, height: int, width: int) -> Tensor:
    """(B, H, W) long: which row of `batch.targets` is the smallest box over each position, -1 where there is none.

    Of equally small ones it is the first. Boxes of images without labels count for nothing.
    """
    image, boxes = batch.targets[:, 0].long(), batch.targets[:, 2:].float()
    order = (boxes[:, 2] * boxes[:, 3]).argsort(stable=True)
    number = len(order)
    # the lowest rank wins; as float, of which the minimum is twice as fast (CPU) and which is exact below 2^24 boxes
    best = torch.full((len(batch.labelled), height, width), float(number), device=boxes.device)
    chunk = max(1, LARGEST_CHUNK // (height * width))
    for start in range(0, number, chunk):  # one pass, unless there are thousands of boxes
        some = order[start : start + chunk]
        ranks = torch.arange(start, start + len(some), device=boxes.device, dtype=best.dtype)
        covered = _covered(boxes[some], height, width) & batch.labelled[image[some]][:, None, None]
        ranks = torch.where(covered, ranks[:, None, None], float(number))
        best.scatter_reduce_(0, image[some][:, None, None].expand_as(ranks), ranks, "amin")
    return with_last(order, -1)[best.long()]


def areas(batch: Batch, height: int, width: int) -> Tensor:
    """(N,) float: how many positions each box of `batch.targets` covers, at least 1."""
    boxes = batch.targets[:, 2:].float()
    (left, right), (top, bottom) = _span(boxes[:, 0], boxes[:, 2], width), _span(boxes[:, 1], boxes[:, 3], height)
    return (right - left) * (bottom - top)


def score_map(lesson: Lesson, height: int, width: int) -> Tensor:
    """(B, 1, H, W) float32: the teacher's highest class score at each position, over all anchors.

    Taken from the level of its head at the lesson's stride; if there is none, from that of the nearest, resized.
    """
    assert lesson.taught is not None, "a loss that looks at scores says `needs_prediction`"
    away = [abs(math.log(stride / lesson.stride)) for stride in lesson.strides]
    index = away.index(min(away))
    scores = cells_of(lesson.head, index, lesson.taught.levels[index]).highest_score()  # (B, A, H, W)
    scores = scores.amax(1, keepdim=True)
    if scores.shape[2:] == (height, width):
        return scores
    return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def with_last(x: Tensor, value: float) -> Tensor:
    """(N,) -> (N + 1,): something for the index -1, which is also there when N is 0."""
    return torch.cat((x, x.new_full((1,), value)))


def _covered(boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, 4) xywh in [0, 1] -> (N, H, W) bool."""
    columns = _between(*_span(boxes[:, 0], boxes[:, 2], width), width)
    rows = _between(*_span(boxes[:, 1], boxes[:, 3], height), height)
    return rows[:, :, None] & columns[:, None, :]


def _between(first: Tensor, end: Tensor, size: int) -> Tensor:
    """(N, size) bool: first <= place < end."""
    places = torch.arange(size, device=first.device)
    return (places >= first[:, None]) & (places < end[:, None])


def _span(centre: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First position that is touched along one axis and the one behind the last; (N,) in [0, 1] -> (N,) each."""
    first = ((centre - length / 2) * size + TOLERANCE).floor().clamp(0, size - 1)
    end = ((centre + length / 2) * size - TOLERANCE).ceil().clamp(max=size)
    return first, torch.maximum(end, first + 1)
