"""Heads, levels and targets that the losses are tested on, and the recorded cases of heads with anchors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_iou, complete_box_iou

from losses.anchor import AnchorLoss, Gains
from utils.family import ANCHORS, box_gain
from utils.hyp import Hyp
from utils.types import Batch, Prediction

ANCHORS_PX = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
STRIDES = (8, 16, 32)
SIZE = (64, 96)


@dataclass
class Head:
    """As much of a detection head as the losses look at."""

    num_classes: int
    anchors: Tensor
    strides: Tensor


def make_head(num_classes: int, anchors_px: Any = ANCHORS_PX, strides: Any = STRIDES) -> Head:
    steps = torch.tensor(strides, dtype=torch.float32)
    return Head(num_classes, torch.tensor(anchors_px, dtype=torch.float32) / steps[:, None, None], steps)


@dataclass
class FreeHead:
    """As much of a head without anchors."""

    num_classes: int
    strides: Tensor
    reg_max: int
    two_branches: bool
    nms_free: bool


def make_batch(targets: Tensor, images: int = 2, labelled: list[bool] | None = None) -> Batch:
    known = torch.tensor(labelled if labelled is not None else [True] * images)
    return Batch(torch.zeros(images, 3, *SIZE), targets, known)


@pytest.fixture
def head_with() -> Callable[..., Head]:
    return make_head


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture
def levels_of() -> Callable[..., tuple[Tensor, ...]]:
    def draw(images: int = 2, num_classes: int = 3, size: tuple[int, int] = SIZE) -> tuple[Tensor, ...]:
        shapes = [(images, 3, size[0] // s, size[1] // s, 5 + num_classes) for s in STRIDES]
        return tuple(torch.randn(shape).requires_grad_() for shape in shapes)

    return draw


@pytest.fixture
def free_head_with() -> Callable[..., FreeHead]:
    def make(num_classes: int = 3, reg_max: int = 16, two_branches: bool = False, nms_free: bool = False) -> FreeHead:
        return FreeHead(num_classes, torch.tensor(STRIDES, dtype=torch.float32), reg_max, two_branches, nms_free)

    return make


@pytest.fixture
def free_levels_of() -> Callable[..., tuple[Tensor, ...]]:
    """Levels of heads without anchors, whose boxes are of all sizes, 3 strides a side on average."""

    def draw(
        images: int = 2, num_classes: int = 3, reg_max: int = 16, size: tuple[int, int] = SIZE
    ) -> tuple[Tensor, ...]:
        levels = []
        for stride in STRIDES:
            place = (images, 4, reg_max, size[0] // stride, size[1] // stride)
            # logits with their maximum near 3, or distances
            bins = torch.arange(reg_max).view(1, 1, -1, 1, 1)
            sides = torch.randn(place) - (bins - 3).abs() if reg_max > 1 else torch.rand(place) * 6
            levels.append(torch.cat((sides.flatten(1, 2), torch.randn(images, num_classes, *place[3:]) - 1), dim=1))
        return tuple(level.requires_grad_() for level in levels)

    return draw


@pytest.fixture
def some_targets() -> Callable[..., Tensor]:
    def draw(count: int = 12, images: int = 2, num_classes: int = 3) -> Tensor:
        image = torch.randint(images, (count, 1))
        label = torch.randint(num_classes, (count, 1))
        return torch.cat((image, label, torch.rand(count, 2), torch.rand(count, 2) * 0.5 + 0.05), dim=1)

    return draw


# -- the recorded cases ------------------------------------------------------------------------------------------------


class Replayed(NamedTuple):
    """What a loss says to a recorded case; the names are those of the case."""

    items: list[float]
    total: float
    gradient_norms: list[float]
    gradient_sums_abs: list[float]


def read_cases(file: Path) -> dict[str, dict]:
    content = json.loads(file.read_text())
    return {case["name"]: case | {"targets": content["targets"][case["targets"]]} for case in content["cases"]}


@pytest.fixture
def replay() -> Callable[[dict, type[AnchorLoss]], Replayed]:
    return replayed


@pytest.fixture
def cases_in() -> Callable[[Path], dict[str, dict]]:
    return read_cases


def replayed(case: dict, loss_class: type[AnchorLoss]) -> Replayed:
    levels, images = drawn_levels(case), case["level_shapes"][0][0]
    recipe, lead = Hyp(**case["hyp"]), len(case["stride"])
    head = make_head(case["level_shapes"][0][-1] - 5, case["anchors_px"], case["stride"])
    loss = loss_class(head, recipe, tuple(case["image_height_width"]), Gains(recipe.box, recipe.obj, recipe.cls))
    targets = torch.tensor(case["targets"], dtype=torch.float32).reshape(-1, 6)

    terms = loss(Prediction(levels[:lead], levels[lead:]), make_batch(targets, images))
    total = sum(terms.values()) * images
    total.backward()
    assert list(terms) == ["box", "obj", "cls"]
    return Replayed(
        [term.item() for term in terms.values()],
        total.item(),
        [float(level.grad.norm()) for level in levels],
        [float(level.grad.abs().sum()) for level in levels],
    )


def drawn_levels(case: dict) -> tuple[Tensor, ...]:
    """By the rule that goes with the recorded numbers."""
    rng = np.random.default_rng(case["level_seed"])
    levels = []
    for shape in case["level_shapes"]:
        lowered = np.array([0, 0, 0, 0, 2] + [1.5] * (shape[-1] - 5))
        levels.append(torch.tensor((rng.normal(0, 1, shape) - lowered).astype(np.float32), requires_grad=True))
    return tuple(levels)


# -- the definitions, cell by cell -------------------------------------------------------------------------------------

Answer = tuple[int, int, int, int, int]  # image, anchor, row, column and the number of the target


@pytest.fixture
def slow_ratio_matches() -> Callable[..., list[list[Answer]]]:
    return ratio_matches


@pytest.fixture
def slow_terms() -> Callable[..., list[Tensor]]:
    return terms_of


def ratio_matches(
    levels: tuple[Tensor, ...], targets: Tensor, head: Head, reach: float = 0.5, largest: float = 4.0
) -> list[list[Answer]]:
    """A list a level: over steps, then anchors, then targets."""
    found = []
    for level, anchors in zip(levels, head.anchors.tolist(), strict=True):
        height, width = level.shape[2:4]
        found.append([])
        for step_x, step_y in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
            for a, anchor in enumerate(anchors):
                for number, (image, _, x, y, w, h) in enumerate(targets.tolist()):
                    x, y, w, h = x * width, y * height, w * width, h * height
                    factors = [w / anchor[0], h / anchor[1]]
                    if min(factors) == 0 or max(max(f, 1 / f) for f in factors) >= largest:
                        continue
                    # a neighbour counts where the centre lies near to it; measured from the other end for right and
                    # down, so that a centre just between two cells has its own cell twice
                    if (step_x == -1 and (x % 1 >= reach or x <= 1)) or (step_y == -1 and (y % 1 >= reach or y <= 1)):
                        continue
                    left_over, below = width - x, height - y
                    if step_x == 1 and (left_over % 1 >= reach or left_over <= 1):
                        continue
                    if step_y == 1 and (below % 1 >= reach or below <= 1):
                        continue
                    column, row = min(int(x + step_x * reach), width - 1), min(int(y + step_y * reach), height - 1)
                    found[-1].append((int(image), a, row, column, number))
    return found


def terms_of(
    levels: tuple[Tensor, ...],
    matches: list[list[Answer]],
    targets: Tensor,
    head: Head,
    recipe: Hyp,
    ignored: set[tuple[int, int, int, int, int]] = frozenset(),
) -> list[Tensor]:
    """Box, objectness and class terms; `ignored`: level, image, anchor, row, column."""
    box_term = obj_term = cls_term = torch.zeros(())
    for number, (level, own, anchors) in enumerate(zip(levels, matches, head.anchors, strict=True)):
        height, width = level.shape[2:4]
        wanted, counted = torch.zeros(level.shape[:4]), torch.ones(level.shape[:4])
        box_losses, class_losses = [], []
        for image, a, row, column, target in own:
            _, label, x, y, w, h = targets[target].tolist()
            x, y, w, h = x * width, y * height, w * width, h * height
            raw = level[image, a, row, column]
            centre = raw[:2].sigmoid() * 2 - 0.5 + torch.tensor([column, row])
            half = (raw[2:4].sigmoid() * 2) ** 2 * anchors[a] / 2
            box = torch.cat((centre - half, centre + half))
            aim = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            overlap = complete_box_iou(box[None], aim[None])[0, 0]
            box_losses.append(1 - overlap)
            wanted[image, a, row, column] = overlap.detach().clamp(min=0)
            aims = torch.full((head.num_classes,), recipe.label_smoothing / 2)
            aims[int(label)] = 1 - recipe.label_smoothing / 2
            probability = raw[5:].sigmoid()
            class_losses.append(-(aims * probability.log() + (1 - aims) * (1 - probability).log()))
        if box_losses:
            box_term = box_term + torch.stack(box_losses).mean()
            cls_term = cls_term + torch.stack(class_losses).mean()
        for place in ignored:
            if place[0] == number:
                counted[place[1:]] = 0
        probability = level[..., 4].sigmoid()
        entropy = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log())
        obj_term = obj_term + (4.0, 1.0, 0.4)[number] * (entropy * counted).mean()
    return [box_gain(recipe, ANCHORS) * box_term, recipe.obj * obj_term, recipe.cls * cls_term]


@pytest.fixture
def slow_iou_matches() -> Callable[..., list[list[Answer]]]:
    return iou_matches


def iou_matches(levels: tuple[Tensor, ...], targets: Tensor, head: Head, threshold: float = 0.5) -> list[list[Answer]]:
    """A list a level: over anchors, then targets; those above the threshold, and the best of all levels."""
    found = [[] for _ in levels]
    places = [(number, a) for number in range(len(levels)) for a in range(len(head.anchors[number]))]
    for target, (image, _, x, y, w, h) in enumerate(targets.tolist()):
        overlaps = {}
        for number, a in places:
            height, width = levels[number].shape[2:4]
            sides = torch.tensor([w * width, h * height])
            pair = [torch.cat((-half, half))[None] / 2 for half in (sides, head.anchors[number, a])]
            overlaps[number, a] = float(box_iou(*pair))
        best = max(places, key=lambda place: overlaps[place])
        for number, a in places:
            if overlaps[number, a] > threshold or ((number, a) == best and overlaps[best] > 0):
                height, width = levels[number].shape[2:4]
                row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
                found[number].append((int(image), a, row, column, target))
    return [sorted(own, key=lambda answer: (answer[1], answer[4])) for own in found]


@pytest.fixture
def slow_overlapping() -> Callable[..., set[tuple[int, ...]]]:
    return overlapping_places


def overlapping_places(levels: tuple[Tensor, ...], targets: Tensor, head: Head, threshold: float) -> set:
    """Level, image, anchor, row and column of predictions that overlap a target of their image by more."""
    found = set()
    for number, level in enumerate(levels):
        height, width = level.shape[2:4]
        for image, a, row, column in np.ndindex(*level.shape[:4]):
            raw = level[image, a, row, column].detach()
            centre = raw[:2].sigmoid() * 2 - 0.5 + torch.tensor([column, row])
            half = (raw[2:4].sigmoid() * 2) ** 2 * head.anchors[number, a] / 2
            own = targets[targets[:, 0] == image][:, 2:] * torch.tensor([width, height, width, height])
            aims = torch.cat((own[:, :2] - own[:, 2:] / 2, own[:, :2] + own[:, 2:] / 2), dim=1)
            if (box_iou(torch.cat((centre - half, centre + half))[None], aims) > threshold).any():
                found.add((number, image, a, row, column))
    return found


# -- memory ------------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Watches what is computed; `bytes` is the size of the largest result."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.fixture
def largest_tensor() -> type[LargestTensor]:
    return LargestTensor
