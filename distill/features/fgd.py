"""Objects and background apart, attention, and how the parts of an image belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from distill.features.base import FeatureLoss, rows
from distill.features.masks import areas, smallest_box, with_last
from distill.options import not_negative
from distill.temperature import Temperature
from utils.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

    from distill.pairs import Lesson
    from utils.types import Batch


class FocalGlobal(FeatureLoss):
    """alpha * objects + beta * background + gamma * attention + context * relations, all of raw maps.

    - Objects, background: squared differences, multiplied by the teacher's attention over positions and over channels.
      A position under a box (of ground truth; the smallest, where they overlap) counts 1 / positions under the box, so
      big and small objects count the same; one of the background 1 / positions of background.
    - Attention: absolute difference of both sides' attention. A map's attention over positions is the softmax of its
      mean magnitude over channels / temperature, times HW; over channels likewise, times C. Both are 1 on average.
    - Relations: squared difference after a block on each side has added what it makes of the whole image (`Context`).
      Both blocks learn. They add the same vector at all positions, so they cannot make the term vanish: it stays above
      the variance of the difference over positions.

    Images without labels take part in attention and relations only; one with labels and no objects is all background.

    The published terms are sums over channels and positions, means over images, and sums over objects; here all are
    means: over channels, positions, and objects of the batch. For a map of 256 * 40 * 40 and 7 objects (COCO's average)
    the weights published for YOLOX, 2e-3, 1e-3, 1e-3 and 1e-5, become 256e-3 times 14, 1, 6 (positions) or 1
    (channels), and 16. Hence the defaults, whose common factor is `weight`.

    Source: Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022, arXiv:2111.11837.

    Args:
        channels: of the teacher's map.
        alpha, beta, gamma, context: factors of the four terms.
        temperature: of attention.
    """

    adapter = "conv"
    needs_boxes = True
    default_weight = 7e-5

    def __init__(
        self,
        channels: int,
        alpha: float = 14.0,
        beta: float = 1.0,
        gamma: float = 4.0,
        context: float = 16.0,
        temperature: Any = 0.5,
    ) -> None:
        super().__init__()
        self.alpha = not_negative("feature loss 'fgd': alpha", alpha)
        self.beta = not_negative("feature loss 'fgd': beta", beta)
        self.gamma = not_negative("feature loss 'fgd': gamma", gamma)
        self.context = not_negative("feature loss 'fgd': context", context)
        if not (self.alpha or self.beta or self.gamma or self.context):
            raise UserError("feature loss 'fgd': alpha, beta, gamma and context are all 0, which leaves nothing")
        self.temperature = Temperature("feature loss 'fgd'", temperature)
        self.student_context = Context(channels)
        self.teacher_context = Context(channels)

    @classmethod
    def from_pair(cls, channels: int, stride: int, **options: Any) -> Self:
        return cls(channels, **options)

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) twice -> scalar; a mean over what, see above."""
        weights = self._weights(lesson.batch, *student.shape[2:])
        student, teacher = rows(student).float(), rows(teacher).detach().float()  # (B, HW, C)
        squares = F.mse_loss(student, teacher, reduction="none")
        own, other = self._attention(student), self._attention(teacher)
        focal = (squares @ other[1][..., None]).squeeze(2) * other[0] * weights
        attention = F.l1_loss(own[0], other[0]) + F.l1_loss(own[1], other[1])
        shift = self.student_context(student) - self.teacher_context(teacher)  # (B, C)
        # the mean of (difference + shift)^2 over positions, without another pass over the map
        relations = squares.mean(1) + shift * (2 * (student.mean(1) - teacher.mean(1)) + shift)
        return focal.sum() / student.shape[2] + self.gamma * attention + self.context * relations.mean()

    def _weights(self, batch: Batch, height: int, width: int) -> Tensor:
        """(B, HW): of objects they add up to alpha, of background to beta (over the batch)."""
        index = smallest_box(batch, height, width).flatten(1)
        objects = with_last(areas(batch, height, width).reciprocal(), 0)[index]  # 1 for each box, or what is seen of it
        background = ((index < 0) & batch.labelled[:, None]).float()
        background = background / background.sum(1, keepdim=True).clamp(min=1)
        number, images = objects.sum().clamp(min=1), batch.labelled.sum().clamp(min=1)
        return self.alpha * objects / number + self.beta * background / images

    def _attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, HW, C) -> over positions (B, HW) and over channels (B, C), each 1 on average."""
        magnitude = x.abs()
        positions, channels = (self.temperature.soften(magnitude.mean(axis)).softmax(1) for axis in (2, 1))
        return x.shape[1] * positions, x.shape[2] * channels


class Context(nn.Module):
    """(B, HW, C) -> (B, C): what the image as a whole adds to each of its positions, at first nothing.

    One weighted sum of all positions, and two layers that turn it into an addition. Source: Cao et al., "GCNet:
    Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCVW 2019, arXiv:1904.11492.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(1, channels // 2)
        self.score = nn.Linear(channels, 1, bias=False)  # a softmax does not feel a bias
        self.first = nn.Linear(channels, middle)
        self.norm = nn.LayerNorm(middle)
        self.last = nn.Linear(middle, channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(dim=1)  # (B, HW, 1)
        summary = (weights.transpose(1, 2) @ x).squeeze(1)
        added: Tensor = self.last(self.norm(self.first(summary)).relu())
        return added
