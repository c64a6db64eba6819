"""Heads compared cell by cell: what is weighed, left out and averaged, whatever the distance."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.options import flag
from distill.outputs.base import OutputLoss, Sides
from distill.outputs.view import AnchorCells, Cells
from utils.types import Batch, Prediction

# of what a side believes: where both are below it, a cell teaches neither box nor class. Such cells are nearly all, and
# would weigh next to nothing; without them the cost hardly depends on the number of classes.
BACKGROUND = 0.01


class Common(NamedTuple):
    """M cells of both sides, side by side."""

    student: Cells
    teacher: Cells
    trust: Tensor  # (M,) how much each may teach


class CellsLoss(OutputLoss):
    """Knows which cells and which classes of a head may teach.

    Where class lists differ: an object of a class that the student does not have teaches nothing; and where the student
    has classes that the teacher does not know, the teacher's "nothing here" is no proof, so that a cell counts as much
    as the teacher believes in an object. A student of one class whose head has anchors has no class term: the detection
    loss does not train that logit either.
    """

    known: Tensor  # (C',) bool: teacher classes that the student has
    student_classes: Tensor  # (K,) classes that both have, as the student counts
    teacher_classes: Tensor  # (K,) the same, as the teacher counts

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        class_map = sides.classes
        known = torch.zeros(class_map.num_teacher, dtype=torch.bool)
        known[list(class_map.teacher)] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("student_classes", torch.tensor(class_map.student), persistent=False)
        self.register_buffer("teacher_classes", torch.tensor(class_map.teacher), persistent=False)

    @property
    def has_classes(self) -> bool:
        """Of two heads with anchors: whether class logits mean anything. Nothing trains that of a single class."""
        return min(self.class_map.num_student, self.class_map.num_teacher) > 1

    def classes(self, student: Cells, teacher: Cells) -> tuple[Tensor, Tensor]:
        """Their class logits (..., K) twice, of the classes that both have."""
        own, other = self._columns
        return student.classes(own), teacher.classes(other)

    def scores(self, student: Cells, teacher: Cells) -> tuple[Tensor, Tensor]:
        """The logits of their scores (..., K) twice, of the classes that both have."""
        own, other = self._columns
        return student.scores(own), teacher.scores(other)

    @property
    def _columns(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        return (None, None) if self.class_map.identical else (self.student_classes, self.teacher_classes)

    def channels(self, student: Cells, teacher: Cells) -> tuple[Tensor, Tensor]:
        """All raw numbers, of the classes those that both have; of heads whose numbers mean the same."""
        lead = student.lead
        if self.both_have_anchors and not self.has_classes:
            return student.rows[..., :lead], teacher.rows[..., :lead]
        if self.class_map.identical:
            return student.rows, teacher.rows
        first = torch.arange(lead, device=self.student_classes.device)
        columns = [torch.cat((first, lead + some)) for some in (self.student_classes, self.teacher_classes)]
        return student.rows.index_select(-1, columns[0]), teacher.rows.index_select(-1, columns[1])

    def heard(self, teacher: Cells, sees: Tensor) -> Tensor:
        """(B, A, H, W) bool: False where the teacher sees something that the student must not learn.

        Args:
            sees: (B, A, H, W) bool, where it believes in an object at all.
        """
        if self.class_map.learns_all:
            return torch.ones_like(sees)
        return self.known[self.best_class(teacher, sees)] | ~sees

    def best_class(self, teacher: Cells, sees: Tensor) -> Tensor:
        """(B, A, H, W) long: the teacher's class of each cell, 0 where it sees nothing."""
        best = torch.zeros_like(sees, dtype=torch.long)
        best[sees] = teacher.at(sees).classes().argmax(-1)
        return best

    def trust(self, belief: Tensor, heard: Tensor) -> Tensor:
        """(B, A, H, W) float: how much each cell may teach, even of "nothing here".

        Args:
            belief: (B, A, H, W) the teacher's, in [0, 1].
            heard: (B, A, H, W) bool.
        """
        return heard.float() if self.class_map.teaches_all else heard * belief

    def common(self, student: Prediction, taught: Prediction) -> Common:
        """The cells of all levels in which either side believes in something, and which may teach, in float32."""
        first, *rest = [self._common(mine, theirs) for mine, theirs in self.views(student, taught)]
        return Common(
            first.student.join([level.student for level in rest]),
            first.teacher.join([level.teacher for level in rest]),
            torch.cat([level.trust for level in (first, *rest)]),
        )

    def _common(self, mine: Cells, theirs: Cells) -> Common:
        belief = theirs.belief()
        sees = belief > BACKGROUND
        heard = self.heard(theirs, sees)
        chosen = ((sees | (mine.belief() > BACKGROUND)) & heard).nonzero(as_tuple=True)
        return Common(mine.at(chosen), theirs.at(chosen), self.trust(belief, heard)[chosen])


