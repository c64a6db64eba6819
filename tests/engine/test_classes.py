"""Which classes of a model are scored as which of the data."""

from __future__ import annotations

import logging

import pytest

from engine.classes import shared_classes
from utils.errors import UserError

NAMES = ("cat", "dog", "bird")


@pytest.mark.parametrize(
    ("own", "named", "names", "expected"),
    [
        (("a", "b"), True, ("A", "b"), None),
        (("b", "a"), True, ("a", "b"), [(0, 1), (1, 0)]),
        (("traffic_light", "x"), True, ("Traffic Light",), [(0, 0)]),
        (("class0", "class1"), False, ("a", "b"), None),
        (("uno", "due"), True, ("one", "two"), None),
    ],
)
def test_classes_are_matched_by_name_then_by_index(own, named, names, expected) -> None:
    assert shared_classes(own, named, names) == expected


def test_classes_that_have_nothing_in_common_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"know 2 classes \(x, y\) and the data has 3 \(cat, dog, bird\)"):
        shared_classes(("x", "y"), True, NAMES)
    with pytest.raises(UserError, match="2 classes without names"):
        shared_classes(("class0", "class1"), False, NAMES)


def test_classes_that_cannot_be_scored_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert shared_classes(("dog", "cat"), True, NAMES) == [(0, 1), (1, 0)]
    assert "the weights know 2 of the data's 3 classes by name; not: bird" in caplog.text


def test_classes_taken_by_index_in_spite_of_their_names_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert shared_classes(("gatto", "cane", "uccello"), True, NAMES) is None
    assert "share no name; they are matched by index" in caplog.text
