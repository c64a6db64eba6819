"""The detection loss of YOLOv7: targets choose who answers for them by what is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.anchor import AnchorHead, AnchorLoss, Gains
from losses.matching import PAIRS, Matcher, Matches, decode, in_cells
from losses.terms import bbox_iou
from utils.types import Batch, Prediction

if TYPE_CHECKING:
    from utils.hyp import Hyp

TOP = 10  # best overlaps that say how many may answer for a target
TOP_WITH_AUXILIARY = 20
WIDE_REACH = 1.0  # cells: all four neighbours are candidates on auxiliary levels
IOU_WEIGHT = 3.0  # of the overlap in the cost, beside the classes
SMALLEST_IOU = 1e-8  # what is added before the logarithm
SMALLEST_LOG = -100.0  # of a probability, as in `F.binary_cross_entropy`


class OtaLoss(AnchorLoss):
    """The terms of `AnchorLoss`, with answers that are chosen by what is predicted (dynamic k, as in SimOTA).

    Candidates are the matches by the ratio of sides, over all levels; each of them may answer for any target of its
    image. What a candidate costs a target is the cross-entropy of sqrt(class * objectness) with the target's class,
    plus 3 * -log(IoU) of the decoded box. A target takes its k cheapest candidates, k being the sum of its 10 best IoUs
    rounded down, at least 1. A candidate that several targets take answers for the one, of all in the image, that it
    costs least.

    With auxiliary levels, k sums the 20 best IoUs. The auxiliary levels are guided by the others: what answers there is
    chosen by the prediction of these, among candidates in all four neighbouring cells instead of two.

    Sources: Ge et al., "OTA: Optimal Transport Assignment for Object Detection", CVPR 2021, arXiv:2103.14259, and
    "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430, for SimOTA; Wang et al., "YOLOv7: Trainable
    bag-of-freebies sets new state-of-the-art for real-time object detectors", CVPR 2023, arXiv:2207.02696.
    """

    match: Matcher

    def __init__(self, head: AnchorHead, hyp: Hyp, image_size: tuple[int, int], gains: Gains | None = None) -> None:
        super().__init__(head, hyp, image_size, gains)
        self.match_widely = Matcher(hyp.anchor_t, WIDE_REACH)

    def assign(self, prediction: Prediction, batch: Batch) -> tuple[list[Matches], list[Matches]]:
        levels = [level.detach() for level in prediction.levels]
        if not prediction.aux:
            return self.choose(levels, self.match, TOP, batch), []
        return (
            self.choose(levels, self.match, TOP_WITH_AUXILIARY, batch),
            self.choose(levels, self.match_widely, TOP_WITH_AUXILIARY, batch),
        )

    def choose(self, levels: Sequence[Tensor], match: Matcher, top: int, batch: Batch) -> list[Matches]:
        """Of each level's matches those that answer for a target, and for which."""
        matches = match.on_levels([level.shape for level in levels], self.anchors, batch)
        strides = self._head[0].strides.float()
        candidates = Candidates.of(levels, matches, self.anchors, strides)
        targets = batch.targets.float()
        boxes = torch.cat(in_cells(targets, levels[0].shape), dim=-1) * strides[0]
        answers = answered(candidates, targets, boxes, top)

        chosen = []
        parts = answers.split([len(own.image) for own in matches])
        for level, own, target in zip(levels, matches, parts, strict=True):
            (kept,) = (target >= 0).nonzero(as_tuple=True)
            cell = torch.stack((own.column[kept], own.row[kept]), dim=-1)
            chosen.append(Matches.of(targets, target[kept], own.anchor[kept], cell, level.shape))
        return chosen


class Candidates(NamedTuple):
    """Matches of all levels, M of them, which may answer for any target of their image; image after image.

    A cell and anchor that several targets are matched with is as many candidates, of equal cost. Which of equals is
    taken is thus felt: it decides whether another target finds one of its own. Those matched with later targets come
    first in an image and are taken first; this reproduces the published numbers, where it is left to the sorting.
    """

    number: Tensor  # (M,) long: its place among the matches of all levels, level after level
    first: Tensor  # (B,) long: where an image's begin
    count: Tensor  # (B,) long: how many it has
    boxes: Tensor  # (M, 4) xywh, pixels
    absent: Tensor  # (M,) cost of the classes if none of them were there
    present: Tensor  # (M, C) what it costs more that a class is there

    @classmethod
    def of(cls, levels: Sequence[Tensor], matches: Sequence[Matches], anchors: Tensor, strides: Tensor) -> Candidates:
        """Of levels (B, A, H, W, 5 + C), with (L, A, 2) anchors in cells and (L,) strides."""
        rows, boxes = [], []
        for level, own, sides, stride in zip(levels, matches, anchors, strides, strict=True):
            raw = level[own.image, own.anchor, own.row, own.column].float()
            centres, sides = decode(raw, sides[own.anchor]).split(2, dim=-1)
            cell = torch.stack((own.column, own.row), dim=-1)
            boxes.append(torch.cat((centres + cell, sides), dim=-1) * stride)
            rows.append(raw)
        image, target = torch.cat([own.image for own in matches]), torch.cat([own.target for own in matches])
        number = target.argsort(stable=True, descending=True)
        number = number[image[number].argsort(stable=True)]
        count = image.new_zeros(len(levels[0])).scatter_add_(0, image, torch.ones_like(image))
        absent, present = _class_costs(torch.cat(rows)[number, 4:])
        return cls(number, count.cumsum(0) - count, count, torch.cat(boxes)[number], absent, present)


