"""The options of a method, checked where a recipe's words meet a class."""

from __future__ import annotations

import math

from utils.errors import UserError


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


def flag(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"{where}: got {value!r}, expected true or false")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
