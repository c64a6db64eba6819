"""The anchors that a run starts with: the head's own, or better ones estimated from the labels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from data.anchors import check_anchors, kmeans_anchors

if TYPE_CHECKING:
    from data.dataset import LabelledImages
    from models.heads.anchor import Detect

log = logging.getLogger(__name__)

RECALL = 0.98  # below this share of reachable boxes, anchors are estimated from the labels


def fit_anchors(head: Detect, images: LabelledImages, image_size: tuple[int, int], threshold: float, seed: int) -> bool:
    """Overwrites the head's anchors where they reach too few boxes, or only hold the place of estimated ones.

    Args:
        threshold: hyp anchor_t.

    Returns:
        Whether they were overwritten.
    """
    labels, shapes = images.labels, images.shapes
    check = check_anchors(labels, shapes, head.anchors_px.cpu().numpy(), image_size, threshold)
    if not head.provisional:
        log.info(
            "anchors: best possible recall %.4f, %.2f anchors a box within the threshold",
            *(check.recall, check.anchors_above_threshold),
        )
        if check.recall >= RECALL:
            return False
    found = kmeans_anchors(labels, shapes, head.num_levels * head.num_anchors, image_size, threshold, seed=seed)
    better = check_anchors(labels, shapes, found, image_size, threshold)
    if better.recall <= check.recall and not head.provisional:
        log.info("anchors: the labels suggest none that reach more; kept")
        return False
    by_area = torch.as_tensor(found, dtype=torch.float32).view(head.num_levels, head.num_anchors, 2)
    head.set_anchors_px(by_area[head.strides.argsort().argsort().cpu()])  # small ones to the fine level
    log.info("anchors: estimated from the labels, best possible recall %.4f: %s", better.recall, found.round().tolist())
    return True
