"""Which classes of a model are which of the data it is scored on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from utils.classes import listed, same_classes
from utils.errors import UserError

log = logging.getLogger(__name__)

FEW = 4  # class names in one message


def shared_classes(own: Sequence[str], named: bool, names: Sequence[str]) -> list[tuple[int, int]] | None:
    """Which class of a model is which of the data: pairs of indices, or None where they agree one by one.

    Matched by name; by index where the model's classes have no names, or none in common with the data's, and there are
    equally many.

    Raises:
        UserError: nothing agrees.
    """
    refuse_strangers(own, named, names)
    pairs = same_classes(own, names) if named else []
    if pairs == [(index, index) for index in range(len(names))] and len(own) == len(names):
        return None
    if pairs:
        found = {index for _, index in pairs}
        if missing := [name for index, name in enumerate(names) if index not in found]:
            log.warning(
                "the weights know %d of the data's %d classes by name; not: %s",
                *(len(found), len(names), listed(missing, FEW)),
            )
        return pairs
    if named:
        log.warning(
            "the weights' classes (%s) and the data's (%s) share no name; they are matched by index",
            *(listed(own, FEW), listed(names, FEW)),
        )
    return None


def refuse_strangers(own: Sequence[str], named: bool, names: Sequence[str]) -> None:
    """Raises UserError where a model's classes agree with the data's neither by name nor in number."""
    if len(own) == len(names) or (named and same_classes(own, names)):
        return
    known = f"{len(own)} classes ({listed(own, FEW)})" if named else f"{len(own)} classes without names"
    raise UserError(
        f"the weights know {known} and the data has {len(names)} ({listed(names, FEW)}); "
        "no name agrees, so there is nothing to score. Use weights that were trained on these classes"
    )