def _class_costs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 1 + C) objectness and classes -> `absent` and `present` of `Candidates`, for p = sqrt(class * objectness).

    The cross-entropy with the class of one target is then a sum of two numbers, instead of one of C logarithms.
    """
    log_p = (F.logsigmoid(logits[:, 1:]) + F.logsigmoid(logits[:, :1])) / 2  # (M, C)
    log_rest = torch.log(-torch.expm1(log_p)).clamp(min=SMALLEST_LOG)  # of 1 - p
    return -log_rest.sum(dim=1), log_rest - log_p


@torch.no_grad()
def answered(candidates: Candidates, targets: Tensor, boxes: Tensor, top: int) -> Tensor:
    """(M,) the number of the target for which each match answers, -1 for none; level after level.

    All candidates of an image are compared with all its targets, `PAIRS` at a time: crowds take time, not memory.

    Args:
        targets: (N, 6) of the batch.
        boxes: (N, 4) of these, xywh in pixels.
        top: how many of a target's best overlaps are summed.
    """
    image = targets[:, 0].long()
    available, order = candidates.count[image].sort(descending=True, stable=True)  # so that parts are hardly padded
    times = torch.zeros_like(candidates.number)
    taken_by = torch.full_like(times, -1)
    cheapest = torch.full_like(times, torch.iinfo(times.dtype).max)
    for start, stop, width in _parts(available.tolist()):
        asking = order[start:stop]
        place, cost, takes = _ask(candidates, targets[asking], boxes[asking], width, top)
        taken = place[takes]
        times.scatter_add_(0, taken, torch.ones_like(taken))
        taken_by[taken] = asking[takes.nonzero(as_tuple=True)[0]]  # some one of them, where there are several
        # a cost is not negative, so its bits, read as a whole number, are in order; the target's number stands below
        ticket = (cost.view(torch.int32).long() << 32) | asking[:, None]
        cheapest.scatter_reduce_(0, place.flatten(), ticket.flatten(), "amin")
    answers = torch.where(times > 1, cheapest & 0xFFFFFFFF, taken_by)
    return torch.empty_like(answers).scatter_(0, candidates.number, answers)


def _parts(available: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cuts targets that have so many candidates, most first: (start, stop, candidates of the first)."""
    start = 0
    while start < len(available) and available[start]:
        stop = start + max(1, PAIRS // available[start])
        yield start, stop, available[start]
        start = stop


def _ask(candidates: Candidates, targets: Tensor, boxes: Tensor, width: int, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each of T targets takes: (T, width) each, candidates, what they cost, and whether they are taken.

    Rows with fewer candidates than `width` are filled up with such of infinite cost.
    """
    image, label = targets[:, :2].long().unbind(-1)
    place = torch.arange(width, device=targets.device).expand(len(targets), width)
    beyond = place >= candidates.count[image][:, None]
    place = (place + candidates.first[image][:, None]).masked_fill(beyond, 0)

    iou = bbox_iou(candidates.boxes[place], boxes[:, None]).masked_fill(beyond, 0)
    cost = candidates.absent[place] + candidates.present[place, label[:, None]]
    cost = (cost - IOU_WEIGHT * torch.log(iou + SMALLEST_IOU)).clamp(min=0).masked_fill(beyond, torch.inf)

    top = min(top, width)
    k = iou.topk(top).values.sum(dim=1).long().clamp(1, top)
    limit = cost.topk(top, largest=False).values.gather(1, k[:, None] - 1)  # what the last one taken costs
    cheaper, equal = cost < limit, (cost == limit) & ~beyond
    takes = cheaper | (equal & (equal.cumsum(dim=1) <= k[:, None] - cheaper.sum(dim=1, keepdim=True)))
    return place, cost, takes
