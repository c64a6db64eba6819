"""Test-time augmentation: the image at three sizes, one of them mirrored; all detections together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.types import Prediction

if TYPE_CHECKING:
    from models.yolo import Model

SMALLER = ((0.83, True), (0.67, False))  # scale, mirrored; after the image as it is
PADDING = 0.447  # about the mean of ImageNet, which a model takes for nothing


def augmented(model: Model, images: Tensor, prediction: Prediction) -> Tensor:
    """Detections (B, N, 5 + C) of the images as they are (`prediction`), at 0.83 mirrored, and at 0.67.

    Boxes come out in pixels of `images`. As in YOLOv5, the largest cells of the full size and the smallest of the
    smallest are left out: the other sizes see such objects better.
    """
    head = model.head
    height, width = images.shape[2:]
    passes = [_without_level(head.decode(prediction.levels), prediction, -1)]
    for scale, mirrored in SMALLER:
        shape = (int(height * scale), int(width * scale))
        source = images.flip(3) if mirrored else images
        smaller = _padded(F.interpolate(source, shape, mode="bilinear", align_corners=False), model.stride)
        seen: Prediction = model(smaller)
        decoded = head.decode(seen.levels)
        passes.append(_restored(decoded, shape, (height, width), mirrored))
    passes[-1] = _without_level(passes[-1], seen, 0)
    return torch.cat(passes, dim=1)


def _padded(images: Tensor, stride: int) -> Tensor:
    """To multiples of the stride, on the right and below."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), value=PADDING)


def _restored(decoded: Tensor, shape: tuple[int, int], original: tuple[int, int], mirrored: bool) -> Tensor:
    """Boxes of a resized, perhaps mirrored image in pixels of the original."""
    ratio_y, ratio_x = original[0] / shape[0], original[1] / shape[1]
    x, y, w, h, scores = decoded.split((1, 1, 1, 1, decoded.shape[-1] - 4), dim=-1)
    x = x * ratio_x
    if mirrored:
        x = original[1] - x
    return torch.cat((x, y * ratio_y, w * ratio_x, h * ratio_y, scores), dim=-1)


def _without_level(decoded: Tensor, prediction: Prediction, left_out: int) -> Tensor:
    """Decoded rows but those of one level (0 or -1). A single level is kept."""
    # (B, A, H, W, 5 + C) with anchors, (B, channels, H, W) without
    rows = [level[0, ..., 0].numel() if level.ndim == 5 else level[0, 0].numel() for level in prediction.levels]
    if len(rows) == 1:
        return decoded
    return decoded[:, rows[0] :] if left_out == 0 else decoded[:, : -rows[-1]]
