"""Which class of a model is which of the data it is scored on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from utils.errors import UserError

log = logging.getLogger(__name__)


def shared_classes(own: Sequence[str], named: bool, names: Sequence[str]) -> list[tuple[int, int]] | None:
    """Which class of a model is which of the data: pairs of indices, or None where they agree one by one.

    Matched by name, regardless of capitals, spaces, hyphens and underscores; by index where the model's classes have
    no names, or none in common with the data's, and there are equally many.

    Raises:
        UserError: nothing agrees.
    """

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]+", "", name).casefold()

    places = {plain(name): index for index, name in enumerate(names)}
    pairs = [(index, places[plain(name)]) for index, name in enumerate(own) if plain(name) in places] if named else []
    if pairs == [(index, index) for index in range(len(names))] and len(own) == len(names):
        return None
    if pairs:
        if len(pairs) < len(names):
            missing = [name for name in names if plain(name) not in {plain(other) for other in own}]
            log.warning(
                "the weights know %d of the data's %d classes by name; not: %s", len(pairs), len(names), _some(missing)
            )
        return pairs
    if len(own) == len(names):
        if named:
            log.warning(
                "the weights' classes (%s) and the data's (%s) share no name; they are matched by index",
                *(_some(own), _some(names)),
            )
        return None
    known = f"{len(own)} classes ({_some(own)})" if named else f"{len(own)} classes without names"
    raise UserError(
        f"the weights know {known} and the data has {len(names)} ({_some(names)}); "
        "no name agrees, so there is nothing to score. Use weights that were trained on these classes"
    )


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (" ..." if len(names) > limit else "")
