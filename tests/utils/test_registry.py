"""A shelf's table answers a wrong name and a wrong option."""

from __future__ import annotations

import pytest

from utils.errors import UserError
from utils.registry import build, find


class Loss:
    def __init__(self, head: str, temperature: float = 1.0) -> None:
        self.head, self.temperature = head, temperature


class Plain:
    def __init__(self, head: str) -> None:
        self.head = head


TABLE = {"cwd": Loss, "mimic": Plain, "fgd": Loss}


def test_a_wrong_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as caught:
        find("feature loss", "cdw", TABLE)
    assert str(caught.value) == "no feature loss is called 'cdw'; did you mean 'cwd'? known: cwd, fgd, mimic"
    with pytest.raises(UserError, match="no feature loss is called 'zzz'; known: cwd, fgd, mimic"):
        find("feature loss", "zzz", TABLE)


def test_a_wrong_option_is_answered_with_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        build("feature loss", "cwd", TABLE, "head", options={"tau": 1.0})
    assert str(caught.value) == "feature loss 'cwd' has no option tau; it takes: temperature"
    with pytest.raises(UserError, match="it takes no options"):
        build("feature loss", "mimic", TABLE, "head", options={"tau": 1.0})


def test_a_positional_argument_is_no_option() -> None:
    with pytest.raises(UserError, match="has no option head"):
        build("feature loss", "cwd", TABLE, "head", options={"head": "mine"})


def test_what_is_right_is_built() -> None:
    made = build("feature loss", "cwd", TABLE, "head", options={"temperature": 2.0})
    assert (made.head, made.temperature) == ("head", 2.0)
