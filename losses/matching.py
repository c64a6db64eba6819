"""Who answers for which target: cells and anchors that are found from the targets alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses.terms import bbox_iou
from utils.boxes import cell_points
from utils.types import Batch

# The cell of a target's centre, then the nearest ones left, up, right, down. Half a cell is as far as they reach:
# a predicted centre lies within (-0.5, 1.5) of its cell.
REACH = 0.5
STEPS = ((0.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0))

# Predictions are compared with targets so many pairs at a time, 200 bytes each at most, so that a crowd of any size
# takes 50 MB. More at a time is slower where these no longer fit into the cache of a CPU.
PAIRS = 2**18


class Matches(NamedTuple):
    """Which cell and anchor of a level answers for which target, M pairs, in the order the last of which counts."""

    image: Tensor  # (M,) long, as the next five
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor  # its number in the batch
    label: Tensor  # class
    boxes: Tensor  # (M, 4) xywh in cells, the centre relative to the cell's upper left corner

    @classmethod
    def of(cls, targets: Tensor, target: Tensor, anchor: Tensor, cell: Tensor, shape: torch.Size) -> Matches:
        """Of (N, 6) targets, (M,) numbers of them and of anchors, and (M, 2) columns and rows."""
        centres, sides = in_cells(targets, shape)
        boxes = torch.cat((centres[target] - cell, sides[target]), dim=-1)
        image, label = targets[target, :2].long().unbind(-1)
        return cls(image, anchor, cell[:, 1], cell[:, 0], target, label, boxes)

    def cells(self, shape: torch.Size) -> Tensor:
        """(M,) positions in a flattened (B, A, H, W) map of this shape."""
        return ((self.image * shape[1] + self.anchor) * shape[2] + self.row) * shape[3] + self.column


class Matcher(nn.Module):
    """Matches by the ratio of sides.

    A target is matched with every anchor whose sides are within a factor `largest_ratio` of its own, in the cell of its
    centre and those neighbours whose border is nearer than `reach`, on every level where that holds. Unlabelled images
    have no targets.

    Args:
        reach: in cells; 0.5 are the two nearest neighbours, 1 all four.
    """

    steps: Tensor

    def __init__(self, largest_ratio: float, reach: float = REACH) -> None:
        super().__init__()
        self.largest_ratio = largest_ratio
        self.reach = reach
        self.register_buffer("steps", torch.tensor(STEPS) * reach, persistent=False)

    def forward(self, shape: torch.Size, anchors: Tensor, batch: Batch) -> Matches:
        """Of a level of shape (B, A, H, W, ...) with (A, 2) anchors in its cells."""
        height, width = shape[2:4]
        targets = batch.targets.float()
        centres, sides = in_cells(targets, shape)

        ratios = sides / anchors[:, None]  # (A, N, 2)
        fits = torch.maximum(ratios, 1 / ratios).amax(dim=-1) < self.largest_ratio
        # a centre just between two cells has its own cell twice: published, and so kept
        to_end = torch.stack((width - centres[:, 0], height - centres[:, 1]), dim=-1)
        before = (centres % 1 < self.reach) & (centres > 1)  # (N, 2): near to the left, upper neighbour, which exists
        after = (to_end % 1 < self.reach) & (to_end > 1)
        near = torch.cat((torch.ones_like(before[:, :1]), before, after), dim=-1).T  # (5, N) as STEPS

        wanted = near[:, None] & fits & batch.labelled[targets[:, 0].long()]  # (5, A, N)
        step, anchor, target = wanted.nonzero(as_tuple=True)
        return Matches.of(targets, target, anchor, _cell(centres[target] + self.steps[step], shape), shape)

    def on_levels(self, shapes: Sequence[torch.Size], anchors: Tensor, batch: Batch) -> list[Matches]:
        """Of all levels, with (L, A, 2) anchors."""
        return [self(shape, own, batch) for shape, own in zip(shapes, anchors, strict=True)]


class IouMatcher:
    """Matches by the overlap of shapes, as YOLOv3 in darknet's recipe.

    A target is matched with every anchor whose IoU with it, both put on one centre, exceeds `threshold`, and at least
    with the best one of all levels; always in the cell of its centre alone. Unlabelled images have no targets; what has
    no area is none.

    Source: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, arXiv:1804.02767 (there the best one only).
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def on_levels(self, shapes: Sequence[torch.Size], anchors: Tensor, batch: Batch) -> list[Matches]:
        """Of all levels of shape (B, A, H, W, ...), with (L, A, 2) anchors in their cells."""
        targets = batch.targets.float()
        sizes = [in_cells(targets, shape) for shape in shapes]
        overlaps = torch.stack([_shape_iou(sides, own) for (_, sides), own in zip(sizes, anchors, strict=True)])
        flat = overlaps.flatten(0, 1)  # (L * A, N)
        best, which = flat.max(dim=0)
        fits = (flat > self.threshold).scatter_(0, which[None], True)
        fits = (fits & (best > 0) & batch.labelled[targets[:, 0].long()]).view_as(overlaps)

        matches = []
        for shape, own, (centres, _) in zip(shapes, fits, sizes, strict=True):
            anchor, target = own.nonzero(as_tuple=True)
            matches.append(Matches.of(targets, target, anchor, _cell(centres[target], shape), shape))
        return matches


