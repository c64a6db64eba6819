"""What a teacher's head says, put into the words of the student's: its anchors, its grid, its pixels."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.levels import by_stride
from distill.outputs.base import head_strides
from distill.outputs.view import has_anchors
from utils.errors import UserError
from utils.types import Prediction

log = logging.getLogger(__name__)

TOLERANCE = 0.01  # relative, between anchors that count as equal: checkpoints in half precision round theirs


class _Level(NamedTuple):
    """A level of the student and the teacher's of the same stride."""

    student: int
    teacher: int
    nearest: Tensor  # (A,) for each anchor of the student, the teacher's that is most like it
    same_anchors: bool


class Translator:
    """Turns the teacher's raw levels into what the student's head would have to say to mean the same.

    Levels are matched by stride. Then, one by one,

    - each anchor of the student takes the predictions of the teacher's anchor that is nearest by shape IoU, both in
      pixels of the student's images;
    - where the teacher saw images of another size, each cell of the student takes, for each anchor, the prediction of
      highest objectness among the teacher's cells that it covers or touches;
    - boxes are decoded by the teacher's head, scaled to the student's images, and encoded by the student's; what that
      cannot express becomes the nearest that it can (`encode_boxes`).

    Objectness and classes are handed on as they are. Where anchors and grids are the same, so are the tensors.

    Where a head has no anchors there is nothing to translate: cells of one stride are the same, and what is compared in
    them is read by `distill.outputs.view`. Both sides must then see images of one size.

    Which anchor takes from which is settled here, once: make it after the anchors are fitted to the data.

    Args:
        student_head, teacher_head: both on the device on which predictions come. This is no nn.Module, so that neither
            is registered with whoever holds it.
        image_scale: height and width of the teacher's images, in those of the student's; see `Teacher.image_scale`.
            It decides which anchors are alike; the exact factor of each batch follows from the grids.

    Raises:
        UserError: no stride is common to both; a head has no anchors and the images differ in size.
    """

    def __init__(self, student_head: Any, teacher_head: Any, image_scale: tuple[float, float] = (1.0, 1.0)) -> None:
        self.heads = (student_head, teacher_head)
        strides = head_strides(student_head)
        self.level_pairs = by_stride(strides, head_strides(teacher_head))  # student level, teacher level
        self._levels: list[_Level] = []
        if not has_anchors(student_head) or not has_anchors(teacher_head):
            _require_one_size(student_head, teacher_head, image_scale)
            return
        for own, other in self.level_pairs:
            level = _matched(own, other, student_head, teacher_head, image_scale)
            self._levels.append(level)
            if not level.same_anchors or image_scale != (1.0, 1.0):
                _report(strides[own], level, student_head, teacher_head, image_scale)

    @torch.no_grad()
    def translate(self, taught: Prediction, student: Prediction) -> Prediction:
        """The teacher's prediction in the student's words, in the teacher's number format.

        Args:
            taught: (B, A', H', W', 5 + C) a level of the teacher.
            student: (B, A, H, W, ...) a level of the student; only H and W count.

        Returns:
            (B, A, H, W, 5 + C) in the teacher's order of levels; those that the student does not have stay as they
            are, as does `aux`, and everything where a head has no anchors.
        """
        levels = list(taught.levels)
        for level in self._levels:
            height, width = student.levels[level.student].shape[2:4]
            levels[level.teacher] = self._level(level, levels[level.teacher], (height, width))
        return taught._replace(levels=tuple(levels))

    def _level(self, level: _Level, taught: Tensor, grid: tuple[int, int]) -> Tensor:
        same_grid = tuple(taught.shape[2:4]) == grid
        if same_grid and level.same_anchors:
            return taught
        student_head, teacher_head = self.heads
        nearest = level.nearest.to(taught.device)
        boxes = teacher_head.decode_boxes(level.teacher, taught)  # (B, A', H', W', 4) float32
        if same_grid:
            boxes, taught = boxes[:, nearest], taught[:, nearest]
        else:
            (height, width), (rows, columns) = taught.shape[2:4], grid
            boxes = boxes * boxes.new_tensor([columns / width, rows / height] * 2)
            boxes, taught = _take((boxes, taught), _most_certain(taught, nearest, grid))
        logits = student_head.encode_boxes(level.student, boxes).to(taught.dtype)
        return torch.cat((logits, taught[..., 4:]), dim=-1)


