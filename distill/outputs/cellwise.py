"""Anchor heads compared cell by cell: what is weighed, left out and averaged, whatever the distance."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import flag
from distill.outputs.base import OutputLoss, Sides
from utils.types import Batch, Prediction

if TYPE_CHECKING:
    from losses.anchor import AnchorHead

# of the teacher's objectness: below it a cell teaches neither box nor class. Such cells are nearly all, and would weigh
# next to nothing; without them the cost hardly depends on the number of classes.
BACKGROUND = 0.01


class CellsLoss(OutputLoss):
    """Knows which cells and which classes of an anchor head may teach.

    Where class lists differ: an object of a class that the student does not have teaches nothing; and where the student
    has classes that the teacher does not know, the teacher's "nothing here" is no proof, so that a cell counts as much
    as the teacher believes in an object. A student of one class has no class term: the detection loss does not train
    that logit either.
    """

    needs = ("objectness",)

    known: Tensor  # (C',) bool: teacher classes that the student has
    student_classes: Tensor  # (K,) classes that both have, as the student counts
    teacher_classes: Tensor  # (K,) the same, as the teacher counts

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        # nn.Module does not look into tuples: the head stays the model's alone
        self._student_head: tuple[AnchorHead] = (sides.student,)  # type: ignore[assignment]
        class_map = sides.classes
        known = torch.zeros(class_map.num_teacher, dtype=torch.bool)
        known[list(class_map.teacher)] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("student_classes", torch.tensor(class_map.student), persistent=False)
        self.register_buffer("teacher_classes", torch.tensor(class_map.teacher), persistent=False)

    @property
    def has_classes(self) -> bool:
        """Whether the student's class logits mean anything."""
        return self.class_map.num_student > 1

    def anchors(self, level: int) -> Tensor:
        """(A, 2) width, height in cells, of the student's; read at every call, since they may be fitted to the data."""
        return self._student_head[0].anchors[level].float()

    def classes(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (..., 5 + C) and (..., 5 + C') -> their class logits (..., K) twice, of the classes that both have."""
        student, teacher = student[..., 5:], teacher[..., 5:]
        if self.class_map.identical:
            return student, teacher
        return student.index_select(-1, self.student_classes), teacher.index_select(-1, self.teacher_classes)

    def channels(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (..., 5 + C) and (..., 5 + C') -> (..., 5 + K) twice: box, objectness, and the classes of both."""
        if not self.has_classes:
            return student[..., :5], teacher[..., :5]
        if self.class_map.identical:
            return student, teacher
        head = torch.arange(5, device=self.student_classes.device)
        columns = [torch.cat((head, 5 + own)) for own in (self.student_classes, self.teacher_classes)]
        return student.index_select(-1, columns[0]), teacher.index_select(-1, columns[1])

    def heard(self, teacher: Tensor, sees: Tensor) -> Tensor:
        """(B, A, H, W) bool: False where the teacher sees something that the student must not learn.

        Args:
            teacher: (B, A, H, W, 5 + C').
            sees: (B, A, H, W) bool, where it believes in an object at all.
        """
        if self.class_map.learns_all:
            return torch.ones_like(sees)
        return self.known[self.best_class(teacher, sees)] | ~sees

    def best_class(self, teacher: Tensor, sees: Tensor) -> Tensor:
        """(B, A, H, W) long: the teacher's class of each cell, 0 where it sees nothing."""
        best = torch.zeros_like(sees, dtype=torch.long)
        best[sees] = teacher[sees][:, 5:].argmax(-1)
        return best

    def trust(self, belief: Tensor, heard: Tensor) -> Tensor:
        """(B, A, H, W) float: how much each cell may teach, even of "nothing here".

        Args:
            belief: (B, A, H, W) the teacher's objectness in [0, 1].
            heard: (B, A, H, W) bool.
        """
        return heard.float() if self.class_map.teaches_all else heard * belief


class CellwiseLoss(CellsLoss):
    """box gain * boxes + objectness gain * objectness + class gain * classes, of distances that subclasses define.

    - Boxes and classes count as much as the teacher believes in an object there: a mean weighted by its sigmoid
      objectness, as the detection loss is a mean over matched cells. (Where it sees next to nothing the weights do not
      add up to 1, and the mean stays small instead of inflating noise.) Objectness is a mean over all cells.
    - Means run over the cells of all levels together, so a cell counts the same wherever it lies, which is what the
      per-level balance of the detection loss comes to; times the number of levels, for which gains are rescaled.
    - So at `weight` 1 a distance of the kind of a cross-entropy pulls about as hard as its counterpart in the detection
      loss; squared differences of probabilities are some ten times weaker.

    Where class lists differ, see `CellsLoss`.

    Args:
        nms: among the teacher's objects of one class in 3x3 neighbouring cells (over all anchors of a level), only the
            one with the highest objectness teaches (feature-map NMS).
    """

    def __init__(
        self,
        sides: Sides,
        nms: bool = False,
    ) -> None:
        super().__init__(sides)
        self.nms = flag(f"{self.where}: nms", nms)

    def box_distance(self, student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
        """(M, 4) logits twice and (M, 2) anchors in cells -> (M,); boxes are not compared unless a subclass does."""
        return student.new_zeros(len(student))

    @abstractmethod
    def objectness_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of (B, A, H, W) logits, float32, elementwise."""

    @abstractmethod
    def class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(M, K) logits twice, of the classes that both have -> (M,), a mean over classes."""

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        totals, cells = [], 0
        for own, other in self.level_pairs:
            level = student.levels[own]
            totals.append(self._level(level, taught.levels[other].detach(), self.anchors(own)))
            cells += level[..., 4].numel()
        boxes, objectness, classes, belief = torch.stack(totals).sum(0)
        belief = belief.clamp(min=1)  # in cells
        gains = self.gains
        terms = (gains.box * boxes + gains.cls * classes) / belief + gains.obj * objectness / max(1, cells)
        return len(totals) * terms

    def _level(self, student: Tensor, teacher: Tensor, anchors: Tensor) -> Tensor:
        """Sums over one level: boxes, objectness, classes, and the belief that weighs boxes and classes."""
        belief = teacher[..., 4].float().sigmoid()  # (B, A, H, W)
        sees = belief > BACKGROUND
        heard = self.heard(teacher, sees)
        objectness = self.objectness_distance(student[..., 4].float(), teacher[..., 4].float())
        chosen = (sees & heard).nonzero(as_tuple=True)
        own, other = student[chosen].float(), teacher[chosen].float()  # (M, 5 + C): only these are made float32
        weight = belief[chosen]
        return torch.stack(
            [
                (self.box_distance(own[:, :4], other[:, :4], anchors[chosen[1]]) * weight).sum(),
                (objectness * self.trust(belief, heard)).sum(),
                (self._class_distance(own, other) * weight).sum(),
                weight.sum(),
            ]
        )

    def _class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if not self.has_classes:
            return student.new_zeros(len(student))
        return self.class_distance(*self.classes(student, teacher))

    def heard(self, teacher: Tensor, sees: Tensor) -> Tensor:
        if not self.nms:
            return super().heard(teacher, sees)
        best = self.best_class(teacher, sees)
        objectness = teacher[..., 4].masked_fill(~sees, -torch.inf)
        strongest = strongest_of_class(objectness, best, self.class_map.num_teacher)
        return (self.known[best] & strongest) | ~sees


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
