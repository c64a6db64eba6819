"""Boxes: changes of form and of frame. Tensors of shape (..., 4), in whatever unit the caller has."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.types import Frame


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Left, top, right, bottom to centre and size."""
    first, last = boxes[..., :2], boxes[..., 2:4]
    return torch.cat(((first + last) / 2, last - first), dim=-1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """xyxy boxes cut at the borders of an image of this height and width."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), dim=-1).flatten(-2)


def to_original(boxes: Tensor, frame: Frame) -> Tensor:
    """xyxy pixels of the tensor to xyxy pixels of the original image, cut at its borders."""
    offset, scale = _placement(boxes, frame)
    return clip((boxes - offset) / scale, (frame.height, frame.width))


def to_tensor(boxes: Tensor, frame: Frame) -> Tensor:
    """xyxy pixels of the original image to xyxy pixels of the tensor."""
    offset, scale = _placement(boxes, frame)
    return boxes * scale + offset


def iou_matrix(boxes: Tensor, others: Tensor) -> Tensor:
    """Overlap of each xyxy box with each other: (N, 4) and (M, 4) -> (N, M) in [0, 1], 0 where both are empty.

    Float32 at least: areas are beyond the range of half precision.
    """
    boxes, others = (b.float() if b.dtype in (torch.float16, torch.bfloat16) else b for b in (boxes, others))
    first = torch.maximum(boxes[:, None, :2], others[:, :2])
    last = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    sides = (last - first).clamp(min=0)  # (N, M, 2)
    common = sides[..., 0] * sides[..., 1]
    area, other = ((corners[:, 2:] - corners[:, :2]).prod(dim=1) for corners in (boxes, others))
    return (common / (area[:, None] + other - common)).nan_to_num(0.0)


def cell_points(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Centres of a map's cells: (H, W, 2) of column + 0.5 and row + 0.5, in cells."""
    columns, rows = (torch.arange(count, device=device) + 0.5 for count in (width, height))
    return torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)), dim=-1)


def expected_distances(logits: Tensor) -> Tensor:
    """(..., 4, R) logits of distances 0, 1 ... R - 1 -> (..., 4), the expected distance of each side, in their type.

    With a single bin there is no distribution: its number is the distance itself.

    Source: Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388.
    """
    bins = logits.shape[-1]
    if bins == 1:
        return logits.squeeze(-1)
    with torch.autocast(logits.device.type, enabled=False):  # it would make 15.1 a 15.125
        return logits.softmax(dim=-1) @ torch.arange(bins, dtype=logits.dtype, device=logits.device)


def around(points: Tensor, distances: Tensor) -> Tensor:
    """Points (..., 2) and their distances (..., 4) to left, top, right, bottom -> xyxy boxes (..., 4)."""
    before, after = distances.split(2, dim=-1)
    return torch.cat((points - before, points + after), dim=-1)


def _placement(like: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Offset and scale of x, y, x, y."""
    offset = like.new_tensor((frame.offset_x, frame.offset_y) * 2)
    scale = like.new_tensor((frame.scale_x, frame.scale_y) * 2)
    return offset, scale
