"""What heads say, in common terms: against the heads' own decoding, and against loops."""

from __future__ import annotations

import math

import pytest
import torch

from distill.outputs.view import AnchorCells, FreeCells, cells_of, side_by_side
from models.heads.anchor import Detect
from tests.distill.heads import KINDS, make_head, make_levels
from utils.types import Prediction


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "anchors"])
def test_scores_and_boxes_of_cells_are_what_their_head_decodes(kind):
    head, levels = make_head(kind), make_levels(kind).levels
    decoded = head.decode(levels).split([level.shape[2] * level.shape[3] for level in levels], dim=1)
    for index, (level, rows) in enumerate(zip(levels, decoded, strict=True)):
        check(cells_of(head, index, level), rows, 8 * 2**index)


def test_scores_and_boxes_of_anchors_are_what_their_head_decodes():
    head, levels = Detect(3, [[10, 13, 16, 30], [30, 61, 62, 45]], [4, 4], (8, 16)), make_levels("anchors").levels[:2]
    decoded = head.decode(levels).split([level[..., 0].numel() // 2 for level in levels], dim=1)
    for index, (level, rows) in enumerate(zip(levels, decoded, strict=True)):
        check(cells_of(head, index, level), rows, 8 * 2**index)


def check(cells, rows, stride):
    """A level's cells, and the (B, N, 5 + C) rows that its head decodes."""
    _, anchors, height, width = cells.shape
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    corners = torch.stack((x, y, 0 * x, 0 * x), dim=-1)
    boxes = (cells.boxes() + corners) * stride
    torch.testing.assert_close(boxes.flatten(1, 3), rows[..., :4], rtol=1e-4, atol=1e-3)
    scores = rows[..., 4:5] * rows[..., 5:]
    torch.testing.assert_close(cells.scores().sigmoid().flatten(1, 3), scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cells.highest_score().flatten(1), scores.amax(-1), rtol=1e-4, atol=1e-6)
    objectness = rows[..., 4] if anchors > 1 else scores.amax(-1)
    torch.testing.assert_close(cells.belief().flatten(1), objectness, rtol=1e-4, atol=1e-6)
    which = torch.tensor([2, 0, 2])
    assert torch.equal(cells.scores(which), cells.scores()[..., which])
    assert torch.equal(cells.classes(which), cells.classes()[..., which])

    mask = cells.belief() > 0.3
    for some in (cells.at(mask), cells.at(mask.nonzero(as_tuple=True)), cells.at(mask).join([cells.at(mask)])):
        count = len(some.rows)
        torch.testing.assert_close(some.boxes(), cells.boxes()[mask].repeat(count // int(mask.sum()), 1))
        torch.testing.assert_close(some.scores(), cells.scores()[mask].repeat(count // int(mask.sum()), 1))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_level_is_copied(kind):
    level = make_levels(kind).levels[0]
    assert cells_of(make_head(kind), 0, level).rows.data_ptr() == level.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_it_is_read_in_float32(kind):
    head = make_head(kind)
    level = make_levels(kind).levels[0].bfloat16()
    half, full = cells_of(head, 0, level), cells_of(head, 0, level.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(half.boxes(), full.boxes(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(half.scores(), full.scores(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(half.belief(), full.belief(), rtol=1e-6, atol=1e-7)
        assert half.at(half.belief() > 0.5).rows.dtype == torch.float32


def test_bins_are_the_sides_in_order():
    level = torch.zeros(1, 4 * 8 + 3, 2, 2)
    for side, distance in enumerate((1, 2, 3, 4)):  # left, top, right, bottom
        level[:, 8 * side + distance] = 50
    cells = cells_of(make_head("dfl"), 0, level)
    assert cells.bins().shape == (1, 1, 2, 2, 4, 8)
    assert cells.bins()[0, 0, 0, 0].argmax(-1).tolist() == [1, 2, 3, 4]
    # from (0.5 - 1, 0.5 - 2) to (0.5 + 3, 0.5 + 4)
    assert cells.boxes()[0, 0, 1, 1].tolist() == pytest.approx([1.5, 1.5, 4, 6])


def test_the_strongest_anchor_speaks_for_its_cell():
    head, levels = make_head("anchors"), make_levels("anchors").levels
    for index, level in enumerate(levels):
        cells, numbers = cells_of(head, index, level), level.tolist()
        spoken = cells.strongest()
        assert isinstance(spoken, AnchorCells)
        assert spoken.shape == (2, 1, *cells.shape[2:])
        for b in range(2):
            for y in range(cells.shape[2]):
                for x in range(cells.shape[3]):
                    scores = [
                        sigmoid(row[4]) * max(map(sigmoid, row[5:])) for row in (numbers[b][a][y][x] for a in (0, 1))
                    ]
                    best = scores.index(max(scores))
                    assert spoken.rows[b, 0, y, x].tolist() == numbers[b][best][y][x]
                    assert spoken.anchors[b, 0, y, x].tolist() == head.anchors[index, best].tolist()
                    assert spoken.belief()[b, 0, y, x].item() == pytest.approx(max(scores), rel=1e-4)


def test_the_strongest_of_a_single_class_is_that_of_highest_objectness():
    level = torch.zeros(1, 2, 1, 1, 6)
    level[0, :, 0, 0, 4] = torch.tensor([1.0, 2.0])
    level[0, :, 0, 0, 5] = torch.tensor([9.0, -9.0])  # which nothing trains
    cells = cells_of(make_head("anchors", 1), 0, level)
    assert cells.strongest().rows[0, 0, 0, 0, 4] == 2
    assert cells.highest_score().flatten().tolist() == pytest.approx([sigmoid(1), sigmoid(2)])


def test_a_gradient_reaches_the_strongest_anchor_alone():
    level = make_levels("anchors").levels[0].requires_grad_()
    cells = cells_of(make_head("anchors"), 0, level)
    best = cells.highest_score().argmax(1)
    cells.strongest().scores().sum().backward()
    pulls = level.grad.abs().sum(-1) > 0
    assert torch.equal(pulls[:, 1], best == 1)
    assert torch.equal(pulls[:, 0], best == 0)


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("teacher", KINDS)
def test_both_sides_lie_on_common_cells(student, teacher):
    heads = make_head(student), make_head(teacher)
    mine, theirs = make_levels(student), make_levels(teacher)
    for level in theirs.levels:
        level.requires_grad_()
    views = list(side_by_side(heads, [(0, 0), (2, 2)], mine, theirs))
    assert len(views) == 2
    for (own, other), size in zip(views, (8, 2), strict=True):
        assert own.shape == other.shape == (2, 2 if student == teacher == "anchors" else 1, size, size)
        assert not other.rows.requires_grad
        assert isinstance(own, AnchorCells if student == "anchors" else FreeCells)


def test_a_translated_teacher_has_the_students_anchors_and_its_own_classes():
    heads = make_head("anchors"), make_head("anchors", 5)
    heads[1].anchors *= 7
    ((own, other),) = side_by_side(heads, [(0, 0)], make_levels("anchors"), make_levels("anchors", 5))
    assert torch.equal(own.anchors, other.anchors)
    assert (own.num_classes, other.num_classes) == (3, 5)


def test_of_no_images_there_are_no_cells():
    for kind in KINDS:
        cells = cells_of(make_head(kind), 0, make_levels(kind, images=0).levels[0])
        assert cells.strongest().boxes().numel() == cells.belief().numel() == 0


def test_saturated_numbers_stay_finite():
    for kind in KINDS:
        for value in (-1e4, 0.0, 1e4):
            prediction = Prediction(tuple(torch.full_like(level, value) for level in make_levels(kind).levels))
            cells = cells_of(make_head(kind), 0, prediction.levels[0])
            assert cells.boxes().isfinite().all() and cells.scores().isfinite().all()
            assert cells.strongest().belief().isfinite().all()
