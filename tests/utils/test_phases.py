from __future__ import annotations

import itertools

import pytest

from utils.config import from_mapping
from utils.errors import UserError
from utils.phases import Phase, stretch_at, stretches

THREE = (Phase(epochs=20, name="features"), Phase(epochs=40, name="outputs"), Phase(epochs=10, name="labels"))


def test_phases_follow_each_other_without_a_gap():
    parts = stretches(THREE, 70)
    assert [(part.phase.name, part.start, part.epochs) for part in parts] == [
        ("features", 0, 20),
        ("outputs", 20, 40),
        ("labels", 60, 10),
    ]


@pytest.mark.parametrize("epochs", [7, 20, 35, 71, 300])
def test_a_run_of_another_length_is_divided_in_proportion(epochs):
    parts = stretches(THREE, epochs)
    assert parts[0].start == 0
    assert sum(part.epochs for part in parts) == epochs
    for part, following in itertools.pairwise(parts):
        assert following.start == part.start + part.epochs
    for part in parts:
        assert abs(part.epochs - part.phase.epochs * epochs / 70) <= 1


def test_every_epoch_has_its_phase():
    names = [stretch_at(THREE, epoch, 7).phase.name for epoch in range(7)]
    assert names == ["features"] * 2 + ["outputs"] * 4 + ["labels"]


def test_a_recipe_without_phases_has_none():
    assert stretch_at((), 3, 10) is None


def test_a_run_too_short_for_its_phases_is_refused():
    with pytest.raises(UserError, match=r"2 epochs are too few for 3 phases .* --epochs 70"):
        stretches(THREE, 2)


def test_a_phase_without_terms_is_refused():
    with pytest.raises(UserError, match="nothing would be trained"):
        from_mapping({"epochs": 1, "terms": []}, Phase, "mine.yaml: phases")
