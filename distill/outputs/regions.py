"""Where boxes are worth learning: cells that answer for an object, and cells around it that know its edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.matching import PAIRS
from losses.terms import bbox_iou
from utils.boxes import cell_points
from utils.types import Batch

PRIOR = 8.0  # strides: side of the square that stands for a cell, as the anchors of ATSS and GFL
NEAREST = 9  # cells of each level in the statistics of a target, as in ATSS


@torch.no_grad()
def valuable_region(grids: Sequence[tuple[int, int]], strides: Sequence[int], batch: Batch, gamma: float) -> Tensor:
    """(B, N) bool: cells that lie near enough to a target to know its edges, and too far off to answer for it.

    Those whose overlap (DIoU) with a target is at least `gamma` times the target's positive threshold and below that.
    Heads without anchors have neither, so they are taken from the assignment that the paper's detector is trained with
    (ATSS): a square of 8 strides stands for a cell, and a target's threshold is the mean plus the standard deviation of
    the overlaps (IoU) with the 9 nearest cells of each level. Unlabelled images have no targets.

    Sources: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, arXiv:2102.12252; Zhang
    et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection", CVPR 2020, arXiv:1912.02424.

    Args:
        grids: height and width of each level, N cells together, level after level, row after row.
        strides: of each level, pixels.
    """
    targets = batch.targets.float()
    image = targets[:, 0].long()
    priors = [_priors(grid, stride, targets.device) for grid, stride in zip(grids, strides, strict=True)]
    (height, width), stride = grids[0], strides[0]
    boxes = targets[:, 2:] * targets.new_tensor([width, height] * 2) * stride  # pixels
    cells = sum(len(level) for level in priors)
    found = targets.new_zeros(len(batch.labelled), cells)
    for start in range(0, len(targets), max(1, PAIRS // cells)):
        part = slice(start, start + max(1, PAIRS // cells))
        counts = batch.labelled[image[part], None]
        found.index_add_(0, image[part], (_around(boxes[part], priors, gamma) & counts).float())
    return found > 0


def _priors(grid: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """(H * W, 4) xywh in pixels."""
    centres = cell_points(*grid, device=device).flatten(0, 1)
    return torch.cat((centres, torch.full_like(centres, PRIOR)), dim=-1) * stride


def _around(boxes: Tensor, priors: Sequence[Tensor], gamma: float) -> Tensor:
    """(M, 4) targets, xywh in pixels -> (M, N) bool."""
    nearest = torch.cat([_nearest_overlaps(boxes, level) for level in priors], dim=-1)
    threshold = (nearest.mean(dim=-1) + nearest.std(dim=-1, correction=0))[:, None]
    overlap = bbox_iou(boxes[:, None], torch.cat(tuple(priors)), kind="diou")
    return (overlap >= gamma * threshold) & (overlap < threshold) & (threshold > 0)


def _nearest_overlaps(boxes: Tensor, priors: Tensor) -> Tensor:
    """IoU of (M, 4) targets with the 9 cells of a level whose centres are nearest, or all if there are fewer."""
    distance = (boxes[:, None, :2] - priors[:, :2]).square().sum(dim=-1)
    nearest = distance.topk(min(NEAREST, len(priors)), dim=-1, largest=False).indices  # (M, 9)
    return bbox_iou(boxes[:, None], priors[nearest])
