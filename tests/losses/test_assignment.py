"""Task-aligned assignment, against a loop over targets and cells."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, complete_box_iou

from losses import assignment
from losses.assignment import Assignment, TaskAlignedAssigner
from utils.boxes import cell_points

STRIDES = torch.tensor([8.0, 16.0, 32.0])
CLASSES = 3


@pytest.fixture
def assigned(batch_of) -> Callable[..., Assignment]:
    def assign(levels: tuple[Tensor, ...], targets: Tensor, labelled: list[bool] | None = None, **options):
        batch = batch_of(targets, len(levels[0]), labelled)
        return TaskAlignedAssigner(**options).on_levels(levels, STRIDES, CLASSES, batch)

    return assign


# -- the definition, cell by cell --------------------------------------------------------------------------------------


def cells_of(levels: tuple[Tensor, ...]) -> list[tuple[int, int, int]]:
    """Level, row and column of every cell."""
    return [(n, r, c) for n, level in enumerate(levels) for r in range(level.shape[2]) for c in range(level.shape[3])]


def predicted(levels: tuple[Tensor, ...], image: int, place: tuple[int, int, int]) -> tuple[list[float], list[float]]:
    """Box in pixels and class scores of a cell."""
    number, row, column = place
    raw, stride = levels[number][image, :, row, column].detach().double(), 2 ** (3 + number)
    rows = raw[:-CLASSES].view(4, -1)
    if rows.shape[1] > 1:
        weights = rows.exp() / rows.exp().sum(dim=1, keepdim=True)
        rows = (weights * torch.arange(rows.shape[1])).sum(dim=1, keepdim=True)
    left, top, right, bottom = rows[:, 0].tolist()
    x, y = column + 0.5, row + 0.5
    return [v * stride for v in (x - left, y - top, x + right, y + bottom)], raw[-CLASSES:].sigmoid().tolist()


def slowly(
    levels: tuple[Tensor, ...],
    targets: Tensor,
    topk: int = 10,
    best: int | None = None,
    small_objects: bool = False,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> tuple[dict[tuple[int, int], tuple[int, float]], int]:
    """(image, cell) -> the number of its target and its score; and how many cells went to one that did not ask."""
    cells, found, unasked = cells_of(levels), {}, 0
    size = torch.tensor([levels[0].shape[3], levels[0].shape[2]] * 2) * 8
    for image in range(len(levels[0])):
        own = [number for number in range(len(targets)) if int(targets[number, 0]) == image]
        answers = [predicted(levels, image, place) for place in cells]
        boxes = torch.tensor([box for box, _ in answers]).double()
        metrics, overlaps, asked = {}, {}, {}
        for number in own:
            aim = box_convert((targets[number, 2:] * size)[None].double(), "cxcywh", "xyxy")
            window = aim[0].tolist()
            for axis in (0, 1):
                if small_objects and window[axis + 2] - window[axis] < 8:
                    centre = (window[axis] + window[axis + 2]) / 2
                    window[axis], window[axis + 2] = centre - 8, centre + 8
            for cell, (overlap, (level, row, column)) in enumerate(
                zip(complete_box_iou(boxes, aim)[:, 0].tolist(), cells, strict=True)
            ):
                x, y = (column + 0.5) * 2 ** (3 + level), (row + 0.5) * 2 ** (3 + level)
                if window[0] < x < window[2] and window[1] < y < window[3] and overlap > 0:
                    overlaps[number, cell] = overlap
                    metrics[number, cell] = answers[cell][1][int(targets[number, 1])] ** alpha * overlap**beta
            mine = sorted((cell for n, cell in metrics if n == number), key=lambda c: -metrics[number, c])
            for cell in mine[:topk]:
                asked.setdefault(cell, []).append(number)
        taken = {}
        for cell, numbers in asked.items():
            everybody = [n for n in own if (n, cell) in overlaps]
            owner = max(everybody, key=lambda n: overlaps[n, cell]) if len(numbers) > 1 else numbers[0]
            unasked += owner not in numbers
            taken.setdefault(owner, []).append(cell)
        for number, mine in taken.items():
            stay = sorted(mine, key=lambda c: -metrics[number, c])[:best]
            most = max(metrics[number, c] for c in stay)
            widest = max(overlaps[number, c] for c in stay)
            for cell in stay:
                found[image, cell] = (number, metrics[number, cell] * widest / (most + 1e-9))
    return found, unasked


def assert_equal(ours: Assignment, expected: dict[tuple[int, int], tuple[int, float]]) -> None:
    places = {tuple(place) for place in ours.positive.nonzero().tolist()}
    assert places == set(expected)
    for place, (number, score) in expected.items():
        assert ours.target[place] == number
        assert ours.score[place].item() == pytest.approx(score, rel=1e-3, abs=1e-6)
    assert (ours.target[~ours.positive] == -1).all() and (ours.score[~ours.positive] == 0).all()


@pytest.mark.parametrize("reg_max", [16, 1])
@pytest.mark.parametrize("small_objects", [False, True])
@pytest.mark.parametrize(("topk", "best"), [(10, None), (3, None), (1, None), (7, 1), (7, 2)])
def test_assignment_equals_a_loop(topk, best, small_objects, reg_max, assigned, free_levels_of, some_targets):
    levels, targets = free_levels_of(reg_max=reg_max), some_targets(14)
    targets[:5, 4:] = torch.rand(5, 2) * 0.12  # some smaller than a cell
    options = {"topk": topk, "best": best, "small_objects": small_objects}
    expected, _ = slowly(levels, targets, **options)
    assert len(expected) >= (8 if 1 in (topk, best) else 15)
    assert_equal(assigned(levels, targets, **options), expected)


def test_in_a_crowd_contested_cells_go_to_the_nearest_of_all_targets(assigned, free_levels_of, some_targets):
    levels, targets = free_levels_of(), some_targets(60)
    expected, unasked = slowly(levels, targets, topk=3)
    assert unasked > 3
    assert_equal(assigned(levels, targets, topk=3), expected)


@pytest.mark.parametrize("pairs", [1, 50, 1000])
def test_it_does_not_matter_how_many_pairs_are_visited_at_a_time(
    pairs, assigned, free_levels_of, some_targets, monkeypatch
):
    levels, targets = free_levels_of(), some_targets(40)
    whole = assigned(levels, targets)
    monkeypatch.setattr(assignment, "PAIRS", pairs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(assigned(levels, targets), whole, strict=True))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (1.0, 2.0)])
def test_powers_of_score_and_overlap_are_options(alpha, beta, assigned, free_levels_of, some_targets):
    levels, targets = free_levels_of(), some_targets(14)
    options = {"topk": 3, "alpha": alpha, "beta": beta}
    expected, _ = slowly(levels, targets, **options)
    assert expected.keys() != slowly(levels, targets, topk=3)[0].keys()
    assert_equal(assigned(levels, targets, **options), expected)


# -- what follows from it ----------------------------------------------------------------------------------------------


def test_the_best_one_is_a_target_s_only_cell(assigned, free_levels_of, some_targets):
    levels, targets = free_levels_of(), some_targets(40)
    ours = assigned(levels, targets, topk=7, best=1)
    counts = ours.target[ours.positive].bincount(minlength=40)
    assert counts.max() == 1 and counts.sum() > 20


def test_the_best_cell_of_a_target_is_to_score_its_largest_overlap(assigned, free_levels_of):
    levels, targets = free_levels_of(), torch.tensor([[1, 2, 0.5, 0.5, 0.6, 0.7]])
    ours = assigned(levels, targets)
    aim = box_convert(targets[:, 2:] * torch.tensor([96, 64, 96, 64]), "cxcywh", "xyxy")
    cells = cells_of(levels)
    boxes = torch.tensor([predicted(levels, 1, cells[cell])[0] for _, cell in ours.positive.nonzero().tolist()])
    assert len(boxes) == 10 and not ours.positive[0].any()
    assert ours.score.max().item() == pytest.approx(complete_box_iou(boxes, aim).max().item(), rel=1e-3)


def test_small_objects_have_cells_if_the_recipe_says_so(assigned, free_levels_of):
    levels = tuple(torch.zeros_like(level) for level in free_levels_of(reg_max=1))
    around = torch.tensor([44.0, 28, 52, 36])[:, None, None]  # what all cells predict, pixels
    for level, stride in zip(levels, (8, 16, 32), strict=True):
        points = (cell_points(*level.shape[2:]) * stride).movedim(2, 0)
        level[:, :4] = torch.cat((points - around[:2], around[2:] - points)) / stride
    between = torch.tensor([[0, 1, 48 / 96, 32 / 64, 4 / 96, 4 / 64]])  # 4 pixels, amid four points of the finest level
    assert not assigned(levels, between).positive.any()
    widened = assigned(levels, between, small_objects=True)
    finest = widened.on_levels(levels)[0]
    assert finest.positive[0].nonzero().tolist() == [[3, 5], [3, 6], [4, 5], [4, 6]]
    assert (finest.score[finest.positive] > 0).all()


def test_anywhere_a_small_object_has_a_cell(assigned, free_levels_of):
    levels = tuple(torch.full_like(level, 2.0) for level in free_levels_of(reg_max=1))
    for x, y in (torch.rand(50, 2) * 0.9 + 0.05).tolist():
        target = torch.tensor([[0, 0, x, y, 4 / 96, 4 / 64]])
        assert assigned(levels, target, small_objects=True).positive.any()


def test_objects_of_a_cell_or_more_are_not_widened(assigned, free_levels_of, some_targets):
    levels, targets = free_levels_of(), some_targets()
    targets[:, 4:] = targets[:, 4:].clamp(min=0.13)  # more than 8 of 64 pixels
    plain, widened = assigned(levels, targets), assigned(levels, targets, small_objects=True)
    assert plain.positive.any()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain, widened, strict=True))


def test_points_on_a_border_are_outside(assigned, free_levels_of):
    levels = tuple(torch.full_like(level, 2.0) for level in free_levels_of(reg_max=1))
    box = torch.tensor([[4.0, 4, 28, 28]])  # through points of the finest level
    target = box_convert(box, "xyxy", "cxcywh") / torch.tensor([96, 64, 96, 64])
    ours = assigned(levels, torch.cat((torch.zeros(1, 2), target), dim=1), topk=100).on_levels(levels)
    assert ours[0].positive[0].nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_targets_beyond_the_image_have_cells_within_it(assigned, free_levels_of):
    levels, targets = free_levels_of(), torch.tensor([[0, 1, 0.0, 0.0, 0.9, 0.9], [1, 0, 1.2, 0.5, 0.1, 0.5]])
    expected, _ = slowly(levels, targets)
    assert expected
    assert_equal(assigned(levels, targets), expected)


def test_targets_of_unlabelled_images_are_none(assigned, free_levels_of, some_targets):
    levels, targets = free_levels_of(), some_targets(20)
    whole, part = assigned(levels, targets), assigned(levels, targets, [True, False])
    assert whole.positive[1].any() and not part.positive[1].any()
    assert torch.equal(part.target[0], whole.target[0])
    assert torch.allclose(part.score[0], whole.score[0])


@pytest.mark.parametrize("targets", [torch.zeros(0, 6), torch.tensor([[0, 1, 0.5, 0.5, 0, 0]])])
def test_without_objects_nobody_answers(targets, assigned, free_levels_of):
    levels = free_levels_of()
    for options in ({}, {"topk": 7, "best": 1, "small_objects": True}):
        ours = assigned(levels, targets, **options)
        assert ours.positive.shape == ours.score.shape == (2, 126)
        assert not ours.positive.any() and (ours.target == -1).all() and (ours.score == 0).all()


def test_nobody_answers_with_a_box_that_does_not_overlap(assigned, free_levels_of):
    levels = tuple(torch.full_like(level, -1.0) for level in free_levels_of(reg_max=1))  # inside out
    assert not assigned(levels, torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4]])).positive.any()


def test_a_crowd_takes_no_more_memory(assigned, free_levels_of, some_targets, largest_tensor):
    levels, targets = free_levels_of(images=1, size=(640, 640)), some_targets(1000, images=1)
    cells = 8400
    with largest_tensor() as largest:
        ours = assigned(levels, targets)
    assert ours.positive.sum() > 500
    # four sides of a box for each pair, a little more where levels are padded; and levels of 64 box channels
    assert largest.bytes <= max(1.3 * 4 * 4 * assignment.PAIRS, 4 * 64 * cells)
    assert largest.bytes < 4 * 1000 * cells / 4  # instead of all pairs at once, one number each


def test_parts_of_levels_are_the_whole(assigned, free_levels_of, some_targets):
    levels = free_levels_of()
    ours = assigned(levels, some_targets())
    parts = ours.on_levels(levels)
    assert [part.positive.shape for part in parts] == [(2, 8, 12), (2, 4, 6), (2, 2, 3)]
    for number, whole in enumerate(ours):
        assert torch.equal(torch.cat([part[number].flatten(1) for part in parts], dim=1), whole)
