"""How scores compare with each other, rather than what they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distill.features.base import directions
from distill.options import choice, not_negative, share
from distill.outputs.base import Sides
from distill.outputs.cellwise import CellsLoss
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch, Prediction


class RelationalScores(CellsLoss):
    """1 - Pearson correlation of the scores, over the classes of a cell and over the cells of a class.

    Correlation asks for no more than the teacher's order and proportions, which a student much weaker than its teacher
    can still match. Compared are cells in which the teacher sees an object (its highest score is at least `threshold`),
    of all levels and images together; they need no labels. Scores are the probabilities that NMS sees, softened, or as
    in the paper, which is about classifiers, the softmax over the classes.

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
        threshold: of the teacher's highest score.
    """

    default_weight = 0.7

    def __init__(
        self,
        sides: Sides,
        inter: float = 1.0,
        intra: float = 1.0,
        temperature: Any = 1.0,
        probabilities: str = "sigmoid",
        threshold: float = 0.1,
    ) -> None:
        super().__init__(sides)
        where = "output loss 'dist'"
        self.inter = not_negative(f"{where}: inter", inter)
        self.intra = not_negative(f"{where}: intra", intra)
        self.temperature = Temperature(where, temperature)
        self.probabilities = choice(f"{where}: probabilities", probabilities, ("sigmoid", "softmax"))
        self.threshold = share(f"{where}: threshold", threshold)
        if not self.inter and not self.intra:
            raise UserError(f"{where}: inter and intra are both 0, which leaves nothing to compare")
        if self.probabilities == "softmax" and len(set(sides.classes.student)) == 1:
            raise UserError(
                f"{where}: probabilities: softmax compares how classes share a cell, but student and teacher have only "
                "one in common; use sigmoid"
            )

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of any two heads -> scalar."""
        own, other, trust = self.common(student, taught)
        mine, theirs = (self._softened(scores) for scores in self.scores(own, other))
        seen = ((other.highest_score() >= self.threshold) & (trust > 0)).nonzero()[:, 0]
        mine, theirs = mine[seen], theirs[seen]  # (M, K)
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