class CellwiseLoss(CellsLoss):
    """box gain * boxes + objectness gain * objectness + class gain * classes, of distances that subclasses define.

    Of two heads with objectness.

    - Boxes and classes count as much as the teacher believes in an object there: a mean weighted by its sigmoid
      objectness, as the detection loss is a mean over matched cells. (Where it sees next to nothing the weights do not
      add up to 1, and the mean stays small instead of inflating noise.) Objectness is a mean over all cells.
    - Means run over the cells of all levels together, so a cell counts the same wherever it lies, which is what the
      per-level balance of the detection loss comes to.
    - So at `weight` 1 a distance of the kind of a cross-entropy pulls about as hard as its counterpart in the detection
      loss; squared differences of probabilities are some ten times weaker.

    Where class lists differ, see `CellsLoss`.

    Args:
        nms: among the teacher's objects of one class in 3x3 neighbouring cells (over all anchors of a level), only the
            one of which it is surest teaches (feature-map NMS).
    """

    needs: ClassVar[tuple[str, ...]] = ("objectness",)

    def __init__(
        self,
        sides: Sides,
        nms: bool = False,
    ) -> None:
        super().__init__(sides)
        self.nms = flag(f"{self.where}: nms", nms)

    def box_distance(self, student: AnchorCells, teacher: AnchorCells) -> Tensor:
        """Of M cells -> (M,); boxes are not compared unless a subclass does."""
        return student.rows.new_zeros(len(student.rows))

    @abstractmethod
    def objectness_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of (B, A, H, W) logits, float32, elementwise."""

    @abstractmethod
    def class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(M, K) logits twice, of the classes that both have -> (M,), a mean over classes."""

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels (B, A, H, W, 5 + C) on both sides -> scalar."""
        totals, cells = [], 0
        for mine, theirs in self.views(student, taught):
            totals.append(self._level(cast(AnchorCells, mine), cast(AnchorCells, theirs)))
            cells += mine.shape.numel()
        boxes, objectness, classes, belief = torch.stack(totals).sum(0)
        belief = belief.clamp(min=1)  # in cells
        gains = self.gains
        return (gains.box * boxes + gains.cls * classes) / belief + gains.obj * objectness / max(1, cells)

    def _level(self, student: AnchorCells, teacher: AnchorCells) -> Tensor:
        """Sums over one level: boxes, objectness, classes, and the belief that weighs boxes and classes."""
        belief = teacher.belief()  # (B, A, H, W)
        sees = belief > BACKGROUND
        heard = self.heard(teacher, sees)
        objectness = self.objectness_distance(student.objectness(), teacher.objectness())
        chosen = (sees & heard).nonzero(as_tuple=True)
        own, other = student.at(chosen), teacher.at(chosen)  # M cells: only these are made float32
        weight = belief[chosen]
        return torch.stack(
            [
                (self.box_distance(own, other) * weight).sum(),
                (objectness * self.trust(belief, heard)).sum(),
                (self._class_distance(own, other) * weight).sum(),
                weight.sum(),
            ]
        )

    def _class_distance(self, student: Cells, teacher: Cells) -> Tensor:
        if not self.has_classes:
            return student.rows.new_zeros(len(student.rows))
        return self.class_distance(*self.classes(student, teacher))

    def heard(self, teacher: Cells, sees: Tensor) -> Tensor:
        if not self.nms:
            return super().heard(teacher, sees)
        best = self.best_class(teacher, sees)
        certainty = teacher.certainty().masked_fill(~sees, -torch.inf)
        strongest = strongest_of_class(certainty, best, self.class_map.num_teacher)
        return (self.known[best] & strongest) | ~sees


def strongest_of_class(certainty: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Whether no prediction of the same class in the 3x3 cells around is surer of itself; equals stay.

    Args:
        certainty: (B, A, H, W), any monotonic scale.
        classes: (B, A, H, W) index of each prediction's best class.

    Returns:
        (B, A, H, W) bool.
    """
    batch, _, height, width = certainty.shape
    # one map a class, holding the best anchor of each cell: memory grows with classes, but not with anchors
    maps = certainty.new_full((batch, num_classes, height, width), -torch.inf)
    maps = maps.scatter_reduce(1, classes, certainty, "amax")
    highest = F.max_pool2d(maps, kernel_size=3, stride=1, padding=1)
    return certainty >= highest.gather(1, classes)
