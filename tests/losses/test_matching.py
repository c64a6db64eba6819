"""Which cells and anchors are found for a target, against loops; predictions near a target; in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from losses import matching
from losses.matching import IouMatcher, Matcher, Matches, overlapping

IN_CELLS = torch.tensor([1.0, 1.0])


def answers(matches: Matches) -> list[tuple[int, ...]]:
    return list(zip(*(part.tolist() for part in matches[:5]), strict=True))


def shapes(levels: tuple[Tensor, ...]) -> list[torch.Size]:
    return [level.shape for level in levels]


@pytest.fixture
def at_borders(some_targets) -> Tensor:
    """Targets with some centres on the borders of cells and of the image."""
    targets = some_targets(40)
    targets[:20, 2:4] = (targets[:20, 2:4] * 8).round() / 8
    return targets


# -- by the ratio of sides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [0.5, 1.0])
def test_ratio_matches_equal_a_loop_in_its_order(reach, head_with, levels_of, batch_of, at_borders, slow_ratio_matches):
    head, levels = head_with(3), levels_of()
    found = Matcher(4.0, reach).on_levels(shapes(levels), head.anchors, batch_of(at_borders))
    expected = slow_ratio_matches(levels, at_borders, head, reach)
    assert [answers(own) for own in found] == expected
    assert all(expected)


def test_a_wide_reach_takes_all_four_neighbours(batch_of):
    target = torch.tensor([[1, 0, 0.4, 0.6, 0.1, 0.1]])  # in 10 × 10 cells: column 4, row 6
    matches = Matcher(4.0, reach=1.0)(torch.Size((2, 1, 10, 10, 6)), IN_CELLS[None], batch_of(target))
    assert {(a[3], a[2]) for a in answers(matches)} == {(4, 6), (3, 6), (5, 6), (4, 5), (4, 7)}


def test_a_match_knows_its_target_label_and_box_relative_to_the_cell(batch_of):
    targets = torch.tensor([[0, 7, 0.9, 0.9, 0.9, 0.9], [1, 5, 0.44, 0.62, 0.1, 0.2]])
    matches = Matcher(4.0)(torch.Size((2, 1, 10, 10, 6)), IN_CELLS[None], batch_of(targets))
    assert answers(matches) == [(1, 0, 6, 4, 1), (1, 0, 6, 3, 1), (1, 0, 5, 4, 1)]
    assert matches.label.tolist() == [5, 5, 5]
    expected = torch.tensor([[0.4, 0.2, 1, 2], [1.4, 0.2, 1, 2], [0.4, 1.2, 1, 2]])
    assert torch.allclose(matches.boxes, expected, atol=1e-5)
    assert matches.cells(torch.Size((2, 1, 10, 10))).tolist() == [164, 163, 154]


# -- by the overlap of shapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_iou_matches_equal_a_loop(threshold, head_with, levels_of, batch_of, at_borders, slow_iou_matches):
    head, levels = head_with(3), levels_of()
    found = IouMatcher(threshold).on_levels(shapes(levels), head.anchors, batch_of(at_borders))
    assert [answers(own) for own in found] == slow_iou_matches(levels, at_borders, head, threshold)


def test_every_target_has_an_answer_and_some_have_several(head_with, levels_of, batch_of):
    head, levels = head_with(3), levels_of(size=(320, 320))
    small, middle = [0, 0, 0.5, 0.5, 2 / 320, 2 / 320], [1, 1, 0.3, 0.7, 45 / 320, 70 / 320]
    found = IouMatcher(0.5).on_levels(shapes(levels), head.anchors, batch_of(torch.tensor([small, middle])))
    assert [answers(own) for own in found] == [[(0, 0, 20, 20, 0)], [(1, 0, 14, 6, 1), (1, 1, 14, 6, 1)], []]


def test_iou_matches_of_nothing(head_with, levels_of, batch_of, some_targets):
    head, levels = head_with(3), levels_of()
    without_area = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.0], [0, 1, 0.5, 0.5, 0.0, 0.0]])
    for batch in (batch_of(torch.zeros(0, 6)), batch_of(without_area), batch_of(some_targets(), labelled=[False] * 2)):
        found = IouMatcher(0.5).on_levels(shapes(levels), head.anchors, batch)
        assert [len(own.image) for own in found] == [0, 0, 0]


# -- predictions that overlap a target ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [1, 1000, 2**18])
def test_overlapping_predictions_equal_a_loop(
    pairs, head_with, levels_of, batch_of, some_targets, slow_overlapping, monkeypatch
):
    monkeypatch.setattr(matching, "PAIRS", pairs)
    head, levels, targets = head_with(3), levels_of(images=4), some_targets(24, images=3)
    targets[:16, 0] = 1  # image 3 has none
    found = set()
    for number, (level, anchors) in enumerate(zip(levels, head.anchors, strict=True)):
        places = overlapping(level, anchors, batch_of(targets, images=4), 0.5).nonzero().tolist()
        found |= {(number, *place) for place in places}
    assert found == slow_overlapping(levels, targets, head, 0.5)
    assert {place[1] for place in found} == {0, 1, 2}


def test_nothing_overlaps_no_targets(head_with, levels_of, batch_of):
    level = levels_of()[0]
    assert not overlapping(level, head_with(3).anchors[0], batch_of(torch.zeros(0, 6)), 0.0).any()


def test_a_crowd_is_compared_in_bounded_memory(head_with, levels_of, batch_of, some_targets, largest_tensor):
    level, targets = levels_of(images=4, size=(256, 256))[0], some_targets(1020, images=4)
    targets[:1000, 0] = 2
    with largest_tensor() as largest:
        overlapping(level, head_with(3).anchors[0], batch_of(targets, images=4), 0.7)
    assert largest.bytes <= 4 * matching.PAIRS  # instead of 4 * 3072 * 1000 at least
