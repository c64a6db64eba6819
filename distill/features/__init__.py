"""The shelf of feature losses: one method, one file, one paper.

A feature loss is a `features.base.FeatureLoss`:

- `loss(student, teacher, lesson) -> scalar`: two maps of one shape, (B, C, H, W), and a `distill.pairs.Lesson` (batch,
  stride, and the taught prediction with its head where the class says `needs_prediction`). A mean, so that its size
  depends neither on the batch nor on the image.
- It is float32 inside, finite for a batch without objects and for all-zero maps, and its gradient reaches the student
  (and the adapter) only.
- `adapter` says what stands before it: `"conv_bn"`, `"conv"` or `None` (see `distill.pairs.FeaturePair`).
- `from_pair(channels, stride, **options)` builds it; options are the keyword arguments of `__init__`, each with a
  default, and what a user writes under the method's name in a hyp file (`weight` is not among them: the task weighs).

To add one: a file here, a line below, a value test. The contract test runs over this table.
"""

from __future__ import annotations

from distill.features.base import FeatureLoss
from distill.features.cwd import ChannelWiseDistillation
from distill.features.mimic import Mimic

FEATURES: dict[str, type[FeatureLoss]] = {
    "cwd": ChannelWiseDistillation,
    "mimic": Mimic,
}
