"""The detection loss of heads with anchors (YOLOv3, v5, v7); `losses/ota.py` differs in who answers for a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from losses.matching import IouMatcher, Matcher, Matches, decode, overlapping
from losses.terms import bbox_iou, bce, smoothed
from utils.family import ANCHORS, box_gain
from utils.types import Batch, Prediction

if TYPE_CHECKING:
    from utils.hyp import Hyp

# objectness of fine levels counts more: they have many cells and few objects
BALANCE = {3: (4.0, 1.0, 0.4)}
BALANCE_OTHERWISE = (4.0, 1.0, 0.25, 0.06, 0.02)

AUXILIARY = 0.25  # what auxiliary levels count, beside those that are there to stay


class AnchorHead(Protocol):
    """What the loss reads from a detection head."""

    num_classes: int
    anchors: Tensor  # (L, A, 2) width and height in cells of the level
    strides: Tensor  # (L,) pixels


class Gains(NamedTuple):
    """Weights of the three terms."""

    box: float
    obj: float
    cls: float


def rescaled_gains(hyp: Hyp, num_levels: int, num_classes: int, image_size: tuple[int, int]) -> Gains:
    """The recipe's gains, which are meant for 3 levels, 80 classes and 640 × 640 pixels, for this head and size."""
    height, width = image_size
    levels = 3 / num_levels
    return Gains(
        box=box_gain(hyp, ANCHORS) * levels,
        obj=hyp.obj * levels * height * width / 640**2,
        cls=hyp.cls * levels * num_classes / 80,
    )


class AnchorLoss(nn.Module):
    """Box (CIoU), objectness and class (binary cross-entropy) terms of heads with anchors; the shelf's contract.

    Targets are matched by the ratio of sides (`Matcher`) or, `assign: iou`, by the overlap of shapes (`IouMatcher`);
    then, too, predictions that overlap a target by more than `ignore_iou` without being its answer are neither right
    nor wrong, and have no objectness term. Objectness is to equal the overlap of the predicted box with the target. A
    head with a single class has no class term: objectness says it all.

    Auxiliary levels, where there are any, are judged in the same way and count `AUXILIARY`.

    Args:
        head: its anchors are read at every call, since they may be fitted to the data after the loss was built.
        image_size: height and width, pixels.
        gains: weights of the terms, instead of the recipe's rescaled ones.
    """

    def __init__(self, head: AnchorHead, hyp: Hyp, image_size: tuple[int, int], gains: Gains | None = None) -> None:
        super().__init__()
        self._head = (head,)  # nn.Module does not look into tuples: the head stays the model's alone
        num_levels = len(head.anchors)
        self.gains = gains or rescaled_gains(hyp, num_levels, head.num_classes, image_size)
        self.balance = BALANCE.get(num_levels, BALANCE_OTHERWISE)[:num_levels]
        by_iou = hyp.assign == "iou"
        self.match = IouMatcher(hyp.assign_iou) if by_iou else Matcher(hyp.anchor_t)
        self.ignore_iou = hyp.ignore_iou if by_iou else 1.0  # no overlap is above 1
        self.cls_pw, self.obj_pw, self.gamma = hyp.cls_pw, hyp.obj_pw, hyp.fl_gamma
        self.positive, self.negative = smoothed(hyp.label_smoothing)

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) in cells, float32."""
        return self._head[0].anchors.float()

    def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(prediction.levels[0].device.type, enabled=False):
            lead, auxiliary = self.assign(prediction, batch)
            terms = self.judge(prediction.levels, lead, batch)
            if prediction.aux:
                beside = self.judge(prediction.aux, auxiliary, batch)
                terms = {name: term + AUXILIARY * beside[name] for name, term in terms.items()}
        return {name: gain * terms[name] for name, gain in self.gains._asdict().items()}

    def assign(self, prediction: Prediction, batch: Batch) -> tuple[list[Matches], list[Matches]]:
        """Who answers for which target, on each level and on each auxiliary level (if there are any)."""
        matches = self.match.on_levels([level.shape for level in prediction.levels], self.anchors, batch)
        return matches, matches

    def judge(self, levels: Sequence[Tensor], matches: Sequence[Matches], batch: Batch) -> dict[str, Tensor]:
        """The terms before their gains, sums over levels."""
        terms = {name: levels[0].new_zeros((), dtype=torch.float32) for name in Gains._fields}
        for level, own, anchors, weight in zip(levels, matches, self.anchors, self.balance, strict=True):
            # float32 from here on; the rest of a level, most of it, is never copied
            rows = level[own.image, own.anchor, own.row, own.column].float()  # (M, 5 + C)
            overlap = bbox_iou(decode(rows, anchors[own.anchor]), own.boxes, kind="ciou")  # (M,)
            terms["box"] += mean(1 - overlap)
            terms["obj"] += weight * self.objectness(level, anchors, overlap, own, batch)
            if self._head[0].num_classes > 1:
                terms["cls"] += self.classes(rows[:, 5:], own.label)
        return terms

    def objectness(self, level: Tensor, anchors: Tensor, overlap: Tensor, matches: Matches, batch: Batch) -> Tensor:
        """A level, its (A, 2) anchors and (M,) overlaps -> scalar, a mean over the cells of labelled images.

        Ignored cells count 0 in it, so that the others' share does not depend on them.
        """
        wanted = overlap_map(overlap, matches, level.shape[:4])
        loss = bce(level[..., 4].float(), wanted, self.obj_pw, self.gamma)  # (B, A, H, W)
        if self.ignore_iou < 1:
            ignored = overlapping(level, anchors, batch, self.ignore_iou)
            ignored.view(-1)[matches.cells(level.shape)] = False
            loss = loss.masked_fill(ignored, 0)
        return (loss.mean(dim=(1, 2, 3)) * batch.labelled).sum() / batch.labelled.sum().clamp(min=1)

    def classes(self, logits: Tensor, label: Tensor) -> Tensor:
        """(M, C) logits and (M,) classes -> scalar, a mean over matches and classes."""
        targets = torch.full_like(logits, self.negative).scatter_(1, label[:, None], self.positive)
        return mean(bce(logits, targets, self.cls_pw, self.gamma))


def overlap_map(overlap: Tensor, matches: Matches, shape: torch.Size) -> Tensor:
    """(M,) overlaps of matches -> (B, A, H, W), what objectness is to be: at least 0, and 0 where nothing is matched.

    Where matches share a cell and an anchor, the last one's overlap counts. Writing to repeated positions would leave
    that to chance on a GPU, so the last is found first: its number is the largest.
    """
    numbers = torch.arange(1, len(overlap) + 1, device=overlap.device)
    last = numbers.new_zeros(shape.numel()).scatter_reduce_(0, matches.cells(shape), numbers, "amax")
    overlap = torch.cat((overlap.new_zeros(1), overlap.detach().clamp(min=0)))  # 0 for the unmatched
    return overlap[last].view(shape)


def mean(values: Tensor) -> Tensor:
    """The mean, 0 and still in the graph where there are no values."""
    return values.sum() / max(values.numel(), 1)
