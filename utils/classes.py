"""Class names: which of one list are which of another."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST_CLASSES = 25_000  # that a file may ask for; ImageNet has 21,841, and scores take 32 kB a class


def same_classes(own: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of (index in `own`, index in `others`) whose names agree, in the order of `own`.

    Regardless of case, spaces, hyphens and underscores; an equal name wins over a similar one, and of several alike
    the first. Equal lists agree one by one, even where a name stands twice.
    """
    if list(own) == list(others):
        return [(index, index) for index in range(len(own))]
    exact = {name: index for index, name in reversed(list(enumerate(others)))}
    loose = {_plain(name): index for index, name in reversed(list(enumerate(others)))}
    found = ((index, exact.get(name, loose.get(_plain(name)))) for index, name in enumerate(own))
    return [(index, other) for index, other in found if other is not None]


def listed(names: Sequence[str], limit: int = 10) -> str:
    """The first few, for a line of the log."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
