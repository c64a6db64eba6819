"""How sure the teacher is of each edge of a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from distill.options import not_negative, positive, share
from distill.outputs.base import Sides
from distill.outputs.positives import Level, PositivesLoss, at, chosen, task_aligned
from distill.outputs.regions import valuable_region
from distill.outputs.terms import softmax_divergence
from distill.outputs.view import Cells, FreeCells
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Batch


class LocalizationDistillation(PositivesLoss):
    """T² * KL of the softened distributions of distances, where an object is and around it.

    A mean over the four edges and over the cells of a region, for each of two regions: the main one, cells that answer
    for an object (`PositivesLoss`), and the valuable one around targets (`valuable_region`), whose cells do not answer
    for an object and yet see its edges. Optionally T² * KL of the classes' softmax in the main region. The weights of
    the parts are the published ones; the detection loss's gains have no part in it.

    Where class lists differ, see `CellsLoss`.

    Source: Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, arXiv:2102.12252.

    Args:
        main, valuable: weights of the regions; 0 leaves one out.
        temperature: of the distances. A number or a schedule, see `distill.temperature`.
        gamma: how far the valuable region reaches, as share of the overlap at which a cell answers for a target.
        classes: weight of the classes.
        class_temperature: theirs.
        tal_topk, tal_alpha, tal_beta, small_objects: see `losses.assignment.TaskAlignedAssigner`. Where a recipe does
            not say, those of its detection loss.
        threshold: see `PositivesLoss`.

    Raises:
        UserError: heads without distributions, or of unequally many bins; classes compared where only one is common.
    """

    needs = ("dfl",)
    default_weight = 4.0

    def __init__(
        self,
        sides: Sides,
        main: float = 0.25,
        valuable: float = 0.25,
        temperature: Any = 10.0,
        gamma: float = 0.25,
        classes: float = 0.0,
        class_temperature: float = 2.0,
        tal_topk: int = 10,
        tal_alpha: float = 0.5,
        tal_beta: float = 6.0,
        small_objects: bool = False,
        threshold: float = 0.25,
    ) -> None:
        where = "output loss 'localization'"
        super().__init__(sides, task_aligned(where, tal_topk, tal_alpha, tal_beta, small_objects), threshold)
        self.main = not_negative(f"{where}: main", main)
        self.valuable = not_negative(f"{where}: valuable", valuable)
        self.temperature = Temperature(where, temperature)
        self.gamma = share(f"{where}: gamma", gamma)
        self.class_weight = not_negative(f"{where}: classes", classes)
        self.class_temperature = Temperature(where, positive(f"{where}: class_temperature", class_temperature))
        if not self.main and not self.valuable and not self.class_weight:
            raise UserError(f"{where}: main, valuable and classes are all 0, which leaves nothing to compare")
        if self.class_weight and len(set(sides.classes.student)) == 1:
            raise UserError(
                f"{where}: classes compares how classes share a cell, but student and teacher have only one in common; "
                "leave it out"
            )

    def compare(self, levels: Sequence[Level], positives: Sequence[Tensor], batch: Batch) -> Tensor:
        trust = [self.trusted(other) for _, other in levels]
        own, other = chosen(levels, positives)
        edges, weight = self._edges(own, other), at(trust, positives)
        total = self.main * _mean(edges, weight)
        if self.class_weight:
            shares = softmax_divergence(*self.scores(own, other), self.class_temperature)
            total = total + self.class_weight * _mean(shares, weight)
        if self.valuable:
            around = self._around(positives, batch)
            total = total + self.valuable * _mean(self._edges(*chosen(levels, around)), at(trust, around))
        return total

    def _edges(self, own: Cells, other: Cells) -> Tensor:
        """Of M cells -> (M,)."""
        return softmax_divergence(cast(FreeCells, own).bins(), cast(FreeCells, other).bins(), self.temperature).mean(-1)

    def _around(self, positives: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """(B, 1, H, W) bool a level: the valuable region."""
        grids = [(mask.shape[2], mask.shape[3]) for mask in positives]
        sizes = [height * width for height, width in grids]
        found = valuable_region(grids, self.strides, batch, self.gamma).split(sizes, dim=1)
        return [around.view_as(mask) & ~mask for around, mask in zip(found, positives, strict=True)]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted; small where the weights do not add up to 1."""
    return (values * weight).sum() / weight.sum().clamp(min=1)
