"""The anchors that a run starts with: the head's own, or better ones from the labels or from its own predictions."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.anchors import Sides, box_sides, check_anchors, kmeans_anchors
from data.dataset import EvalImages
from data.loader import Loader
from data.sampler import EvalSampler, Rectangles, rectangles
from utils import dist
from utils.errors import UserError
from utils.nms import non_max_suppression

if TYPE_CHECKING:
    from data.dataset import LabelledImages
    from models.heads.anchor import Detect
    from models.yolo import Model

log = logging.getLogger(__name__)

RECALL = 0.98  # below this share of reachable boxes, anchors are estimated from the labels
CONFIDENCE = 0.25  # of the predicted boxes that count
OVERLAP = 0.45  # from which on two of them are one object
ENOUGH = 10  # predicted boxes for each anchor
MOST_IMAGES = 5000  # that are looked at: k-means needs no more boxes than these hold
BATCH = 16


def fit_anchors(
    model: Model,
    images: LabelledImages,
    image_size: tuple[int, int],
    threshold: float,
    seed: int,
    mode: str = "check",
    workers: int = 0,
) -> bool:
    """Overwrites the anchors of the model's head, on every rank alike.

    Args:
        threshold: hyp anchor_t.
        mode: "check" estimates them from the labels where they reach too few boxes, or only hold the place of estimated
            ones; "auto" does so always; "predicted" takes the boxes that the model itself finds in the images.
        workers: that load the images for "predicted".

    Returns:
        Whether they were overwritten.

    Raises:
        UserError: there are too few boxes.
    """
    head = model.head
    sides = box_sides(images.labels, images.shapes, image_size)
    check = check_anchors(sides, head.anchors_px.cpu().numpy(), threshold)
    if not head.provisional:
        log.info(
            "anchors: best possible recall %.4f, %.2f anchors a box within the threshold",
            *(check.recall, check.anchors_above_threshold),
        )
        if mode == "check" and check.recall >= RECALL:
            return False

    def estimate() -> NDArray[np.float64]:
        boxes = predicted_sides(model, images, image_size, seed, workers) if mode == "predicted" else sides
        return kmeans_anchors(boxes, head.num_levels * head.num_anchors, threshold, seed)

    found = dist.by_main(estimate)
    better = check_anchors(sides, found, threshold)
    if mode == "check" and better.recall <= check.recall and not head.provisional:
        log.info("anchors: the labels suggest none that reach more; kept")
        return False
    _set(head, found)
    log.info(
        "anchors: estimated from %s, best possible recall %.4f: %s",
        "the boxes that the student predicts" if mode == "predicted" else "the labels",
        *(better.recall, found.round().tolist()),
    )
    return True


def predicted_sides(
    model: Model, images: LabelledImages, image_size: tuple[int, int], seed: int, workers: int = 0
) -> Sides:
    """(N, 2) widths and heights of the boxes that the model is sure of, in pixels at `image_size`.

    The model stays as it is, and no other rank is needed.

    Raises:
        UserError: it finds too few to estimate anchors from.
    """
    head = model.head
    if head.provisional:
        raise UserError(
            f"--anchors predicted: of the student's anchors only the number ({head.num_anchors} a level) is known, so "
            "its boxes have no size yet; --anchors auto takes the labels"
        )
    running = copy.deepcopy(model).eval().fuse()
    device = next(running.parameters()).device
    plan = _plan(images, image_size, model.stride, seed)
    loader = Loader(
        EvalImages(images.labels, images.store, images.num_classes, images.view),
        EvalSampler(plan),
        stride=model.stride,
        image_size=image_size,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    found = [torch.zeros(0, 2)]
    with torch.no_grad():
        for batch in tqdm(loader, desc="predicting boxes", dynamic_ncols=True, unit="batch"):
            decoded = running.predict(batch.to(device).images)
            for boxes in non_max_suppression(decoded, CONFIDENCE, OVERLAP, multi_label=False):
                found.append((boxes[:, 2:4] - boxes[:, :2]).cpu())
    sides = torch.cat(found).double().numpy()
    _require_enough(len(sides), head.num_levels * head.num_anchors, sum(map(len, plan.batches)))
    return sides


def _plan(images: LabelledImages, image_size: tuple[int, int], stride: int, seed: int) -> Rectangles:
    """Batches of all images, or of as many as are looked at, drawn by chance."""
    chosen = np.arange(len(images))
    if len(chosen) > MOST_IMAGES:
        chosen = np.random.default_rng(abs(seed)).choice(chosen, MOST_IMAGES, replace=False)
    plan = rectangles(images.shapes[chosen], BATCH, image_size, stride, pad=0.5)
    return plan._replace(batches=[chosen[batch] for batch in plan.batches])


def _require_enough(boxes: int, anchors: int, images: int) -> None:
    if boxes < ENOUGH * anchors:
        raise UserError(
            f"--anchors predicted: the student finds {boxes} boxes with a confidence over {CONFIDENCE} in {images} "
            f"training images, and {anchors} anchors need {ENOUGH * anchors}; it must know these classes from its "
            "weights already. --anchors auto takes the labels"
        )


def _set(head: Detect, found: NDArray[np.float64]) -> None:
    by_area = torch.as_tensor(found, dtype=torch.float32).view(head.num_levels, head.num_anchors, 2)
    head.set_anchors_px(by_area[head.strides.argsort().argsort().cpu()])  # small ones to the fine level
