"""Strict reading of YAML into frozen dataclasses: the type hints of a record are its schema.

A wrong file is answered in one line that names file, key, what was found, and what was expected or meant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from utils.errors import UserError, nearest, shown
from utils.files import write_text
from utils.yaml_file import noun, read_yaml

T = TypeVar("T")


# -- declaring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, the ends included; `above` and `below` leave the end out."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        lower, upper = max(self.low, self.above), min(self.high, self.below)
        if upper == math.inf:
            return f"above {lower:g}" if self.above >= self.low else f"of at least {lower:g}"
        opening = "(" if self.above > self.low else "["
        return f"in {opening}{lower:g}, {upper:g}{')' if self.below < self.high else ']'}"


def number(default: Any = MISSING, **limits: float) -> Any:
    """A dataclass field whose number, or whose every number in a list, lies in `Range(**limits)`."""
    return field(default=default, metadata={"range": Range(**limits)})


def choice(default: Any, choices: Sequence[str]) -> Any:
    """A dataclass field that is one of `choices`, upper or lower case."""
    return field(default=default, metadata={"choices": tuple(choices)})


# -- reading ----------------------------------------------------------------------------------------------------------


def read_record(path: Path | str, record: type[T]) -> T:
    """The YAML file as a `record`; UserError where it does not fit."""
    return from_mapping(read_yaml(path), record, str(path))


def from_mapping(mapping: Mapping[Any, Any], record: type[T], where: str) -> T:
    """`record(**mapping)` with every key, type and range checked.

    A record refuses contradictions by raising ValueError in its `__post_init__`.

    Args:
        where: what errors start with, such as the name of the file.
    """
    hints = get_type_hints(record)
    fields = {item.name: item for item in dataclasses.fields(record) if item.init}  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key '{shown(key)}'{nearest(key, fields)}")
        values[key] = _convert(value, hints[key], f"{where}: {key}", fields[key].metadata)
    needed = [n for n, f in fields.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if needed:
        raise UserError(f"{where}: missing: {', '.join(needed)}")
    try:
        return record(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


# -- writing ----------------------------------------------------------------------------------------------------------


def to_mapping(record: Any) -> dict[str, Any]:
    """A record as plain data that `from_mapping` reads back; entries that are None are left out."""
    return {key: _plain(value) for key, value in dataclasses.asdict(record).items() if value is not None}


def write_mapping(path: Path | str, mapping: Mapping[str, Any]) -> Path:
    """Writes plain data as YAML, in the order of its keys."""
    return write_text(path, yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# -- one value --------------------------------------------------------------------------------------------------------


def _convert(value: Any, hint: Any, where: str, limits: Mapping[str, Any]) -> Any:
    """`value` as the type `hint` says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _convert_union(value, arguments, where, limits)
    if hint is Any or hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            _refuse(value, hint, where, limits)
        return from_mapping(value, hint, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_list(value, hint, where, limits)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            _refuse(value, hint, where, limits)
        # `cwd:` with nothing behind it means no options
        inner = get_origin(arguments[1])
        empty = isinstance(inner, type) and issubclass(inner, Mapping)
        return {
            _convert(key, arguments[0], f"{where}: key {key}", {}): _convert(
                {} if item is None and empty else item, arguments[1], f"{where}.{key}", limits
            )
            for key, item in value.items()
        }
    return _convert_scalar(value, hint, where, limits)


def _convert_union(value: Any, hints: Sequence[Any], where: str, limits: Mapping[str, Any]) -> Any:
    if value is None and NoneType in hints:
        return None
    hints = [hint for hint in hints if hint is not NoneType]
    lists = [hint for hint in hints if get_origin(hint) is tuple]
    if isinstance(value, (list, tuple)) and lists:
        hints = lists
    if len(hints) == 1:
        return _convert(value, hints[0], where, limits)
    for hint in hints:
        try:
            return _convert(value, hint, where, limits)
        except UserError:
            continue
    return _refuse(value, Union[tuple(hints)], where, limits)  # noqa: UP007 - built at run time


def _convert_list(value: Any, hint: Any, where: str, limits: Mapping[str, Any]) -> tuple[Any, ...]:
    arguments = get_args(hint)
    if not isinstance(value, (list, tuple)):
        _refuse(value, hint, where, limits)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise UserError(f"{where}: got {len(value)} entries, expected {len(arguments)}")
    return tuple(
        _convert(item, of, f"{where}[{index}]", limits)
        for index, (item, of) in enumerate(zip(value, arguments, strict=True))
    )


def _convert_scalar(value: Any, hint: Any, where: str, limits: Mapping[str, Any]) -> Any:
    fits = isinstance(value, (int, float)) if hint is float else isinstance(value, hint)
    if not fits or (isinstance(value, bool) and hint is not bool):
        _refuse(value, hint, where, limits)
    if isinstance(value, (int, float)) and not math.isfinite(value):
        _refuse(value, hint, where, limits)
    if "range" in limits and isinstance(value, (int, float)) and value not in limits["range"]:
        _refuse(value, hint, where, limits)
    if "choices" in limits and isinstance(value, str):
        return pick(value, limits["choices"], where)
    return float(value) if hint is float else value


def pick(value: str, choices: Sequence[str], where: str) -> str:
    """The one of `choices` that is meant, upper or lower case."""
    for known in choices:
        if known.lower() == value.lower():
            return known
    hint = nearest(value, choices) or ";"
    raise UserError(f"{where}: got '{shown(value)}'{hint} known: {', '.join(choices)}")


def _refuse(value: Any, hint: Any, where: str, limits: Mapping[str, Any]) -> NoReturn:
    raise UserError(f"{where}: got {noun(value)}, expected {_phrase(hint, limits)}")


def _phrase(hint: Any, limits: Mapping[str, Any]) -> str:
    """What a type hint is called in an error."""
    origin, arguments = get_origin(hint), get_args(hint)
    span = f" {limits['range']}" if "range" in limits else ""
    if origin in (Union, UnionType):
        members = [argument for argument in arguments if argument is not NoneType]
        if float in members and int in members:
            members.remove(int)
        return " or ".join(_phrase(member, limits) for member in members)
    if origin is tuple:
        if dataclasses.is_dataclass(arguments[0]):
            return f"a list of mappings of {_keys(arguments[0])}"
        plural = {int: "whole numbers", float: "numbers", str: "names"}.get(arguments[0], "lists")
        return f"a list of {plural}{span if plural != 'lists' else ''}"
    if dataclasses.is_dataclass(hint):
        return f"a mapping of {_keys(hint)}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in plain:
        return plain[hint] + (span if hint in (int, float) else "")
    return "a mapping such as {name: {weight: 1.0}}"


def _keys(record: Any) -> str:
    return ", ".join(item.name for item in dataclasses.fields(record) if item.init)
