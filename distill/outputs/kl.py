"""Yes or no, and how sure: each probability beside the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from distill.options import not_negative, positive
from distill.outputs.cellwise import Cells, CellwiseLoss, Distance
from utils.errors import UserError

if TYPE_CHECKING:
    from distill.classes import ClassMap
    from losses.anchor import Gains


class BernoulliDivergence(CellwiseLoss):
    """KL divergence from the teacher's objectness and class probabilities to the student's, softened by a temperature.

    The heads are sigmoid heads: each class is a question of its own, so each probability is compared as a distribution
    over yes and no. A softmax over classes would forget how high the scores are, and they decide what is detected.
    Classes count as much as the teacher believes in an object; in background their probabilities mean nothing.

    Its gradient is that of the detection loss's cross-entropy with the teacher's probability as the target.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; for sigmoid scores
    Yang et al., "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection", ICCV 2023,
    arXiv:2308.14286.

    Args:
        temperature: divides both sides' logits; the result is multiplied by its square, so gradients keep their size.
        objectness, classes: factors of the two parts, besides their gains; 0 leaves a part out.
        nms: see `CellwiseLoss`.
    """

    def __init__(
        self,
        student_head: nn.Module,
        teacher_head: nn.Module,
        classes_map: ClassMap,
        gains: Gains,
        temperature: float = 1.0,
        objectness: float = 1.0,
        classes: float = 1.0,
        nms: bool = False,
    ) -> None:
        super().__init__(student_head, teacher_head, classes_map, gains, nms)
        self.temperature = positive("output loss 'kl': temperature", temperature)
        self.factors = (
            not_negative("output loss 'kl': objectness", objectness),
            not_negative("output loss 'kl': classes", classes),
        )
        if not any(self.factors):
            raise UserError("output loss 'kl': objectness and classes are both 0, which leaves nothing to compare")

    def distance(self, student: Cells, teacher: Cells) -> Distance:
        objectness, classes = self.factors
        return Distance(
            boxes=None,
            objectness=objectness * self._divergence(student.objectness, teacher.objectness) if objectness else None,
            classes=classes * self._divergence(student.classes, teacher.classes).mean(-1) if classes else None,
        )

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits, elementwise. Log-sigmoids of the logits: the log of a saturated sigmoid would be infinite."""
        student, teacher = student / self.temperature, teacher / self.temperature
        yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return self.temperature**2 * (yes + no)
