"""The options of a method, checked where a recipe's words meet a class."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.errors import UserError, nearest


def positive(where: str, value: object) -> float:
    """A finite number above 0. `where`: "feature loss 'cwd': temperature"."""
    if _is_number(value) and value > 0:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise UserError(f"{where}: got {value!r}, expected a number above 0")


def not_negative(where: str, value: object) -> float:
    """A finite number of at least 0."""
    if _is_number(value) and value >= 0:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise UserError(f"{where}: got {value!r}, expected a number of at least 0")


def whole(where: str, value: object) -> int:
    """A whole number above 0."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise UserError(f"{where}: got {value!r}, expected a whole number above 0")


def flag(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"{where}: got {value!r}, expected true or false")


def share(where: str, value: object) -> float:
    """A number from 0 to 1."""
    if _is_number(value) and 0 <= value <= 1:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise UserError(f"{where}: got {value!r}, expected a number from 0 to 1")


def choice(where: str, value: object, known: Sequence[str]) -> str:
    """One of the known words."""
    if isinstance(value, str) and value in known:
        return value
    raise UserError(f"{where}: got {value!r}{nearest(value, known) or ';'} known: {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