def nearest_anchors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """For each anchor of the student, the teacher's that is most like it, and how like: (A,) long, (A,) shape IoU.

    Shape IoU is the IoU of two boxes around one centre.

    Args:
        student, teacher: (A, 2) and (A', 2) widths and heights, in one unit.
    """
    inner = torch.minimum(student[:, None], teacher).prod(dim=-1)  # (A, A')
    overlap = inner / (student.prod(dim=-1)[:, None] + teacher.prod(dim=-1) - inner)
    best = overlap.max(dim=1)
    return best.indices, best.values


def _require_one_size(student_head: Any, teacher_head: Any, image_scale: tuple[float, float]) -> None:
    """Raises UserError unless cells of student and teacher are the same; says in the log which side has fewer."""
    if image_scale != (1.0, 1.0):
        who, head = ("student", student_head) if not has_anchors(student_head) else ("teacher", teacher_head)
        raise UserError(
            f"--t_imgsz: outputs of the {who}'s head ({type(head).__name__}), which has no anchors, are compared cell "
            "by cell, so student and teacher must see images of one size; leave --t_imgsz out, or distil features only "
            "(outputs: {})"
        )
    if has_anchors(student_head) != has_anchors(teacher_head):
        who = "student" if has_anchors(student_head) else "teacher"
        log.info("of the %s's anchors, the one of the highest score speaks for its cell", who)


def _matched(own: int, other: int, student_head: Any, teacher_head: Any, image_scale: tuple[float, float]) -> _Level:
    student, teacher = student_head.anchors_px[own].float(), teacher_head.anchors_px[other].float()
    same = student.shape == teacher.shape and torch.allclose(student, teacher, rtol=TOLERANCE)
    nearest, _ = nearest_anchors(student, _in_student_pixels(teacher, image_scale))
    return _Level(own, other, nearest, same)


def _in_student_pixels(anchors: Tensor, image_scale: tuple[float, float]) -> Tensor:
    """(A, 2) widths and heights in pixels of the teacher's images, in pixels of the student's."""
    height, width = image_scale
    return anchors / anchors.new_tensor([width, height])


def _report(stride: int, level: _Level, student_head: Any, teacher_head: Any, image_scale: tuple[float, float]) -> None:
    student = student_head.anchors_px[level.student].float()
    teacher = _in_student_pixels(teacher_head.anchors_px[level.teacher].float(), image_scale)
    _, overlap = nearest_anchors(student, teacher)
    pairs = zip(student.tolist(), teacher[level.nearest].tolist(), overlap.tolist(), strict=True)
    log.info(
        "stride %d: student anchors take the teacher's nearest%s: %s",
        stride,
        "" if image_scale == (1.0, 1.0) else " (in pixels of the student's images)",
        "  ".join(f"{w:.4g},{h:.4g} <- {tw:.4g},{th:.4g} (IoU {iou:.2f})" for (w, h), (tw, th), iou in pairs),
    )


def _most_certain(taught: Tensor, nearest: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, A, H, W) which of the teacher's A' * H' * W' predictions has the highest objectness where a cell looks."""
    objectness = taught[..., 4].float()[:, nearest]  # (B, A, H', W')
    _, cells = F.adaptive_max_pool2d(objectness, grid, return_indices=True)  # of the H' * W' cells of one anchor
    return cells + (nearest * taught.shape[2] * taught.shape[3])[:, None, None]


def _take(maps: tuple[Tensor, ...], positions: Tensor) -> tuple[Tensor, ...]:
    """Whole vectors of (B, A', H', W', n) maps at (B, A, H, W) positions -> (B, A, H, W, n) each."""
    flat = positions.flatten(1)[..., None]  # (B, A * H * W, 1)
    rows = [level.flatten(1, 3) for level in maps]
    return tuple(row.gather(1, flat.expand(-1, -1, row.shape[-1])).unflatten(1, positions.shape[1:]) for row in rows)
