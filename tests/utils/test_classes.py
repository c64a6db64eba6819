"""Names of classes."""

from __future__ import annotations

from utils.classes import listed, same_classes

COCO = ["person", "bicycle", "car", "traffic light", "dog"]


def test_pairs_stand_in_the_order_of_the_first_list() -> None:
    assert same_classes(["car", "helmet", "person"], COCO) == [(0, 2), (2, 0)]


def test_case_spaces_and_hyphens_do_not_matter() -> None:
    assert same_classes(["Traffic-Light", "DOG", "traffic_light"], COCO) == [(0, 3), (1, 4), (2, 3)]


def test_an_exact_name_wins_over_a_similar_one() -> None:
    assert same_classes(["tv"], ["T V", "tv"]) == [(0, 1)]


def test_part_of_a_name_is_not_the_name() -> None:
    assert same_classes(["car", "person rider"], COCO) == [(0, 2)]


def test_equal_lists_agree_one_by_one_even_with_a_name_twice() -> None:
    assert same_classes(["a", "b", "a"], ["a", "b", "a"]) == [(0, 0), (1, 1), (2, 2)]
    assert same_classes(["b"], ["a", "b", "b"]) == [(0, 1)]


def test_long_lists_are_cut() -> None:
    assert listed(COCO, 2) == "person, bicycle and 3 more"
    assert listed(COCO) == "person, bicycle, car, traffic light, dog"
