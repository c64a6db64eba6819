"""The student's features, read by the teacher's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distill.options import not_negative
from distill.outputs.base import Sides
from distill.outputs.cellwise import BACKGROUND, CellsLoss
from distill.outputs.quality_focal import quality_focal
from distill.outputs.terms import box_mismatch, softmax_divergence
from distill.outputs.view import FreeCells, cells_of
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch, Prediction

STAGES = 3  # of a tower


class CrossHeadDistillation(CellsLoss):
    """What the teacher's head makes of the student's features is to be what it makes of its own.

    The student's intermediate features, behind the first `split` of the three stages of its towers, go through the
    stages of the teacher's towers that remain. These cross-head predictions are compared with the teacher's own, so
    that the student's own predictions answer to the labels alone and are not pulled in two directions. With p a class
    score and b the highest one that the teacher has in a cell, of the classes that the student has, too:

    - classes, summed over cells and classes: quality focal loss, |p_cross - p_T| * cross-entropy(p_cross, p_T);
    - boxes, summed over cells with weight b: T² * KL of the distributions of distances, a mean over the four sides;
      with distances that are put out directly 1 - GIoU;

    each over the sum of b, at least 1. (The paper compares boxes where the assignment finds objects; b needs no
    labels.) The weights of the parts are the published ones; the detection loss's gains have no part in it.

    Nothing of the teacher moves. The student's stages run once more, on the maps that enter its head, as they stand in
    training, but their running statistics see these maps only once. Where a stage of the student is of other widths
    than the teacher's, a 1x1 convolution stands between them; it learns along and is thrown away after training. Both
    classes and bins are the teacher's on both sides, so the student's may differ. Of two branches, one-to-many.

    Source: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024, arXiv:2306.11369.

    Args:
        split: 1 or 2, how many stages are the student's.
        classes, box: weights of the parts; 0 leaves one out.
        beta: power of |p_cross - p_T|.
        temperature: of the distances. A number or a schedule, see `distill.temperature`.
    """

    needs = ("towers",)
    needs_maps = True
    default_weight = 0.4

    def __init__(
        self,
        sides: Sides,
        split: int = 2,
        classes: float = 1.0,
        box: float = 4.0,
        beta: float = 1.0,
        temperature: Any = 1.0,
    ) -> None:
        super().__init__(sides)
        where = "output loss 'crosskd'"
        if not isinstance(split, int) or isinstance(split, bool) or not 0 < split < STAGES:
            raise UserError(f"{where}: split: got {split!r}, expected 1 or 2: stages of three that are the student's")
        self.split = split
        self.class_weight = not_negative(f"{where}: classes", classes)
        self.box_weight = not_negative(f"{where}: box", box)
        self.beta = not_negative(f"{where}: beta", beta)
        self.temperature = Temperature(where, temperature)
        if not self.class_weight and not self.box_weight:
            raise UserError(f"{where}: classes and box are both 0, which leaves nothing to compare")
        self.register_buffer("taught_classes", torch.tensor(sorted(set(sides.classes.teacher))), persistent=False)
        # one for the box and one for the class tower of each pair of levels
        self.adapters = nn.ModuleList(
            nn.ModuleList(self._adapter(*towers) for towers in self._towers(own, other))
            for own, other in self.level_pairs
        )

    taught_classes: Tensor  # (K',) classes of the teacher that the student has, each once

    def forward(self, student: Prediction, taught: Prediction, batch: Batch, maps: Sequence[Tensor]) -> Tensor:
        """The teacher's raw levels, and the maps (B, C, H, W) that enter the student's head -> scalar."""
        totals = []
        for place, (own, other) in enumerate(self.level_pairs):
            crossed = self._crossed(place, maps[own])
            with torch.autocast(crossed.device.type, enabled=False):
                totals.append(self._level(other, crossed, taught.levels[other].detach()))
        classes, boxes, belief = torch.stack(totals).sum(0)
        return (self.class_weight * classes + self.box_weight * boxes) / belief.clamp(min=1)

    def _level(self, index: int, crossed: Tensor, taught: Tensor) -> Tensor:
        """Sums over one level of the teacher: classes, boxes, and what it believes."""
        head = self._heads[1]
        mine, theirs = (cast(FreeCells, cells_of(head, index, level)) for level in (crossed, taught))
        target = theirs.classes(self.taught_classes).float().sigmoid()  # (B, 1, H, W, K)
        belief = target.amax(dim=-1)
        classes = quality_focal(mine.classes(self.taught_classes).float(), target, self.beta)
        seen = (belief > BACKGROUND).nonzero(as_tuple=True)
        weight = belief[seen]
        boxes = self._boxes_apart(mine.at(seen), theirs.at(seen)) * weight
        return torch.stack([classes.sum(), boxes.sum(), weight.sum()])

    def _boxes_apart(self, mine: FreeCells, theirs: FreeCells) -> Tensor:
        """Of M cells -> (M,)."""
        if mine.reg_max == 1:
            return box_mismatch(mine.boxes(), theirs.boxes(), "giou")
        return softmax_divergence(mine.bins(), theirs.bins(), self.temperature).mean(-1)

    # -- towers --------------------------------------------------------------------------------------------------------

    def _towers(self, own: int, other: int) -> list[tuple[nn.Sequential, nn.Sequential]]:
        """Box towers and class towers, of student and teacher, at these levels."""
        return list(zip(self._heads[0].towers(own), self._heads[1].towers(other), strict=True))

    def _adapter(self, student: nn.Sequential, teacher: nn.Sequential) -> nn.Module:
        own, other = (_channels_into(tower[self.split :]) for tower in (student, teacher))
        return nn.Identity() if own == other else nn.Conv2d(own, other, 1)

    def _crossed(self, place: int, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 * reg_max + C', H, W), a raw level in the teacher's words."""
        adapters = cast(nn.ModuleList, self.adapters[place])
        parts = []
        for (student, teacher), adapter in zip(self._towers(*self.level_pairs[place]), adapters, strict=True):
            features = adapter(_without_memory(student[: self.split], x))
            parts.append(_unmoved(teacher[self.split :], features))
        return torch.cat(parts, dim=1)


def _channels_into(stages: nn.Module) -> int:
    """Of the map that these stages read."""
    return next(module.in_channels for module in stages.modules() if isinstance(module, nn.Conv2d))


def _without_memory(stages: nn.Module, x: Tensor) -> Tensor:
    """`stages(x)`, its parameters learning from it, its running statistics unmoved."""
    copies = {name: buffer.clone() for name, buffer in stages.named_buffers()}
    result: Tensor = functional_call(stages, copies, (x,))
    return result


def _unmoved(stages: nn.Module, x: Tensor) -> Tensor:
    """`stages(x)`, through which `x` learns and of which nothing moves, whatever format it is in."""
    # float32, of which autocast makes what it needs: norms take no weights of another format than their statistics
    weights = {name: parameter.detach().float() for name, parameter in stages.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in stages.named_buffers()}
    result: Tensor = functional_call(stages, weights | buffers, (x,))
    return result
