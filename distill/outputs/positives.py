"""Losses that look at the cells which answer for an object."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.options import flag, not_negative, share, whole
from distill.outputs.base import Sides, head_strides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.view import Cells
from losses.assignment import TaskAlignedAssigner
from utils.boxes import cell_points, xywh_to_xyxy
from utils.types import Batch, Prediction

Level = tuple[Cells, Cells]  # student and teacher, one prediction a cell: (B, 1, H, W)


class PositivesLoss(CellsLoss):
    """Knows which cells of the student answer for an object.

    Those that task-aligned assignment gives to a target, as in the detection loss of heads without anchors, by what the
    student predicts at the moment. In images without labels they are those where the teacher's highest score is at
    least `threshold`. Of a cell with several anchors the strongest is meant.

    Args:
        assigner: see `task_aligned`.
        threshold: in [0, 1].
    """

    def __init__(self, sides: Sides, assigner: TaskAlignedAssigner, threshold: float) -> None:
        super().__init__(sides)
        self.threshold = share(f"{self.where}: threshold", threshold)
        self.assigner = assigner
        strides = head_strides(sides.student)
        self.strides = [strides[own] for own, _ in self.level_pairs]  # pixels

    @abstractmethod
    def compare(self, levels: Sequence[Level], positives: Sequence[Tensor], batch: Batch) -> Tensor:
        """Levels and (B, 1, H, W) bool, the cells of each that answer for an object -> scalar."""

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels -> scalar."""
        with torch.autocast(batch.images.device.type, enabled=False):
            levels = [(mine.strongest(), other.strongest()) for mine, other in self.views(student, taught)]
            return self.compare(levels, self._positives(levels, batch), batch)

    @torch.no_grad()
    def _positives(self, levels: Sequence[Level], batch: Batch) -> list[Tensor]:
        strides = batch.targets.new_tensor(self.strides)
        students = [float_level(mine) for mine, _ in levels]
        logits = [mine.scores()[:, 0].permute(0, 3, 1, 2) for mine in students]
        boxes = [_in_pixels(mine.boxes()[:, 0], stride) for mine, stride in zip(students, strides, strict=True)]
        assigned = self.assigner.assign(logits, boxes, strides, batch).on_levels(logits)
        labelled = batch.labelled[:, None, None, None]
        return [
            torch.where(labelled, own.positive[:, None], other.belief() >= self.threshold)
            for own, (_, other) in zip(assigned, levels, strict=True)
        ]

    def trusted(self, teacher: Cells) -> Tensor:
        """(B, 1, H, W) float: how much each cell of a level may teach."""
        belief = teacher.belief()
        return self.trust(belief, self.heard(teacher, belief > BACKGROUND))


def task_aligned(where: str, topk: int, alpha: float, beta: float, small_objects: bool) -> TaskAlignedAssigner:
    """The assigner of a user's options. `where`: "output loss 'localization'"."""
    return TaskAlignedAssigner(
        whole(f"{where}: tal_topk", topk),
        not_negative(f"{where}: tal_alpha", alpha),
        not_negative(f"{where}: tal_beta", beta),
        small_objects=flag(f"{where}: small_objects", small_objects),
    )


def chosen(levels: Sequence[Level], where: Sequence[Tensor]) -> Level:
    """The cells of all levels at which (B, 1, H, W) masks are True, M of them, of both sides."""
    pairs = [
        (mine.at(places), other.at(places))
        for (mine, other), places in zip(levels, (mask.nonzero(as_tuple=True) for mask in where), strict=True)
    ]
    (own, taught), *rest = pairs
    return own.join([mine for mine, _ in rest]), taught.join([other for _, other in rest])


def at(values: Sequence[Tensor], where: Sequence[Tensor]) -> Tensor:
    """(M,) what (B, 1, H, W) maps have at these places."""
    return torch.cat([own[mask] for own, mask in zip(values, where, strict=True)])


def float_level(cells: Cells) -> Cells:
    """All of a level, in float32; the same where it is."""
    if cells.rows.dtype == torch.float32:
        return cells
    result = copy.copy(cells)
    result.rows = cells.rows.float()
    return result


def _in_pixels(boxes: Tensor, stride: Tensor) -> Tensor:
    """(B, H, W, 4) xywh in cells, from each cell's corner -> xyxy in pixels."""
    corners = cell_points(boxes.shape[1], boxes.shape[2], boxes.device) - 0.5
    return xywh_to_xyxy(torch.cat((boxes[..., :2] + corners, boxes[..., 2:]), dim=-1)) * stride
