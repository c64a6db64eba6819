"""How scores compare with each other, rather than what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from distill.features.base import directions
from distill.options import choice, not_negative
from distill.outputs.base import Sides
from distill.outputs.positives import Level, PositivesLoss, chosen, task_aligned
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch


class RelationalScores(PositivesLoss):
    """1 - Pearson correlation of the scores, over the classes of a cell and over the cells of a class.

    Correlation asks for no more than the teacher's order and proportions, which a student much weaker than its teacher
    can still match. Compared are the cells that answer for an object, of all levels and images together: among the many
    others there is nothing but background to correlate. Scores are the probabilities that NMS sees, softened, or as in
    the paper, which is about classifiers, the softmax over the classes.

    - Between classes: a mean over cells. Two numbers always correlate fully, so with two common classes the part is
      their order alone, and with one it is 0.
    - Within a class: a mean over classes.

    A row without variation correlates with nothing; it counts as far as its length reaches 0.0001 (`directions`). Both
    parts are half the squared distance of standardised rows, which is 1 - correlation. Times the squared temperature;
    no gain of the detection loss. Cells of a class that the student does not have are left out.

    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.

    Args:
        inter, intra: weights of the two parts, between classes and within a class; 0 leaves a part out.
        temperature: divides both sides' logits. A number or a schedule, see `distill.temperature`.
        probabilities: sigmoid or softmax.
        tal_topk, tal_alpha, tal_beta, small_objects: see `losses.assignment.TaskAlignedAssigner`. Where a recipe does
            not say, those of its detection loss.
        threshold: see `PositivesLoss`.
    """

    default_weight = 0.7

    def __init__(
        self,
        sides: Sides,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: Any = 1.0,
        probabilities: str = "sigmoid",
        tal_topk: int = 10,
        tal_alpha: float = 0.5,
        tal_beta: float = 6.0,
        small_objects: bool = False,
        threshold: float = 0.25,
    ) -> None:
        where = "output loss 'dist'"
        super().__init__(sides, task_aligned(where, tal_topk, tal_alpha, tal_beta, small_objects), threshold)
        self.inter = not_negative(f"{where}: inter", inter)
        self.intra = not_negative(f"{where}: intra", intra)
        self.temperature = Temperature(where, temperature)
        self.probabilities = choice(f"{where}: probabilities", probabilities, ("sigmoid", "softmax"))
        if not self.inter and not self.intra:
            raise UserError(f"{where}: inter and intra are both 0, which leaves nothing to compare")
        if self.probabilities == "softmax" and len(set(sides.classes.student)) == 1:
            raise UserError(
                f"{where}: probabilities: softmax compares how classes share a cell, but student and teacher have only "
                "one in common; use sigmoid"
            )

    def compare(self, levels: Sequence[Level], positives: Sequence[Tensor], batch: Batch) -> Tensor:
        where = [own & (self.trusted(other) > 0) for own, (_, other) in zip(positives, levels, strict=True)]
        mine, theirs = (self._softened(scores) for scores in self.scores(*chosen(levels, where)))  # (M, K)
        between, within = _apart(mine, theirs), _apart(mine.T, theirs.T)
        total = self.inter * between.sum() / max(1, len(between)) + self.intra * within.mean()
        return self.temperature.value**2 * total

    def _softened(self, scores: Tensor) -> Tensor:
        """(M, K) logits -> probabilities."""
        scores = self.temperature.soften(scores)
        return scores.sigmoid() if self.probabilities == "sigmoid" else scores.softmax(dim=-1)


def _apart(own: Tensor, other: Tensor) -> Tensor:
    """1 - correlation of each row with its counterpart: (M, n) twice -> (M,); 0 for rows of less than two numbers."""
    if own.shape[1] < 2:
        return own.sum(dim=1) * 0
    own, other = (directions(x - x.mean(dim=1, keepdim=True)) for x in (own, other))
    return (own - other).square().sum(dim=1) / 2
