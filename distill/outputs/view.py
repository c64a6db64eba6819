"""What a head says in its cells, in terms that all heads share.

    kind of head   raw numbers of a cell                          a score is                        belief
    anchors        x, y, w, h, objectness, C classes an anchor    objectness times class            objectness
    anchor-free    4 * R distances, C classes                     class                             highest score

So a method that compares scores and boxes need not know which head it looks at. Boxes are relative to a cell that both
sides share, in cells: no overlap depends on where it is, and no stride on how large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.matching import decode
from utils.boxes import around, expected_distances, xyxy_to_xywh
from utils.types import Prediction

if TYPE_CHECKING:
    from typing_extensions import Self

Chosen = Tensor | tuple[Tensor, ...]  # (B, A, H, W) bool, or four (M,) long as of `nonzero(as_tuple=True)`


class Cells(ABC):
    """Raw numbers of a level, or of cells chosen from it. Nothing is copied before cells are chosen.

    Args:
        rows: (..., D), of a level (B, A, H, W, D); heads without anchors have A = 1.
        num_classes: C.
    """

    def __init__(self, rows: Tensor, num_classes: int) -> None:
        self.rows = rows
        self.num_classes = num_classes

    @property
    def shape(self) -> torch.Size:
        """(...): (B, A, H, W) of a level, (M,) of chosen cells."""
        return self.rows.shape[:-1]

    @property
    def lead(self) -> int:
        """How many numbers stand before the classes."""
        return self.rows.shape[-1] - self.num_classes

    @abstractmethod
    def at(self, chosen: Chosen) -> Self:
        """M cells of a level, their numbers in float32."""

    @abstractmethod
    def join(self, others: Sequence[Self]) -> Self:
        """These cells and behind them others, along the first axis."""

    @abstractmethod
    def certainty(self) -> Tensor:
        """(...) logits, float32, without gradient: how much this side believes that something is there."""

    def belief(self) -> Tensor:
        """(...) float32 in [0, 1], without gradient: how much this side believes that something is there."""
        return self.certainty().sigmoid()

    @abstractmethod
    def highest_score(self) -> Tensor:
        """(...) float32 in [0, 1], without gradient: over classes."""

    def classes(self, which: Tensor | None = None) -> Tensor:
        """(..., C) class logits, or of the (K,) classes `which` alone; raw."""
        classes = self.rows[..., self.lead :]
        return classes if which is None else classes.index_select(-1, which)

    @abstractmethod
    def scores(self, which: Tensor | None = None) -> Tensor:
        """(..., C) logits of the scores that NMS sees, or of the (K,) classes `which` alone; float32."""

    @abstractmethod
    def boxes(self) -> Tensor:
        """(..., 4) x, y, w, h in cells, from the cell's upper left corner; float32.

        Sides may be 0 or, without DFL, negative.
        """

    @abstractmethod
    def strongest(self) -> Self:
        """One prediction a cell, A = 1: that of the highest score."""


class AnchorCells(Cells):
    """x, y, w, h, objectness and classes, for each anchor of a cell.

    Args:
        anchors: (..., 2) width and height in cells, as many as `rows`.
        by_score: these speak for their cells to a head without objectness: belief is the highest score, as it is there.
    """

    def __init__(self, rows: Tensor, num_classes: int, anchors: Tensor, by_score: bool = False) -> None:
        super().__init__(rows, num_classes)
        self.anchors = anchors
        self.by_score = by_score

    def _of(self, rows: Tensor, anchors: Tensor) -> AnchorCells:
        return AnchorCells(rows, self.num_classes, anchors, self.by_score)

    def at(self, chosen: Chosen) -> AnchorCells:
        return self._of(self.rows[chosen].float(), self.anchors[chosen])

    def join(self, others: Sequence[AnchorCells]) -> AnchorCells:
        everyone = (self, *others)
        return self._of(torch.cat([one.rows for one in everyone]), torch.cat([one.anchors for one in everyone]))

    def objectness(self) -> Tensor:
        """(...) logits, float32."""
        return self.rows[..., 4].float()

    def certainty(self) -> Tensor:
        return self._score_logit() if self.by_score else self.objectness().detach()

    def highest_score(self) -> Tensor:
        return self._score_logit().sigmoid()

    def _score_logit(self) -> Tensor:
        objectness = self.objectness().detach()
        return objectness if self.num_classes == 1 else joint_logit(objectness, _highest(self.classes()))

    def scores(self, which: Tensor | None = None) -> Tensor:
        """Of heads with a single class they are objectness: nothing trains the class."""
        classes, objectness = self.classes(which).float(), self.rows[..., 4:5].float()
        return objectness.expand_as(classes) if self.num_classes == 1 else joint_logit(objectness, classes)

    def boxes(self) -> Tensor:
        return decode(self.rows[..., :4].float(), self.anchors)

    def strongest(self) -> AnchorCells:
        """Each cell's prediction of highest score, over anchors and classes.

        A cell of a head without anchors speaks of one object at most, so where one side has anchors, one of them is to
        speak for its cell. The strongest is what NMS sees first and what is drawn; as a student's, it is the one to
        pull down wherever nothing is, whichever anchor it is, and both sides agree if and only if what they would find
        does. The anchor nearest to the teacher's box would be steadier, and leave another one's false alarm alone. A
        mean would mix the boxes of different objects. The gradient reaches the chosen one only.
        """
        which = self.highest_score().argmax(1, keepdim=True)[..., None]  # (B, 1, H, W, 1)
        rows, anchors = (
            x.take_along_dim(which.expand(-1, -1, -1, -1, x.shape[-1]), 1) for x in (self.rows, self.anchors)
        )
        return AnchorCells(rows, self.num_classes, anchors, by_score=True)


class FreeCells(Cells):
    """Distances to the left, top, right and bottom, from the middle of a cell, and classes.

    Args:
        reg_max: bins a distance; 1: the number is the distance.
    """

    def __init__(self, rows: Tensor, num_classes: int, reg_max: int) -> None:
        super().__init__(rows, num_classes)
        self.reg_max = reg_max

    def at(self, chosen: Chosen) -> FreeCells:
        return FreeCells(self.rows[chosen].float(), self.num_classes, self.reg_max)

    def join(self, others: Sequence[FreeCells]) -> FreeCells:
        return FreeCells(torch.cat([one.rows for one in (self, *others)]), self.num_classes, self.reg_max)

    def certainty(self) -> Tensor:
        return _highest(self.classes())

    def highest_score(self) -> Tensor:
        return self.belief()

    def scores(self, which: Tensor | None = None) -> Tensor:
        return self.classes(which).float()

    def bins(self) -> Tensor:
        """(..., 4, R) logits of the distances 0, 1 ... R - 1 to the left, top, right, bottom; with R = 1 distances."""
        return self.rows[..., : 4 * self.reg_max].unflatten(-1, (4, self.reg_max))

    def boxes(self) -> Tensor:
        distances = expected_distances(self.bins().float())
        return xyxy_to_xywh(around(distances.new_tensor(0.5), distances))

    def strongest(self) -> FreeCells:
        """They are alone in their cells."""
        return self


def has_anchors(head: Any) -> bool:
    """Of our heads, those with anchors are those with objectness."""
    return hasattr(head, "anchors")


def cells_of(head: Any, level_index: int, level: Tensor, num_classes: int | None = None) -> Cells:
    """A raw level, (B, A, H, W, 5 + C) or (B, 4 * reg_max + C, H, W), of this head.

    Args:
        num_classes: of a teacher whose words have been put into this head's anchors; None for the head's own.
    """
    num_classes = head.num_classes if num_classes is None else num_classes
    if not has_anchors(head):
        return FreeCells(level.permute(0, 2, 3, 1)[:, None], num_classes, head.reg_max)
    anchors = head.anchors[level_index].float()  # read at every call, since they may be fitted to the data
    return AnchorCells(level, num_classes, anchors[:, None, None].expand(*level.shape[:-1], 2))


def side_by_side(
    heads: tuple[Any, Any], level_pairs: Sequence[tuple[int, int]], student: Prediction, taught: Prediction
) -> Iterator[tuple[Cells, Cells]]:
    """Levels of student and teacher on common cells (B, A, H, W); the teacher's without gradient.

    Where both have anchors, the teacher speaks in the student's (`distill.translate`). Where one side has them and the
    other has not, A is 1, and of the former's anchors the strongest speaks (`AnchorCells.strongest`).

    Args:
        heads: of student and teacher.
        level_pairs: (student, teacher) levels of one stride.
    """
    own_head, other_head = heads
    for own, other in level_pairs:
        mine, level = cells_of(own_head, own, student.levels[own]), taught.levels[other].detach()
        if has_anchors(own_head) and has_anchors(other_head):
            yield mine, cells_of(own_head, own, level, other_head.num_classes)
        else:
            yield mine.strongest(), cells_of(other_head, other, level).strongest()


def joint_logit(objectness: Tensor, classes: Tensor) -> Tensor:
    """The logit of sigmoid(objectness) * sigmoid(class), elementwise and differentiable: a score that NMS sees.

    With p the product, p / (1 - p) = 1 / (e^-o + e^-c + e^(-o-c)), whose logarithm needs neither p nor 1 - p: it is
    right where both are saturated, and any loss that takes logits takes it.
    """
    return -torch.logaddexp(F.softplus(-classes) - objectness, -classes)


def _highest(classes: Tensor) -> Tensor:
    """(..., C) logits -> (...), float32, without gradient."""
    return classes.detach().amax(-1).float()
