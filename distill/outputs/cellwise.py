"""Anchor heads compared cell by cell: what is weighed, left out and averaged, whatever the distance."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.options import flag
from distill.outputs.base import OutputLoss
from utils.types import Batch, Prediction

if TYPE_CHECKING:
    from distill.classes import ClassMap
    from losses.anchor import Gains

# of the teacher's objectness: below it a cell teaches neither box nor class. Such cells are nearly all, and would weigh
# next to nothing; without them the cost hardly depends on the number of classes.
BACKGROUND = 0.01


class CellwiseLoss(OutputLoss):
    """box gain * boxes + objectness gain * objectness + class gain * classes, of a distance that subclasses define.

    - Boxes and classes count as much as the teacher believes in an object there: a mean weighted by its sigmoid
      objectness, as the detection loss is a mean over matched cells. (Where it sees next to nothing the weights do not
      add up to 1, and the mean stays small instead of inflating noise.) Objectness is a mean over all cells.
    - Means run over the cells of all levels together, so a cell counts the same wherever it lies, which is what the
      per-level balance of the detection loss comes to; times the number of levels, for which gains are rescaled.
    - So at `weight` 1 a distance of the kind of a cross-entropy pulls about as hard as its counterpart in the detection
      loss; squared differences of probabilities are some ten times weaker.

    Where class lists differ: an object of a class that the student does not have teaches nothing; and where the student
    has classes that the teacher does not know, the teacher's "nothing here" is no proof, so that objectness counts as
    much as the teacher believes in an object, too. A student of one class has no class term: the detection loss does
    not train that logit either.

    Args:
        nms: among the teacher's objects of one class in 3x3 neighbouring cells (over all anchors of a level), only the
            one with the highest objectness teaches (feature-map NMS).
    """

    needs = ("objectness", "anchors")

    known: Tensor  # (C',) bool: teacher classes that the student has
    student_classes: Tensor
    teacher_classes: Tensor

    def __init__(
        self,
        student_head: nn.Module,
        teacher_head: nn.Module,
        class_map: ClassMap,
        gains: Gains,
        nms: bool = False,
    ) -> None:
        super().__init__(student_head, teacher_head, class_map, gains)
        self.nms = flag(f"output loss {type(self).__name__}: nms", nms)
        known = torch.zeros(class_map.num_teacher, dtype=torch.bool)
        known[list(class_map.teacher)] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("student_classes", torch.tensor(class_map.student), persistent=False)
        self.register_buffer("teacher_classes", torch.tensor(class_map.teacher), persistent=False)

    def box_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(M, 4) logits twice -> (M,); boxes are not compared unless a subclass does."""
        return student.new_zeros(len(student))

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of objectness or class logits, float32, elementwise: zero where they agree."""

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        totals, cells = [], 0
        for own, other in self.level_pairs:
            level = student.levels[own]
            totals.append(self._level(level, taught.levels[other].detach()))
            cells += level[..., 4].numel()
        boxes, objectness, classes, belief = torch.stack(totals).sum(0)
        belief = belief.clamp(min=1)  # in cells
        gains = self.gains
        terms = (gains.box * boxes + gains.cls * classes) / belief + gains.obj * objectness / max(1, cells)
        return len(totals) * terms

    def _level(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sums over one level: boxes, objectness, classes, and the belief that weighs boxes and classes."""
        belief = teacher[..., 4].float().sigmoid()  # (B, A, H, W)
        sees = belief > BACKGROUND
        heard = self._heard(teacher, sees)
        objectness = self.distance(student[..., 4].float(), teacher[..., 4].float())
        trust = heard * belief
        chosen = sees & heard
        own, other = student[chosen].float(), teacher[chosen].float()  # (M, 5 + C): only these are made float32
        weight = belief[chosen]
        return torch.stack(
            [
                (self.box_distance(own[:, :4], other[:, :4]) * weight).sum(),
                (objectness * (heard if self.class_map.teaches_all else trust)).sum(),
                (self._class_distance(own[:, 5:], other[:, 5:]) * weight).sum(),
                weight.sum(),
            ]
        )

    def _class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(M, C) and (M, C') logits -> (M,), a mean over the classes that both have."""
        if self.class_map.num_student == 1:
            return student.new_zeros(len(student))
        if not self.class_map.identical:
            student, teacher = student[:, self.student_classes], teacher[:, self.teacher_classes]
        return self.distance(student, teacher).mean(-1)

    def _heard(self, teacher: Tensor, sees: Tensor) -> Tensor:
        """(B, A, H, W) bool: False where the teacher sees something that the student must not learn."""
        heard = torch.ones_like(sees)
        if self.class_map.learns_all and not self.nms:
            return heard
        best = torch.zeros_like(sees, dtype=torch.long)
        best[sees] = teacher[sees][:, 5:].argmax(-1)
        heard = self.known[best]
        if self.nms:
            objectness = teacher[..., 4].masked_fill(~sees, -torch.inf)
            heard &= strongest_of_class(objectness, best, self.class_map.num_teacher)
        return heard | ~sees


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
