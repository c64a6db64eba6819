"""Yes or no, and how sure: each probability beside the teacher's."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distill.options import flag, not_negative
from distill.outputs.base import Sides
from distill.outputs.cellwise import CellwiseLoss
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch, Prediction


class BernoulliDivergence(CellwiseLoss):
    """KL divergence from the teacher's probabilities to the student's, softened by a temperature.

    The heads are sigmoid heads: each class is a question of its own, so each probability is compared as a distribution
    over yes and no. A softmax over classes would forget how high the scores are, and they decide what is detected.

    - Where both heads have objectness it is compared in all cells. Classes count as much as the teacher believes in an
      object; in background their probabilities mean nothing (`CellwiseLoss`).
    - Where one of them has none, scores are compared (of a head with anchors objectness times class, of the strongest
      anchor of each cell). The sum over cells, a mean over classes, over what the teacher believes in: its highest
      score, summed over cells, and at least 1. Cells that both give less than 0.01 are left out.

    Its gradient is that of the detection loss's cross-entropy with the teacher's probability as the target.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; for sigmoid scores
    Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV 2023,
    arXiv:2308.14286.

    Args:
        temperature: divides both sides' logits; the result is multiplied by its square, so gradients keep their size.
            A number or a schedule, see `distill.temperature`.
        objectness, classes: factors of the two parts, besides their gains; 0 leaves a part out.
        nms: see `CellwiseLoss`.
        score_weighted: where scores are compared, each cell counts as much as the teacher's highest score, so that
            "nothing here" teaches nothing.
    """

    needs = ()
    default_weight = 0.3

    def __init__(
        self,
        sides: Sides,
        temperature: Any = 1.0,
        objectness: float = 1.0,
        classes: float = 1.0,
        nms: bool = False,
        score_weighted: bool = False,
    ) -> None:
        super().__init__(sides, nms)
        self.score_weighted = flag("output loss 'kl': score_weighted", score_weighted)
        self.temperature = Temperature("output loss 'kl'", temperature)
        objectness = not_negative("output loss 'kl': objectness", objectness)
        classes = not_negative("output loss 'kl': classes", classes)
        if not objectness and not classes:
            raise UserError("output loss 'kl': objectness and classes are both 0, which leaves nothing to compare")
        if not classes and not self.both_have_anchors:
            raise UserError(
                "output loss 'kl': classes is 0, and student and teacher have not both an objectness besides, which "
                "leaves nothing to compare"
            )
        gains = self.gains
        self.gains = gains._replace(obj=gains.obj * objectness, cls=gains.cls * classes)

    def forward(self, student: Prediction, taught: Prediction, batch: Batch) -> Tensor:
        """Raw levels of any two heads -> scalar."""
        if self.both_have_anchors:
            return super().forward(student, taught, batch)
        cells = self.common(student, taught)
        mine, theirs = self.scores(cells.student, cells.teacher)
        belief = theirs.sigmoid().amax(-1)
        distance = self.class_distance(mine, theirs) * cells.trust
        if self.score_weighted:
            distance = distance * belief
        return self.gains.cls * distance.sum() / (belief * cells.trust).sum().clamp(min=1)

    def objectness_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        own, other = self.temperature.soften(student), self.temperature.soften(teacher)
        # p log(p / q) + (1 - p) log((1 - p) / (1 - q)) in terms of logits: no log of a saturated sigmoid, which would
        # be infinite, and no difference of large numbers in background
        divergence = other.sigmoid() * (other - own) + F.softplus(own) - F.softplus(other)
        return self.temperature.value**2 * divergence

    def class_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.objectness_distance(student, teacher).mean(-1)
