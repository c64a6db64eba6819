from __future__ import annotations

import math

import pytest
import torch

from distill.schedule import Schedule
from utils.errors import UserError
from utils.types import Progress

EPOCHS, STEPS = 10, 5


def values(schedule):
    return [schedule.value(Progress(epoch, step, EPOCHS, STEPS)) for epoch in range(EPOCHS) for step in range(STEPS)]


def test_constant_is_one():
    assert values(Schedule("constant", end=0.1)) == [1.0] * EPOCHS * STEPS


def test_linear_goes_evenly_to_its_end():
    expected = [1 - 0.9 * i / 50 for i in range(50)]
    assert values(Schedule("linear", end=0.1)) == pytest.approx(expected)


def test_cosine_is_flat_at_both_ends():
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 50)) for i in range(50)]
    assert values(Schedule("cosine", end=0.1)) == pytest.approx(expected)


def test_off_in_the_last_epochs():
    schedule = Schedule("cosine", end=0.1, off_epochs=3)
    assert values(schedule)[:35] == values(Schedule("cosine", end=0.1))[:35]
    assert values(schedule)[35:] == [0.0] * 15
    assert [schedule.active(Progress(epoch, 0, EPOCHS, STEPS)) for epoch in range(EPOCHS)] == [True] * 7 + [False] * 3


def test_within_an_epoch_every_epoch_walks_the_whole_way():
    one = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]
    found = values(Schedule("cosine", end=0.1, within="epoch"))
    assert found == pytest.approx(one * EPOCHS)
    assert found[4] == pytest.approx(0.1)


def test_an_epoch_of_one_step_has_a_weight():
    assert Schedule("cosine", within="epoch").value(Progress(0, 0, 3, 1)) == 1.0


def test_warm_up_rises_evenly_and_multiplies():
    expected = [min(1, (i + 1) / 10) for i in range(50)]
    assert values(Schedule("constant", warmup_epochs=2)) == pytest.approx(expected)
    plain = values(Schedule("linear", end=0.5))
    assert values(Schedule("linear", end=0.5, warmup_epochs=2)) == pytest.approx(
        [a * b for a, b in zip(plain, expected, strict=True)]
    )


def test_depends_on_progress_alone():
    fresh, used = Schedule("linear"), Schedule("linear")
    for step in range(5):
        used.at(Progress(8, step, EPOCHS, STEPS))
    for schedule in (fresh, used):
        schedule.at(Progress(3, 2, EPOCHS, STEPS))
    assert torch.equal(fresh.weight, used.weight)
    assert fresh.weight < 1


def test_nothing_of_it_is_saved():
    assert not Schedule().state_dict()
    assert not list(Schedule().parameters())


def test_off_for_the_whole_run_is_a_mistake():
    with pytest.raises(UserError, match="off_epochs 10 leaves none of the 10 epochs"):
        Schedule(off_epochs=10).at(Progress(0, 0, EPOCHS, STEPS))


def test_unknown_kind_is_answered():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        Schedule("cosin")
