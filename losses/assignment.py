"""Who answers for which target in heads without anchors: cells, chosen by what they predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from losses.matching import PAIRS
from losses.terms import bbox_iou
from utils.boxes import around, cell_points, expected_distances, xywh_to_xyxy
from utils.types import Batch

TINY = 1e-9  # keeps the quotient of two metrics finite; published, and felt where all overlaps are below 0.05
WIDENED = 2  # strides: sides that small objects are given
LAST = 0xFFFFFFFF  # above any number of a target


class Assignment(NamedTuple):
    """Which cells answer for which target. N cells: those of all levels, level after level, row after row."""

    positive: Tensor  # (B, N) bool: answers for a target
    target: Tensor  # (B, N) long: its number in the batch, -1 where there is none
    score: Tensor  # (B, N) float32 in [0, 1]: what the class of the target is to score there, 0 where there is none

    def on_levels(self, levels: Sequence[Tensor]) -> list[Assignment]:
        """The parts of levels (B, C, H, W), each (B, H, W) instead of (B, N)."""
        sizes = [level.shape[2] * level.shape[3] for level in levels]
        parts = zip(*(whole.split(sizes, dim=1) for whole in self), strict=True)
        return [
            Assignment(*(part.unflatten(1, level.shape[2:]) for part in own))
            for level, own in zip(levels, parts, strict=True)
        ]


class TaskAlignedAssigner:
    """Targets ask for cells by what these predict: metric = score^alpha * CIoU^beta, with the score of their own class.

    Candidates of a target are the cells whose point lies inside its box, on every level; it asks for the `topk` of
    largest metric (above 0: a cell whose box does not overlap the target is never asked). A cell that several ask for
    answers for the one of largest CIoU, of all targets around its point, those that did not ask included. Of the cells
    that a target then has, `best` stay. They are to score metric * (its largest CIoU) / (its largest metric), so that
    the best-aligned is to score the best overlap.

    With `small_objects`, a side shorter than the finest stride counts as `WIDENED` of these strides, about the same
    centre, where candidates are looked for (only there): an object of 4 pixels has 2 x 2 cells then instead of perhaps
    none. YOLO26 has this under the name STAL, small-target-aware label assignment.

    The time goes with the pairs of targets and points inside them, which are visited `PAIRS` at a time, some 200 bytes
    each: beside maps no larger than the levels' box channels, a crowd of any size takes 60 MB. How many pairs there are
    must be known outside the GPU: one synchronisation, and another for the number of positive cells.

    Source: Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021, arXiv:2108.07755.

    Args:
        topk: cells that a target asks for.
        alpha, beta: powers of score and CIoU in the metric.
        best: cells of a target that stay, None for all.
        small_objects: whether small objects are widened.
    """

    def __init__(
        self,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        best: int | None = None,
        small_objects: bool = False,
    ) -> None:
        self.topk, self.alpha, self.beta, self.best, self.small_objects = topk, alpha, beta, best, small_objects

    @torch.no_grad()
    def on_levels(self, levels: Sequence[Tensor], strides: Tensor, num_classes: int, batch: Batch) -> Assignment:
        """Of raw levels (B, 4 * reg_max + C, H, W) with (L,) strides in pixels.

        Targets of unlabelled images are no targets. The levels' extent is that of the images: H * stride.
        """
        boxes = [decode(level[:, :-num_classes], stride) for level, stride in zip(levels, strides, strict=True)]
        return self.assign([level[:, -num_classes:] for level in levels], boxes, strides, batch)

    @torch.no_grad()
    def assign(self, logits: Sequence[Tensor], boxes: Sequence[Tensor], strides: Tensor, batch: Batch) -> Assignment:
        """Of class logits (B, C, H, W) and xyxy boxes (B, H, W, 4) in pixels, one a level."""
        targets = Targets.of(batch, logits[0].shape, strides[0])
        boxes = torch.cat([own.flatten(1, 2) for own in boxes], dim=1)  # (B, N, 4)
        if not len(targets.label):
            nobody = targets.image.new_zeros(0)
            return Assignment(*_maps(nobody, nobody, nobody, boxes.new_zeros(0), boxes.shape[:2]))
        owner = self._owners(logits, boxes, targets, Windows.of(targets, logits, strides, self.small_objects))

        # of the targets' classes alone, level after level: the levels are never copied
        label = targets.label[owner.clamp(min=0)].split([own[0, 0].numel() for own in logits], dim=1)
        chosen = [own.flatten(2).gather(1, wanted[:, None]) for own, wanted in zip(logits, label, strict=True)]
        image, cell = (owner >= 0).nonzero(as_tuple=True)
        target = owner[image, cell]  # (M,), as the next two
        overlap = _ciou(boxes[image, cell], targets.boxes[target])
        metric = self._metric(torch.cat(chosen, dim=2)[image, 0, cell], overlap)
        if self.best is not None:
            stay = _ranks(metric, target) < self.best
            image, cell, target, overlap, metric = (x[stay] for x in (image, cell, target, overlap, metric))
        score = metric * _largest(overlap, target, targets) / (_largest(metric, target, targets) + TINY)
        return Assignment(*_maps(image, cell, target, score, owner.shape))

    def _metric(self, logits: Tensor, overlap: Tensor) -> Tensor:
        """(...) logits of the target's class and overlaps with it -> (...) how well both are aligned.

        0 without an overlap, even where overlaps do not count (`beta` 0).
        """
        return (logits.float().sigmoid() ** self.alpha * overlap**self.beta).masked_fill(overlap <= 0, 0)

    def _owners(self, logits: Sequence[Tensor], boxes: Tensor, targets: Targets, windows: Windows) -> Tensor:
        """(B, N) the number of the target for which each cell answers, -1 for none."""
        images, cells = boxes.shape[:2]
        asked = torch.zeros(images * cells, dtype=torch.long, device=boxes.device)
        asked_by, nearest = torch.full_like(asked, -1), torch.zeros_like(asked)
        for asking, widths in windows.parts():
            image, number = targets.image[asking, None], asking[:, None]
            place, score, within = _look(logits, windows, asking, widths, targets)
            place = place + image * cells  # (T, K), as all of the next
            overlap = _ciou(boxes.flatten(0, 1)[place], targets.boxes[number]) * within
            metric = self._metric(score, overlap)

            top = metric.topk(min(self.topk, metric.shape[1]))
            taken, takes = place.gather(1, top.indices).flatten(), top.values > 0
            asked.scatter_add_(0, taken, takes.flatten().long())
            asked_by.scatter_reduce_(0, taken, torch.where(takes, number, -1).flatten(), "amax")
            # an overlap is not negative, so its bits, read as a whole number, are in order; below stands the target's
            # number, so that the first of equals wins
            ticket = (overlap.view(torch.int32).long() << 32) | (LAST - number)
            nearest.scatter_reduce_(0, place.flatten(), ticket.flatten(), "amax")
        return torch.where(asked > 1, LAST - (nearest & LAST), asked_by).view(images, cells)


class Targets(NamedTuple):
    """Of a batch, N of them."""

    image: Tensor  # (N,) long
    label: Tensor  # (N,) long: class
    boxes: Tensor  # (N, 4) xyxy, pixels
    counts: Tensor  # (N,) bool: its image is labelled

    @classmethod
    def of(cls, batch: Batch, shape: torch.Size, stride: Tensor) -> Targets:
        """Of images that a level (B, C, H, W) covers."""
        rows = batch.targets.float()
        image, label = rows[:, :2].long().unbind(-1)
        size = rows.new_tensor((shape[3], shape[2]) * 2) * stride
        return cls(image, label, xywh_to_xyxy(rows[:, 2:] * size), batch.labelled[image])


class Windows(NamedTuple):
    """The cells whose points lie inside targets: a rectangle on each level."""

    first: Tensor  # (N, L, 2) long: column and row
    sides: Tensor  # (N, L, 2) long: columns and rows

    @classmethod
    def of(cls, targets: Targets, levels: Sequence[Tensor], strides: Tensor, small_objects: bool = False) -> Windows:
        """On levels (B, C, H, W) with (L,) strides; no cells for targets of unlabelled images."""
        corners = targets.boxes.view(-1, 1, 2, 2)
        if small_objects:
            corners = _widened(corners, strides[0])
        start, stop = (corners / strides[:, None, None]).unbind(2)  # (N, L, 2) in cells
        most = torch.tensor([level.shape[:1:-1] for level in levels], device=start.device)  # (L, 2) columns and rows
        # the points, at halves, that lie between both, not on them
        first = (start + 0.5).floor().long().clamp(min=0)
        sides = (stop - 0.5).ceil().long().minimum(most) - first
        return cls(first, sides.clamp(min=0) * targets.counts[:, None, None])

    def parts(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Targets that have cells, about `PAIRS` pairs at a time: their (T,) numbers, and the most cells on each level.

        Those with most cells come first, so that rows of equal length are hardly padded.
        """
        pairs = self.sides.prod(dim=-1)  # (N, L)
        order = pairs.sum(dim=1).argsort(descending=True)
        known = pairs[order].cpu()
        totals = known.sum(dim=1).tolist()
        start, end = 0, len(totals) - totals.count(0)
        while start < end:
            stop = min(end, start + max(1, PAIRS // totals[start]))
            yield order[start:stop], known[start:stop].amax(dim=0).tolist()
            start = stop


def decode(rows: Tensor, stride: Tensor) -> Tensor:
    """(B, 4 * reg_max, H, W) raw sides -> (B, H, W, 4) xyxy boxes in pixels, float32."""
    logits = rows.float().unflatten(1, (4, -1)).movedim((1, 2), (3, 4))  # (B, H, W, 4, reg_max)
    points = cell_points(*rows.shape[2:], device=rows.device)
    return around(points, expected_distances(logits)) * stride


def _look(
    logits: Sequence[Tensor], windows: Windows, asking: Tensor, widths: Sequence[int], targets: Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """What T targets see in their windows: (T, K) each: cells of their image, their logits, whether they are there.

    Windows smaller than `widths`, the largest of each level, are filled up with their first cell.
    """
    image, label = targets.image[asking, None], targets.label[asking, None]
    places, scores, within, before = [], [], [], 0
    for number, (own, width) in enumerate(zip(logits, widths, strict=True)):
        rows, columns = own.shape[2:]
        (column, row), (across, down) = (x[asking, number].unbind(-1) for x in windows)  # (T,) each
        place = torch.arange(width, device=own.device).expand(len(asking), width)
        inside = place < (across * down)[:, None]
        step = place.div(across.clamp(min=1)[:, None], rounding_mode="floor") * inside
        column = (column[:, None] + (place - step * across[:, None]) * inside).clamp(max=columns - 1)
        row = (row[:, None] + step).clamp(max=rows - 1)
        places.append(before + row * columns + column)
        scores.append(own[image, label, row, column])
        within.append(inside)
        before += rows * columns
    return torch.cat(places, dim=1), torch.cat(scores, dim=1), torch.cat(within, dim=1)


def _widened(corners: Tensor, stride: Tensor) -> Tensor:
    """(..., 2, 2) first and last corners -> the same, sides shorter than a stride made `WIDENED` strides long."""
    start, stop = corners.unbind(-2)
    centre, half = (start + stop) / 2, WIDENED * stride / 2
    short = stop - start < stride
    return torch.stack((torch.where(short, centre - half, start), torch.where(short, centre + half, stop)), dim=-2)


def _ciou(boxes: Tensor, others: Tensor) -> Tensor:
    return bbox_iou(boxes, others, kind="ciou", form="xyxy").clamp(min=0)


def _largest(values: Tensor, target: Tensor, targets: Targets) -> Tensor:
    """(M,) the largest value that each one's target has, the values being at least 0."""
    largest = values.new_zeros(len(targets.label)).scatter_reduce_(0, target, values, "amax")
    return largest[target]


def _ranks(values: Tensor, target: Tensor) -> Tensor:
    """(M,) how many of the same target have a larger value."""
    order = values.argsort(descending=True, stable=True)
    order = order[target[order].argsort(stable=True)]  # target after target, the largest first
    place = torch.arange(len(order), device=order.device)
    starts = torch.where(target[order].diff(prepend=target.new_full((1,), -1)) != 0, place, 0)
    return torch.empty_like(order).scatter_(0, order, place - starts.cummax(dim=0).values)


def _maps(
    image: Tensor, cell: Tensor, target: Tensor, score: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) each -> (B, N) each, the fields of `Assignment`."""
    owners = target.new_full(shape, -1).index_put_((image, cell), target)
    return owners >= 0, owners, score.new_zeros(shape).index_put_((image, cell), score)
