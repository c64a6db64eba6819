"""The shelf of output losses: what the student's raw predictions learn from the teacher's.

An output loss is an `outputs.base.OutputLoss`:

- `loss(student, taught, batch) -> scalar`: two `Prediction`s of raw levels for the same images, of two-branch heads the
  one-to-many levels. A mean, times `gains` where the detection loss has terms of the same kind.
- It is float32 inside, finite for a batch without objects and for all-zero maps, and its gradient reaches the student
  only.
- `self.views(student, taught)` are the levels of both side by side, read through `outputs.view`: scores, boxes and
  beliefs of any head on common cells. A method that reads them is at home with all heads.
- `taught` speaks of the student's anchors and grid, whatever the teacher's are: the task translates it. Its levels are
  in the teacher's order, its classes are the teacher's.
- Images without ground truth (`batch.labelled`) are taught like all others; what looks at targets tells them apart.
- `needs` says what both heads must have, in words of `outputs.base.NEEDS`: `"objectness"`, `"anchors"`, `"dfl"` (equal
  `reg_max` above 1), `"towers"`, `"layout"` (raw numbers of one meaning). A pair of heads that lacks it is told so.
- With `needs_maps` it is called `loss(student, taught, batch, maps)`: the student's maps that its head reads, one a
  level of it, (B, C, H, W), with gradient.
- It is built with `(Sides, **options)`; options are the arguments with a default, and what a user writes under the
  method's name in a hyp file (`weight` is not among them: the task weighs, by `default_weight` where a recipe says
  nothing).
  It must not keep a head as an attribute, but in a tuple (`self._heads`): a head is a module, and would be saved and
  trained with the loss.
- Where student and teacher predict the same it is 0 and does not pull; cross-entropies are the teacher's entropy there.
  Only mixed labels may pull on.

To add one: a file here, a line below, a value test. The contract test runs over this table.
"""

from __future__ import annotations

from distill.outputs.base import OutputLoss
from distill.outputs.bckd import BridgingProtocol
from distill.outputs.crosskd import CrossHeadDistillation
from distill.outputs.cwd_logits import ChannelWiseLogits
from distill.outputs.decoupled import DecoupledHead
from distill.outputs.dist import RelationalScores
from distill.outputs.kl import BernoulliDivergence
from distill.outputs.localization import LocalizationDistillation
from distill.outputs.logit_mse import LogitMSE
from distill.outputs.objectness_scaled import ObjectnessScaled
from distill.outputs.objectness_scaled_bce import ObjectnessScaledBCE
from distill.outputs.quality_focal import QualityFocalImitation
from distill.outputs.soft_labels import SoftLabels
from distill.outputs.softmax_kl import SoftmaxDivergence

OUTPUTS: dict[str, type[OutputLoss]] = {
    "bckd": BridgingProtocol,
    "crosskd": CrossHeadDistillation,
    "cwd_logits": ChannelWiseLogits,
    "decoupled": DecoupledHead,
    "dist": RelationalScores,
    "kl": BernoulliDivergence,
    "localization": LocalizationDistillation,
    "logit_mse": LogitMSE,
    "objectness_scaled": ObjectnessScaled,
    "objectness_scaled_bce": ObjectnessScaledBCE,
    "quality_focal": QualityFocalImitation,
    "soft_labels": SoftLabels,
    "softmax_kl": SoftmaxDivergence,
}
