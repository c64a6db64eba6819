"""Looking things up in a shelf's table, with an answer when the name is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from utils.errors import UserError, nearest

T = TypeVar("T")


def find(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a UserError such as: no feature loss is called 'cdw'; did you mean 'cwd'? known: ..."""
    if name not in table:
        hint = nearest(name, table) or ";"
        raise UserError(f"no {kind} is called '{name}'{hint} known: {', '.join(sorted(table))}")
    return table[name]


def build(
    kind: str,
    name: str,
    table: Mapping[str, Any],
    *args: Any,
    options: Mapping[str, Any],
    common: Sequence[str] = (),
) -> Any:
    """`table[name](*args, **options)`; an option that the class does not take is named in a UserError.

    Args:
        common: options that somebody else has taken out already, for the error to name.
    """
    made = find(kind, name, table)
    known = [
        key
        for key, parameter in inspect.signature(made).parameters.items()
        if parameter.default is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    for option in options:
        if option not in known:
            hint = nearest(option, [*known, *common]) or ";"
            taken = f"it takes: {', '.join([*known, *common])}" if known or common else "it takes no options"
            raise UserError(f"{kind} '{name}' has no option {option}{hint} {taken}")
    return made(*args, **options)
