"""The detection loss of YOLOv3 and YOLOv5 heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from losses.terms import bbox_iou, bce, smoothed
from utils.types import Batch, Prediction

if TYPE_CHECKING:
    from utils.hyp import Hyp

# objectness of fine levels counts more: they have many cells and few objects
BALANCE = {3: (4.0, 1.0, 0.4)}
BALANCE_OTHERWISE = (4.0, 1.0, 0.25, 0.06, 0.02)

# The cell of a target's centre, then the nearest ones left, up, right, down. Half a cell is as far as they reach:
# a predicted centre lies within (-0.5, 1.5) of its cell.
REACH = 0.5
STEPS = ((0.0, 0.0), (-REACH, 0.0), (0.0, -REACH), (REACH, 0.0), (0.0, REACH))


class AnchorHead(Protocol):
    """What the loss reads from a detection head."""

    num_classes: int
    anchors: Tensor  # (L, A, 2) width and height in cells of the level


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
        box=hyp.box * levels,
        obj=hyp.obj * levels * height * width / 640**2,
        cls=hyp.cls * levels * num_classes / 80,
    )


class Matches(NamedTuple):
    """Which cell and anchor of a level answers for which target, M pairs, in the order the last of which counts."""

    image: Tensor  # (M,) long, as the next four
    anchor: Tensor
    row: Tensor
    column: Tensor
    label: Tensor  # class
    boxes: Tensor  # (M, 4) xywh in cells, the centre relative to the cell's upper left corner

    def cells(self, shape: torch.Size) -> Tensor:
        """(M,) positions in a flattened (B, A, H, W) map of this shape."""
        return ((self.image * shape[1] + self.anchor) * shape[2] + self.row) * shape[3] + self.column


class Matcher(nn.Module):
    """Finds who answers for which target.

    A target is matched with every anchor whose sides are within a factor `largest_ratio` of its own, in the cell of its
    centre and the two nearest neighbours, on every level where that holds. Unlabelled images have no targets.
    """

    steps: Tensor

    def __init__(self, largest_ratio: float) -> None:
        super().__init__()
        self.largest_ratio = largest_ratio
        self.register_buffer("steps", torch.tensor(STEPS), persistent=False)

    def forward(self, shape: torch.Size, anchors: Tensor, batch: Batch) -> Matches:
        """Of a level of shape (B, A, H, W, ...) with (A, 2) anchors in its cells."""
        height, width = shape[2:4]
        targets = batch.targets.float()
        image = targets[:, 0].long()
        centres = torch.stack((targets[:, 2] * width, targets[:, 3] * height), dim=-1)  # (N, 2) in cells
        sides = torch.stack((targets[:, 4] * width, targets[:, 5] * height), dim=-1)

        ratios = sides / anchors[:, None]  # (A, N, 2)
        fits = torch.maximum(ratios, 1 / ratios).amax(dim=-1) < self.largest_ratio
        # a centre just between two cells has its own cell twice: published, and so kept
        to_end = torch.stack((width - centres[:, 0], height - centres[:, 1]), dim=-1)
        before = (centres % 1 < REACH) & (centres > 1)  # (N, 2): nearer to the left, upper neighbour, which exists
        after = (to_end % 1 < REACH) & (to_end > 1)
        near = torch.cat((torch.ones_like(before[:, :1]), before, after), dim=-1).T  # (5, N) as STEPS

        wanted = near[:, None] & fits & batch.labelled[image]  # (5, A, N)
        step, anchor, target = wanted.nonzero(as_tuple=True)
        cell = (centres[target] + self.steps[step]).long()
        # a centre on the right or lower border lies in the last cell
        column, row = cell[:, 0].clamp(0, width - 1), cell[:, 1].clamp(0, height - 1)
        offsets = centres[target] - torch.stack((column, row), dim=-1)
        boxes = torch.cat((offsets, sides[target]), dim=-1)
        return Matches(image[target], anchor, row, column, targets[target, 1].long(), boxes)


class AnchorLoss(nn.Module):
    """Box (CIoU), objectness and class (binary cross-entropy) terms of heads with anchors; the shelf's contract.

    Targets are matched as `Matcher` says. Objectness is to equal the overlap of the predicted box with the target. A
    head with a single class has no class term: objectness says it all.

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
        self.match = Matcher(hyp.anchor_t)
        self.cls_pw, self.obj_pw, self.gamma = hyp.cls_pw, hyp.obj_pw, hyp.fl_gamma
        self.positive, self.negative = smoothed(hyp.label_smoothing)

    def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        (head,) = self._head
        terms = {name: self.match.steps.new_zeros(()) for name in Gains._fields}
        with torch.autocast(prediction.levels[0].device.type, enabled=False):
            for level, anchors, weight in zip(prediction.levels, head.anchors.float(), self.balance, strict=True):
                matches = self.match(level.shape, anchors, batch)
                # float32 from here on; the rest of a level, most of it, is never copied
                rows = level[matches.image, matches.anchor, matches.row, matches.column].float()  # (M, 5 + C)
                overlap = bbox_iou(decode(rows, anchors[matches.anchor]), matches.boxes, kind="ciou")  # (M,)
                terms["box"] += mean(1 - overlap)
                terms["obj"] += weight * self.objectness(level[..., 4].float(), overlap, matches, batch.labelled)
                if head.num_classes > 1:
                    terms["cls"] += self.classes(rows[:, 5:], matches.label)
        return {name: gain * terms[name] for name, gain in self.gains._asdict().items()}

    def objectness(self, logits: Tensor, overlap: Tensor, matches: Matches, labelled: Tensor) -> Tensor:
        """(B, A, H, W) logits and (M,) overlaps -> scalar, a mean over the cells of labelled images."""
        wanted = overlap_map(overlap, matches, logits.shape)
        loss = bce(logits, wanted, self.obj_pw, self.gamma).mean(dim=(1, 2, 3))  # (B,)
        return (loss * labelled).sum() / labelled.sum().clamp(min=1)

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


def decode(rows: Tensor, anchors: Tensor) -> Tensor:
    """(M, 5 + C) raw predictions and (M, 2) anchors -> (M, 4) xywh in the anchors' unit, relative to the cell."""
    centres = rows[:, :2].sigmoid() * 2 - REACH
    sides = (rows[:, 2:4].sigmoid() * 2) ** 2 * anchors
    return torch.cat((centres, sides), dim=-1)


def mean(values: Tensor) -> Tensor:
    """The mean, 0 and still in the graph where there are no values."""
    return values.sum() / max(values.numel(), 1)
