"""What detection losses are made of. Everything is element-wise: the caller decides what a mean is taken over."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-7  # of the published losses; the smallest that still changes a float32 near 1
BEFORE_LAST = 0.01  # bins: as far as distances go, so that there is always a bin above

IouKind = Literal["iou", "giou", "diou", "ciou"]


def bbox_iou(
    boxes: Tensor, others: Tensor, kind: IouKind = "iou", form: Literal["xywh", "xyxy"] = "xywh", eps: float = EPS
) -> Tensor:
    """Overlap of boxes with their counterparts: (..., 4) twice, broadcast -> (...).

    At most 1 for equal boxes; all but "iou" go below 0 for boxes far apart, and so have a gradient there.

    Sources: GIoU, Rezatofighi et al. 2019, arXiv:1902.09630; DIoU and CIoU, Zheng et al. 2020, arXiv:1911.08287.
    """
    left, top, right, bottom = _corners(boxes, form)
    other_left, other_top, other_right, other_bottom = _corners(others, form)
    width, height = right - left, bottom - top
    other_width, other_height = other_right - other_left, other_bottom - other_top

    shared_width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    shared_height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    shared = shared_width * shared_height
    union = width * height + other_width * other_height - shared + eps
    iou = shared / union
    if kind == "iou":
        return iou

    # the smallest box around both
    hull_width = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    hull_height = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
    if kind == "giou":
        hull = hull_width * hull_height + eps
        return iou - (hull - union) / hull

    diagonal = hull_width**2 + hull_height**2 + eps
    between = ((left + right - other_left - other_right) ** 2 + (top + bottom - other_top - other_bottom) ** 2) / 4
    distance = between / diagonal
    if kind == "diou":
        return iou - distance
    if kind != "ciou":
        raise ValueError(f"no overlap is called {kind!r}")

    angle = torch.atan(width / height.clamp(min=eps)) - torch.atan(other_width / other_height.clamp(min=eps))
    shape = 4 / math.pi**2 * angle**2
    with torch.no_grad():  # the paper's trade-off is a weight, not something to learn
        trade_off = shape / (shape - iou + 1 + eps)
    return iou - distance - trade_off * shape


def _corners(boxes: Tensor, form: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, right, bottom, (...) each."""
    first, second, third, fourth = boxes.unbind(-1)
    if form == "xyxy":
        return first, second, third, fourth
    return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2


def bce(
    logits: Tensor, targets: Tensor, positive_weight: float = 1.0, gamma: float = 0.0, alpha: float = 0.25
) -> Tensor:
    """Binary cross-entropy of every logit with its target in [0, 1], the same shape.

    Args:
        positive_weight: multiplies the part that pulls a logit up.
        gamma: of the focal loss, 0 for none: how much less the easy ones count.
        alpha: of the focal loss: the share of the positives, the negatives have `1 - alpha`.

    Source of the focal factor: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002.
    """
    weight = None if positive_weight == 1 else logits.new_full((1,), positive_weight)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
    if gamma == 0:
        return loss
    probability = logits.sigmoid()
    miss = targets * (1 - probability) + (1 - targets) * probability  # how far off, in [0, 1]
    balance = targets * alpha + (1 - targets) * (1 - alpha)
    # a power below 1 has no finite slope at 0, where a saturated sigmoid lands
    return loss * balance * miss.clamp(min=1e-8) ** gamma


def smoothed(epsilon: float) -> tuple[float, float]:
    """Targets of the right and of the wrong classes under label smoothing.

    Source: Szegedy et al. 2016, arXiv:1512.00567, in the binary form.
    """
    return 1 - epsilon / 2, epsilon / 2


def distribution_focal(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy of distributions over 0, 1 ... R - 1 with distances between them: (..., 4, R), (..., 4) -> (...).

    A distance is shared by the two bins beside it, the nearer has more. A mean over the four sides. What lies beyond
    the bins is drawn to just before the last one.

    Source: Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388.
    """
    distances = distances.clamp(0, logits.shape[-1] - 1 - BEFORE_LAST)
    lower = distances.long()
    share = (distances - lower)[..., None]  # of the bin above
    beside = torch.stack((lower, lower + 1), dim=-1)
    below, above = logits.log_softmax(dim=-1).gather(-1, beside).split(1, dim=-1)
    return -(below * (1 - share) + above * share).mean(dim=(-2, -1))
