"""How far is each position from what is typical of its class?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.features.base import FeatureLoss, directions, rows
from distill.features.masks import smallest_box, with_last
from utils.types import Batch

if TYPE_CHECKING:
    from distill.pairs import Lesson


class IntraClassVariation(FeatureLoss):
    """Mean squared difference of the maps of intra-class variation: each position's cosine similarity to the prototype,
    the mean feature, of its class.

    The paper has a class for each pixel. Here the boxes of the ground truth say it: a position belongs to the class of
    the smallest box over it, and where there is no box to the background, which is a class like others. Prototypes are
    of one image and class, so that the value does not depend on which images share a batch. A class with a single
    position is its own prototype and says nothing. Images without labels are left out. Similarities need no common
    channels: no adapter.

    Source: Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020.
    """

    adapter = None
    needs_boxes = True
    default_weight = 0.15

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) -> scalar, a mean over the positions of labelled images."""
        regions = _regions(lesson.batch, *student.shape[2:])
        count = len(lesson.batch.targets) + len(lesson.batch.labelled)
        own, shown = (_typicality(x, regions, count) for x in (student, teacher.detach()))
        differences = (own - shown).square().unflatten(0, (len(student), -1)).mean(1)  # (B,)
        labelled = lesson.batch.labelled.float()
        return (differences * labelled).sum() / labelled.sum().clamp(min=1)


def _typicality(x: Tensor, regions: Tensor, count: int) -> Tensor:
    """(B, C, H, W) and the region of each position, (BHW,) below count -> (BHW,) similarity to the region's mean."""
    features = rows(x).float().flatten(0, 1)
    # a sum points where the mean does
    prototypes = features.new_zeros(count, features.shape[1]).index_add(0, regions, features)
    return (directions(features) * directions(prototypes)[regions]).sum(1)


def _regions(batch: Batch, height: int, width: int) -> Tensor:
    """(BHW,) long: a number for each image and class that has positions; N + image for the background."""
    box = smallest_box(batch, height, width)
    background = len(batch.targets) + torch.arange(len(box), device=box.device)
    return torch.where(box < 0, background[:, None, None], with_last(_groups(batch.targets), -1)[box]).flatten()


def _groups(targets: Tensor) -> Tensor:
    """(N,) long below N: the same for boxes of one image and class, and for no others."""
    key = targets[:, 0].long() * (1 << 20) + targets[:, 1].long()
    ordered, order = key.sort()
    changes = ordered[1:] != ordered[:-1]
    return torch.empty_like(key).scatter_(0, order, torch.cat((key.new_zeros(len(key[:1])), changes.cumsum(0))))
