"""The shelf of feature losses: one method, one file, one paper.

A feature loss is a `features.base.FeatureLoss`:

- `loss(student, teacher, lesson) -> scalar`: two maps of one shape, (B, C, H, W), and a `distill.pairs.Lesson` (batch,
  stride, and the taught prediction with its head where the class says `needs_prediction`). A mean, so that its size
  depends neither on the batch nor on the image. Losses that `needs_boxes` look at the batch's targets, of images that
  have labels.
- It is float32 inside, finite for a batch without objects and for all-zero maps, and its gradient reaches the student
  and what learns beside it only: the adapter, and whatever parameters the loss has (each gets one, if only 0).
- `adapter` says what stands before it: `"conv_bn"`, `"conv"` or `None` (see `distill.pairs.FeaturePair`).
- `from_pair(channels, stride, **options)` builds it; options are the keyword arguments of `__init__`, each with a
  default, and what a user writes under the method's name in a hyp file (`weight` is not among them: the task weighs).

To add one: a file here, a line below, a value test. The contract test runs over this table.
"""

from __future__ import annotations

from distill.features.adaptive_attention import AdaptiveAttention
from distill.features.attention import AttentionTransfer
from distill.features.base import FeatureLoss
from distill.features.batch_similarity import BatchSimilarity
from distill.features.contrastive import Contrastive
from distill.features.cwd import ChannelWiseDistillation
from distill.features.fgd import FocalGlobal
from distill.features.fsp import FlowOfSolution
from distill.features.gram import Gram
from distill.features.ifv import IntraClassVariation
from distill.features.mgd import MaskedGeneration
from distill.features.mimic import Mimic
from distill.features.pairwise import PairwiseSimilarity
from distill.features.pkd import PearsonCorrelation
from distill.features.pointwise import L1, L2
from distill.features.position_similarity import PositionSimilarity
from distill.features.score_weighted import ScoreWeighted

FEATURES: dict[str, type[FeatureLoss]] = {
    "adaptive_attention": AdaptiveAttention,
    "attention": AttentionTransfer,
    "batch_similarity": BatchSimilarity,
    "contrastive": Contrastive,
    "cwd": ChannelWiseDistillation,
    "fgd": FocalGlobal,
    "fsp": FlowOfSolution,
    "gram": Gram,
    "ifv": IntraClassVariation,
    "l1": L1,
    "l2": L2,
    "mgd": MaskedGeneration,
    "mimic": Mimic,
    "pairwise": PairwiseSimilarity,
    "pkd": PearsonCorrelation,
    "position_similarity": PositionSimilarity,
    "score_weighted": ScoreWeighted,
}
