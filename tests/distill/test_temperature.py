from __future__ import annotations

import pytest
import torch

from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import Progress

FALLING = {"start": 5, "drop": 1, "every": 10, "least": 1}


def values(option, epochs):
    temperature = Temperature("loss", option)
    found = []
    for epoch in epochs:
        temperature.at(Progress(epoch, 3, 100, 10))
        found.append(temperature.value.item())
    return found


def test_a_number_stays():
    assert values(2.5, (0, 50, 99)) == [2.5] * 3


def test_it_falls_every_few_epochs_and_not_below_the_least():
    assert values(FALLING, (0, 9, 10, 19, 20, 39, 40, 99)) == [5, 5, 4, 4, 3, 2, 1, 1]
    assert values({"start": 3, "drop": 4}, (0, 10)) == [3, 1]


def test_it_softens_in_float32():
    assert torch.equal(Temperature("loss", 4).soften(torch.tensor([8.0], dtype=torch.bfloat16)), torch.tensor([2.0]))


def test_nothing_of_it_is_saved():
    assert not Temperature("loss", FALLING).state_dict()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (0, "loss: temperature: got 0, expected a number above 0"),
        ("warm", "expected a number above 0"),
        (True, "expected a number above 0"),
        ({"begin": 5}, "unknown key 'begin'"),
        ({"start": -1}, "temperature: start: got -1"),
        ({"start": 2, "least": 3}, "least 3 is above start 2"),
    ],
)
def test_a_wrong_one_is_answered(option, message):
    with pytest.raises(UserError, match=message):
        Temperature("loss", option)
