"""Anchor heads compared cell by cell: what is weighed, masked and averaged, whatever the distance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.options import flag
from distill.outputs.base import OutputLoss
from utils.types import Batch, Prediction

if TYPE_CHECKING:
    from distill.classes import ClassMap
    from losses.anchor import Gains


class Cells(NamedTuple):
    """Raw float32 logits of one level of one model. C: the classes that student and teacher share."""

    boxes: Tensor  # (B, A, H, W, 4)
    objectness: Tensor  # (B, A, H, W)
    classes: Tensor  # (B, A, H, W, C)


class Distance(NamedTuple):
    """How far student and teacher are apart in each cell, (B, A, H, W) each; None: not compared."""

    boxes: Tensor | None
    objectness: Tensor | None
    classes: Tensor | None


class CellwiseLoss(OutputLoss):
    """box gain * boxes + objectness gain * objectness + class gain * classes, of a distance that subclasses define.

    - Boxes and classes count as much as the teacher believes in an object there: a mean weighted by its sigmoid
      objectness, as the detection loss is a mean over matched cells. (Where it sees nothing at all the weights do not
      add up to 1, and the mean stays small instead of inflating noise.) Objectness is a mean over all cells.
    - Means run over the cells of all levels together, so a cell counts the same wherever it lies, which is what the
      per-level balance of the detection loss comes to; times the number of levels, for which gains are rescaled.
    - So a `weight` of 1 lets a term pull about as hard as its counterpart in the detection loss pulls when the
      distance is of the kind of a cross-entropy; squared differences of probabilities are some ten times weaker.

    Where class lists differ, a cell whose best class is none of the student's teaches nothing; and where the student
    has classes that the teacher does not know, the teacher's "nothing here" is not proof: objectness then counts as
    much as the teacher believes in an object, too. A student of one class has no class term: the detection loss does
    not train that logit either.

    Args:
        nms: of the teacher's predictions, only the one with the highest objectness among those of its class in the
            3x3 cells around it teaches (feature-map NMS; over all anchors of a level).
    """

    needs = ("objectness", "anchors")

    shared: Tensor  # (C',) bool: teacher classes that the student has
    student_classes: Tensor
    teacher_classes: Tensor

    def __init__(
        self,
        student_head: nn.Module,
        teacher_head: nn.Module,
        classes: ClassMap,
        gains: Gains,
        nms: bool = False,
    ) -> None:
        super().__init__(student_head, teacher_head, classes, gains)
        self.nms = flag(f"output loss {type(self).__name__}: nms", nms)
        shared = torch.zeros(classes.num_teacher, dtype=torch.bool)
        shared[list(classes.teacher)] = True
        self.register_buffer("shared", shared, persistent=False)
        self.register_buffer("student_classes", torch.tensor(classes.student), persistent=False)
        self.register_buffer("teacher_classes", torch.tensor(classes.teacher), persistent=False)

    @abstractmethod
    def distance(self, student: Cells, teacher: Cells) -> Distance:
        """How far both are apart in each cell: zero where they agree."""

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        totals, cells = [], 0
        for own, other in self._levels(student, taught):
            totals.append(self._level(own, other))
            cells += own[..., 4].numel()
        boxes, objectness, classes, belief = torch.stack(totals).sum(0)
        belief = belief.clamp(min=1)  # in cells
        gains = self.gains
        terms = (gains.box * boxes + gains.cls * classes) / belief + gains.obj * objectness / max(1, cells)
        return len(totals) * terms

    def _levels(self, student: Prediction, taught: Prediction) -> Iterator[tuple[Tensor, Tensor]]:
        for own, other in self.level_pairs:
            yield student.levels[own].float(), taught.levels[other].detach().float()

    def _level(self, own: Tensor, other: Tensor) -> Tensor:
        """Sums over one level: boxes, objectness, classes, and the belief that weighs boxes and classes."""
        student = Cells(own[..., :4], own[..., 4], self._shared(own[..., 5:], self.student_classes))
        teacher = Cells(other[..., :4], other[..., 4], self._shared(other[..., 5:], self.teacher_classes))
        heard = self._heard(other)
        belief = teacher.objectness.sigmoid() * heard  # (B, A, H, W)
        apart = self.distance(student, teacher)
        zero = own.new_zeros(())
        return torch.stack(
            [
                zero if apart.boxes is None else (apart.boxes * belief).sum(),
                zero
                if apart.objectness is None
                else (apart.objectness * (heard if self.classes.teaches_all else belief)).sum(),
                zero if apart.classes is None or self.classes.num_student == 1 else (apart.classes * belief).sum(),
                belief.sum(),
            ]
        )

    def _shared(self, classes: Tensor, indices: Tensor) -> Tensor:
        return classes if self.classes.identical else classes.index_select(-1, indices)

    def _heard(self, level: Tensor) -> Tensor:
        """(B, A, H, W) float: 1 where the teacher's verdict counts, 0 where the student must not hear it."""
        if self.classes.learns_all and not self.nms:
            return torch.ones_like(level[..., 4])
        best = level[..., 5:].argmax(-1)
        heard = self.shared[best]
        if self.nms:
            heard = heard & strongest_of_class(level[..., 4], best, self.classes.num_teacher)
        return heard.to(level.dtype)


def strongest_of_class(objectness: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Whether no prediction of the same class in the 3x3 cells around has a higher objectness; equals stay.

    Args:
        objectness: (B, A, H, W), any monotonic scale.
        classes: (B, A, H, W) index of each prediction's best class.

    Returns:
        (B, A, H, W) bool.
    """
    batch, _, height, width = objectness.shape
    # one map a class, holding the best anchor of each cell: memory grows with classes, but not with anchors
    maps = objectness.new_full((batch, num_classes, height, width), -torch.inf)
    maps = maps.scatter_reduce(1, classes, objectness, "amax")
    highest = F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    return objectness >= highest.gather(1, classes)
