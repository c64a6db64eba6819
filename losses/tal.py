"""The detection loss of heads without anchors (YOLOv8 and later)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.assignment import Assignment, TaskAlignedAssigner
from losses.terms import bbox_iou, distribution_focal
from utils.boxes import around, cell_points, expected_distances, xywh_to_xyxy
from utils.family import ANCHOR_FREE, box_gain
from utils.types import Batch, Prediction, Progress

if TYPE_CHECKING:
    from utils.hyp import Hyp

ONE_TO_ONE = {"topk": 1}  # YOLOv10
ONE_TO_ONE_DIRECT = {"topk": 7, "best": 1}  # YOLO26: with distances that are put out directly
ONE_TO_MANY_AT_FIRST, ONE_TO_MANY_AT_LAST = 0.8, 0.1  # YOLO26: weights of the branch over a run


class AnchorFreeHead(Protocol):
    """What the loss reads from a detection head."""

    num_classes: int
    strides: Tensor  # (L,) pixels
    reg_max: int  # bins a distance; 1: the distance itself
    two_branches: bool  # one-to-one beside one-to-many
    nms_free: bool  # of its branches the one-to-one is in use


class Gains(NamedTuple):
    """Weights of the three terms."""

    box: float
    cls: float
    dfl: float


class TaskAlignedLoss(nn.Module):
    """Box (CIoU), class (binary cross-entropy) and distance terms of heads without anchors; the shelf's contract.

    Each term is a sum over cells, divided by the sum of all scores that the assignment demands, at least 1: by the
    worth of all positives of the labelled images, rather than their number. A positive cell's box and distances count
    by that score, and it is what the cell's class is to have; all other classes, of all cells, are to have 0.

    "dfl" is the focal loss of the distributions of distances (`distribution_focal`), or where the head puts out the
    distances themselves (`reg_max` 1) their L1 error, as share of the image's width and height, a mean over the sides.

    A head with two branches puts out both in training, and both are judged; in evaluation it puts out one, which is
    judged alone. The one-to-one branch has its own assignment, one cell a target, of the best (YOLOv10), or of seven
    those that no other target wants, then the best (YOLO26: `reg_max` 1). The branches of YOLOv10 count alike; in
    YOLO26 the one-to-many weight falls from 0.8 in the first epoch to 0.1 in the last, and the other is the rest to 1.

    The recipe's gains are taken as they are, whatever the number of classes or levels. What it says of anchors,
    objectness, focal loss, positive weights and label smoothing has no meaning here.

    Sources: Feng et al., "TOOD", ICCV 2021, arXiv:2108.07755; Li et al., "Generalized Focal Loss", NeurIPS 2020,
    arXiv:2006.04388; Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", NeurIPS 2024, arXiv:2405.14458.
    """

    one_to_many_weight: Tensor

    def __init__(self, head: AnchorFreeHead, hyp: Hyp, image_size: tuple[int, int]) -> None:
        super().__init__()
        self._head = (head,)  # nn.Module does not look into tuples: the head stays the model's alone
        self.gains = Gains(box_gain(hyp, ANCHOR_FREE), hyp.cls, hyp.dfl)
        common = {"alpha": hyp.tal_alpha, "beta": hyp.tal_beta, "small_objects": hyp.small_objects}
        self.shifts = head.two_branches and head.reg_max == 1  # from one branch to the other during the run
        self.one_to_many = TaskAlignedAssigner(hyp.tal_topk, **common)
        self.one_to_one = TaskAlignedAssigner(**(ONE_TO_ONE_DIRECT if self.shifts else ONE_TO_ONE), **common)
        # not saved: it depends on the progress alone
        self.register_buffer("one_to_many_weight", torch.tensor(ONE_TO_MANY_AT_FIRST), persistent=False)

    def at(self, progress: Progress) -> None:
        """Constant within an epoch."""
        done = progress.epoch / max(1, progress.epochs - 1)
        self.one_to_many_weight.fill_(ONE_TO_MANY_AT_FIRST + (ONE_TO_MANY_AT_LAST - ONE_TO_MANY_AT_FIRST) * done)

    def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(prediction.levels[0].device.type, enabled=False):
            one_to_one = bool(prediction.aux) or self._head[0].nms_free
            terms = self.judge(prediction.levels, self.one_to_one if one_to_one else self.one_to_many, batch)
            if prediction.aux:
                many, one = self.weights()
                terms = one * terms + many * self.judge(prediction.aux, self.one_to_many, batch)
        return {name: gain * term for (name, gain), term in zip(self.gains._asdict().items(), terms, strict=True)}

    def weights(self) -> tuple[Tensor | float, Tensor | float]:
        """Of the one-to-many and of the one-to-one branch."""
        return (self.one_to_many_weight, 1 - self.one_to_many_weight) if self.shifts else (1.0, 1.0)

    def judge(self, levels: Sequence[Tensor], assigner: TaskAlignedAssigner, batch: Batch) -> Tensor:
        """(3,) the terms of a branch, (B, 4 * reg_max + C, H, W) a level, before gains and weights."""
        head = self._head[0]
        assignment = assigner.on_levels([level.detach() for level in levels], head.strides, head.num_classes, batch)
        parts = zip(levels, assignment.on_levels(levels), strict=True)
        sums = torch.stack([self.sums(level, own, batch) for level, own in parts]).sum(dim=0)
        return sums / assignment.score.sum().clamp(min=1)

    def sums(self, level: Tensor, own: Assignment, batch: Batch) -> Tensor:
        """(3,) the terms of a level, sums over its cells; its part of the assignment is (B, H, W)."""
        num_classes = self._head[0].num_classes
        sides, logits = level.split((level.shape[1] - num_classes, num_classes), dim=1)
        image, row, column = own.positive.nonzero(as_tuple=True)  # (M,)
        target, score = own.target[image, row, column], own.score[image, row, column]

        size = score.new_tensor(level.shape[:1:-1] * 2)  # columns, rows, columns, rows
        boxes = xywh_to_xyxy(batch.targets[target, 2:].float() * size)  # in cells
        points = cell_points(*level.shape[2:], device=level.device)[row, column]
        # float32 from here on; all other cells are never copied
        rows = sides[image, :, row, column].float().unflatten(1, (4, self._head[0].reg_max))
        miss, spread = compared(rows, points, boxes, size)

        label = batch.targets[target, 1].long()
        classes = cross_entropies(logits, batch.labelled) - score @ logits[image, label, row, column].float()
        return torch.stack((score @ miss, classes, score @ spread))


def compared(rows: Tensor, points: Tensor, boxes: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """What cells predict and their targets -> (M,) 1 - CIoU, and (M,) how far off the distances are.

    Args:
        rows: (M, 4, reg_max) raw sides.
        points: (M, 2) of the cells.
        boxes: (M, 4) xyxy of the targets; all in cells.
        size: (4,) columns and rows of the map, twice.
    """
    distances = expected_distances(rows)
    miss = 1 - bbox_iou(around(points, distances), boxes, kind="ciou", form="xyxy")
    wanted = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=-1)
    if rows.shape[2] > 1:
        return miss, distribution_focal(rows, wanted)
    return miss, ((distances - wanted) / size).abs().mean(dim=-1)


def cross_entropies(logits: Tensor, labelled: Tensor) -> Tensor:
    """(B, C, H, W) -> scalar, the sum of binary cross-entropies with 0 over labelled images.

    That with y is less by y * logit: with hardly any y above 0 it takes no map of them.
    """
    return F.softplus(logits.float()).sum(dim=(1, 2, 3)) @ labelled.float()