@torch.no_grad()
def overlapping(level: Tensor, anchors: Tensor, batch: Batch, threshold: float) -> Tensor:
    """(B, A, H, W) bool: predictions whose box overlaps any target of their image by more than `threshold` (IoU).

    For the k-th targets of all images at once, `PAIRS` at a time (or a whole level with one target an image).

    Args:
        level: (B, A, H, W, 4 or more) raw predictions.
        anchors: (A, 2) in cells.
    """
    boxes = decode(level[..., :4].float(), anchors[:, None, None])
    boxes[..., :2] += cell_points(*level.shape[2:4], device=level.device) - 0.5  # corners of the cells
    boxes = boxes.flatten(1, 3)  # (B, P, 4) xywh in cells
    targets = batch.targets.float()
    lists, counts = _one_list_an_image(targets[:, 0].long(), torch.cat(in_cells(targets, level.shape), -1), len(level))

    found = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=level.device)
    most, order = counts.sort(descending=True)
    for images, start, stop in _columns(most.tolist(), boxes.shape[1]):
        chosen = order[:images]
        iou = bbox_iou(boxes[chosen, :, None], lists[chosen, None, start:stop])  # (images, P, stop - start)
        found[chosen] |= (iou > threshold).any(dim=-1)
    return found.view(level.shape[:4])


def _one_list_an_image(image: Tensor, boxes: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """(N,) images and (N, 4) boxes -> (B, most, 4) boxes, zeros behind an image's last, and (B,) how many it has."""
    counts = torch.zeros(images, dtype=torch.long, device=image.device).scatter_add_(0, image, torch.ones_like(image))
    order = image.argsort(stable=True)
    image = image[order]
    number = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    lists = boxes.new_zeros(images, int(counts.amax()), 4)
    lists[image, number] = boxes[order]
    return lists, counts


def _columns(counts: list[int], rows: int) -> Iterator[tuple[int, int, int]]:
    """How to walk through lists of these lengths, longest first: (how many of them reach here, start, stop)."""
    start = 0
    while images := sum(count > start for count in counts):
        stop = min(counts[0], start + max(1, PAIRS // (images * rows)))
        yield images, start, stop
        start = stop


def in_cells(targets: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """(N, 6) targets -> their centres and their sides, (N, 2) each, in cells of a level of shape (B, A, H, W, ...)."""
    height, width = shape[2:4]
    centres = torch.stack((targets[:, 2] * width, targets[:, 3] * height), dim=-1)
    sides = torch.stack((targets[:, 4] * width, targets[:, 5] * height), dim=-1)
    return centres, sides


def decode(rows: Tensor, anchors: Tensor) -> Tensor:
    """(..., 5 + C) raw predictions and (..., 2) anchors -> (..., 4) xywh in the anchors' unit, relative to the cell."""
    centres = rows[..., :2].sigmoid() * 2 - REACH
    sides = (rows[..., 2:4].sigmoid() * 2) ** 2 * anchors
    return torch.cat((centres, sides), dim=-1)


def _cell(points: Tensor, shape: torch.Size) -> Tensor:
    """(M, 2) points in cells -> (M, 2) column and row; one on the right or lower border lies in the last cell."""
    height, width = shape[2:4]
    column, row = points.long().unbind(-1)
    return torch.stack((column.clamp(0, width - 1), row.clamp(0, height - 1)), dim=-1)


def _shape_iou(sides: Tensor, anchors: Tensor) -> Tensor:
    """(N, 2) and (A, 2) -> (A, N) overlaps on one centre; 0 for what has no area."""
    shared = torch.minimum(sides, anchors[:, None]).clamp(min=0).prod(dim=-1)
    return shared / (sides.prod(dim=-1) + anchors.prod(dim=-1)[:, None] - shared)
