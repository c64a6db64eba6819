"""The valuable localization region, beside a slow search."""

from __future__ import annotations

import statistics

import pytest
import torch
from torchvision.ops import box_iou, distance_box_iou

from distill.outputs import regions
from distill.outputs.regions import valuable_region
from utils.types import Batch

GRIDS, STRIDES = [(12, 16), (6, 8), (3, 4)], [8, 16, 32]


def batch_of(targets, labelled=(True, True)):
    return Batch(torch.zeros(len(labelled), 3, 96, 128), torch.tensor(targets).reshape(-1, 6), torch.tensor(labelled))


def drawn(count):
    centres, sides = torch.rand(count, 2), 0.05 + 0.6 * torch.rand(count, 2) ** 2
    image = torch.arange(count)[:, None] % 2
    return torch.cat((image, torch.zeros(count, 1), centres, sides), dim=1).tolist()


def slow_search(batch, gamma):
    """Cell by cell and target by target, with torchvision's overlaps in float64."""
    cells = [
        ((x + 0.5) * stride, (y + 0.5) * stride, stride, level)
        for level, ((height, width), stride) in enumerate(zip(GRIDS, STRIDES, strict=True))
        for y in range(height)
        for x in range(width)
    ]
    squares = torch.tensor([(x - 4 * s, y - 4 * s, x + 4 * s, y + 4 * s) for x, y, s, _ in cells], dtype=torch.float64)
    found = [[False] * len(cells) for _ in batch.labelled]
    for image, _, x, y, w, h in batch.targets.double().tolist():
        if not batch.labelled[int(image)]:
            continue
        x, y, w, h = x * 128, y * 96, w * 128, h * 96
        box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]], dtype=torch.float64)
        plain, away = box_iou(squares, box)[:, 0].tolist(), distance_box_iou(squares, box)[:, 0].tolist()
        candidates = []
        for level in range(3):
            own = [number for number, cell in enumerate(cells) if cell[3] == level]
            own.sort(key=lambda number: (cells[number][0] - x) ** 2 + (cells[number][1] - y) ** 2)
            candidates += [plain[number] for number in own[:9]]
        threshold = statistics.mean(candidates) + statistics.pstdev(candidates)
        for number, overlap in enumerate(away):
            found[int(image)][number] |= gamma * threshold <= overlap < threshold
    return torch.tensor(found)


@pytest.mark.parametrize("gamma", [0.25, 0.6])
def test_the_region_is_that_of_the_slow_search(gamma):
    torch.manual_seed(3)
    batch = batch_of(drawn(5))
    expected = slow_search(batch, gamma)
    found = valuable_region(GRIDS, STRIDES, batch, gamma)
    assert 0.02 < expected.float().mean() < 0.9
    assert torch.equal(found, expected)


def test_a_crowd_is_looked_at_in_parts(monkeypatch):
    batch = batch_of(drawn(7))
    whole = valuable_region(GRIDS, STRIDES, batch, 0.25)
    monkeypatch.setattr(regions, "PAIRS", 600)  # two targets at a time
    assert torch.equal(valuable_region(GRIDS, STRIDES, batch, 0.25), whole)


def test_images_without_targets_or_labels_have_no_region():
    (target,) = drawn(1)
    assert not valuable_region(GRIDS, STRIDES, batch_of([]), 0.25).any()
    assert not valuable_region(GRIDS, STRIDES, batch_of([target], labelled=(False, True)), 0.25).any()
    only_first = valuable_region(GRIDS, STRIDES, batch_of([target]), 0.25)
    assert only_first[0].any()
    assert not only_first[1].any()


def test_without_images_there_is_no_region():
    empty = Batch(torch.zeros(0, 3, 96, 128), torch.zeros(0, 6), torch.zeros(0, dtype=torch.bool))
    assert valuable_region(GRIDS, STRIDES, empty, 0.25).shape == (0, 252)


def test_with_gamma_1_nothing_lies_between():
    assert not valuable_region(GRIDS, STRIDES, batch_of(drawn(4)), 1.0).any()
