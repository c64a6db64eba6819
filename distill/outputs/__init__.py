"""The shelf of output losses: what the student's raw predictions learn from the teacher's.

An output loss is an `outputs.base.OutputLoss`:

- `loss(student, taught, batch) -> scalar`: two `Prediction`s of raw levels for the same images. A mean, times the gains
  of the detection loss where it has terms of the same kind.
- It is float32 inside, finite for a batch without objects and for all-zero maps, and its gradient reaches the student
  only.
- `taught` speaks of the student's anchors and grid, whatever the teacher's are: the task translates it. Its levels are
  in the teacher's order, its classes are the teacher's.
- Images without ground truth (`batch.labelled`) are taught like all others; what looks at targets tells them apart.
- `needs` says what both heads must have: `"objectness"`. A pair of heads that lacks it is told so.
- It is built with `(Sides, **options)`; options are the arguments with a default, and what a user writes under the
  method's name in a hyp file (`weight` is not among them: the task weighs, by `default_weight` where a recipe says
  nothing).
  It must not keep a head as an attribute, but in a tuple: a head is a module, and would be saved and trained with the
  loss.
- Where student and teacher predict the same it is 0 and does not pull; cross-entropies are the teacher's entropy there.
  Only mixed labels may pull on.

To add one: a file here, a line below, a value test. The contract test runs over this table.
"""

from __future__ import annotations

from distill.outputs.base import OutputLoss
from distill.outputs.bckd import BridgingProtocol
from distill.outputs.decoupled import DecoupledHead
from distill.outputs.kl import BernoulliDivergence
from distill.outputs.logit_mse import LogitMSE
from distill.outputs.objectness_scaled import ObjectnessScaled
from distill.outputs.objectness_scaled_bce import ObjectnessScaledBCE
from distill.outputs.soft_labels import SoftLabels
from distill.outputs.softmax_kl import SoftmaxDivergence

OUTPUTS: dict[str, type[OutputLoss]] = {
    "bckd": BridgingProtocol,
    "decoupled": DecoupledHead,
    "kl": BernoulliDivergence,
    "logit_mse": LogitMSE,
    "objectness_scaled": ObjectnessScaled,
    "objectness_scaled_bce": ObjectnessScaledBCE,
    "soft_labels": SoftLabels,
    "softmax_kl": SoftmaxDivergence,
}
