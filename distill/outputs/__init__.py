"""The shelf of output losses: what the student's raw predictions learn from the teacher's.

An output loss is an `outputs.base.OutputLoss`:

- `loss(student, taught, batch) -> scalar`: two `Prediction`s of raw levels for the same images. A mean, times the gains
  of the detection loss where it has terms of the same kind.
- It is float32 inside, finite for a batch without objects and for all-zero maps, and its gradient reaches the student
  only.
- `needs` says what both heads must have: `"objectness"`, `"anchors"` (the same on both sides). A pair of heads that
  lacks it is told so.
- It is built with `(student_head, teacher_head, class_map, gains, **options)`; options are the arguments with a
  default, and what a user writes under the method's name in a hyp file (`weight` is not among them: the task weighs).
  It must not keep a head as an attribute: a head is a module, and would be saved and trained with the loss.

To add one: a file here, a line below, a value test. The contract test runs over this table.
"""

from __future__ import annotations

from distill.outputs.base import OutputLoss
from distill.outputs.kl import BernoulliDivergence
from distill.outputs.objectness_scaled import ObjectnessScaled

OUTPUTS: dict[str, type[OutputLoss]] = {
    "kl": BernoulliDivergence,
    "objectness_scaled": ObjectnessScaled,
}
