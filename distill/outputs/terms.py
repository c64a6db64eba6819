"""What output losses are made of. Everything is element-wise or a row's: the caller decides what a mean is over."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import choice
from distill.temperature import Temperature
from losses.terms import IouKind, bbox_iou

# Two boxes without area have no overlap, equal or not, and a slope without bounds. In this unit what keeps an overlap
# finite, 1e-7, is nothing beside the smallest box.
THINNEST = 1e-4  # cells
UNIT = 1000  # to a cell
SHORT = 16  # numbers in a vector of the CPU
IOU_KINDS = ("iou", "giou", "diou", "ciou")


def iou_kind(where: str, value: object) -> IouKind:
    """One of the overlaps of `losses.terms.bbox_iou`. `where`: "output loss 'bckd': iou"."""
    return cast(IouKind, choice(where, value, IOU_KINDS))


def box_mismatch(student: Tensor, teacher: Tensor, kind: IouKind) -> Tensor:
    """1 - overlap of boxes: (M, 4) xywh in cells twice -> (M,)."""
    return 1 - bbox_iou(_overlapping_itself(student), _overlapping_itself(teacher), kind=kind)


def _overlapping_itself(boxes: Tensor) -> Tensor:
    """(M, 4) xywh in cells -> the same in units of `UNIT` to a cell, wide enough."""
    centres, sides = boxes.split(2, dim=-1)
    return UNIT * torch.cat((centres, sides.clamp(min=THINNEST)), dim=-1)


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Of each logit with the teacher's probability as its target."""
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")


def softmax_divergence(student: Tensor, teacher: Tensor, temperature: Temperature) -> Tensor:
    """KL divergence of softmaxes over the last axis, times the squared temperature: (..., K) logits twice -> (...)."""
    own, other = (_log_softmax(temperature.soften(x)) for x in (student, teacher))
    return temperature.value**2 * (other.exp() * (other - own)).sum(-1)


def _log_softmax(x: Tensor) -> Tensor:
    """Over the last axis. On a CPU torch's own takes ten times as long over an axis shorter than its vectors."""
    return x - x.logsumexp(-1, keepdim=True) if x.shape[-1] < SHORT else x.log_softmax(-1)
