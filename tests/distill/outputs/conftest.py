"""Predictions as plain numbers, for slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou

from distill.classes import match_classes
from distill.gains import Gains
from distill.outputs import OUTPUTS
from distill.outputs.base import Sides
from losses.assignment import TaskAlignedAssigner
from tests.distill.heads import make_head
from utils.registry import build
from utils.types import Prediction

FREE_GAINS = Gains(box=7.5, obj=0.0, cls=1.5, dfl=1.5)  # of a head without anchors and with three classes


class Cell(NamedTuple):
    mine: list[float]  # x, y, w, h, objectness, classes
    theirs: list[float]
    anchor: tuple[float, float]  # pixels
    stride: int
    place: tuple[int, int, int, int, int]  # level, image, anchor, row, column


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def answering(student, taught, batch, threshold=0.25, **options):
    """(B, N) bool: cells of heads without anchors; assigned, in images without labels by the teacher's scores."""
    assigned = (
        TaskAlignedAssigner(**options).on_levels(student.levels, torch.tensor([8.0, 16.0, 32.0]), 3, batch).positive
    )
    scores = torch.cat([level[:, -3:].sigmoid().amax(1).flatten(1) for level in taught.levels], dim=1)
    return torch.where(batch.labelled[:, None], assigned, scores >= threshold)


@pytest.fixture
def cells_of(detector) -> Callable:
    """Every cell of two predictions of the usual head."""
    head = detector().head
    strides, sizes = (8, 16, 32), head.anchors_px.tolist()

    def cells(student, taught) -> list[Cell]:
        found = []
        for number, (own, other, stride) in enumerate(zip(student.levels, taught.levels, strides, strict=True)):
            images, anchors, height, width, _ = own.shape
            mine, theirs = own.tolist(), other.tolist()
            found += [
                Cell(mine[b][a][y][x], theirs[b][a][y][x], tuple(sizes[number][a]), stride, (number, b, a, y, x))
                for b in range(images)
                for a in range(anchors)
                for y in range(height)
                for x in range(width)
            ]
        return found

    return cells


@pytest.fixture
def draw_boxes(draw_prediction) -> Callable:
    """A prediction whose boxes have an area to speak of."""

    def draw() -> Prediction:
        prediction = draw_prediction()
        for level in prediction.levels:
            level[..., 2:4] /= 3
        return prediction

    return draw


@pytest.fixture
def overlap_of() -> Callable:
    """Overlap of the boxes that two rows of a cell mean, in pixels and by torchvision."""

    def corners(row, cell):
        *_, y, x = cell.place
        centre = [(2 * sigmoid(v) - 0.5 + at) * cell.stride for v, at in zip(row[:2], (x, y), strict=True)]
        half = [(2 * sigmoid(v)) ** 2 * side / 2 for v, side in zip(row[2:4], cell.anchor, strict=True)]
        return torch.tensor([[c - h for c, h in zip(centre, half, strict=True)] +
                             [c + h for c, h in zip(centre, half, strict=True)]], dtype=torch.float64)  # fmt: skip

    kinds = {"iou": box_iou, "giou": generalized_box_iou, "diou": distance_box_iou, "ciou": complete_box_iou}

    def overlap(cell: Cell, kind: str) -> float:
        return kinds[kind](corners(cell.mine, cell), corners(cell.theirs, cell)).item()

    return overlap


@pytest.fixture
def believed() -> Callable:
    """Mean over cells, weighted by the teacher's objectness where it is above 0.01; mean over all cells."""

    def means(cells, box, objectness, classes) -> tuple[float, float, float]:
        boxes = labels = belief = everywhere = 0.0
        for cell in cells:
            trust = sigmoid(cell.theirs[4]) if sigmoid(cell.theirs[4]) > 0.01 else 0.0
            boxes += trust * box(cell)
            labels += trust * classes(cell.mine[5:], cell.theirs[5:])
            everywhere += objectness(cell.mine[4], cell.theirs[4])
            belief += trust
        return boxes / belief, everywhere / len(cells), labels / belief

    return means


@pytest.fixture
def loss_between() -> Callable:
    """An output loss between heads of two kinds (`KINDS` of tests.distill.heads), mostly without anchors."""

    def make(name, student="dfl", teacher="dfl", own=("cat", "dog", "bird"), other=("cat", "dog", "bird"), **options):
        heads = make_head(student, len(own)), make_head(teacher, len(other))
        sides = Sides(*heads, match_classes(own, other, len(own), len(other)), FREE_GAINS)
        return build("output loss", name, OUTPUTS, sides, options=options)

    return make
