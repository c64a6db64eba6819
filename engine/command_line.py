"""From words on the command line to values: our own spelling of every flag, and one line for what is wrong."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from engine.flags import ABSENT, FLAGS, Flag
from utils.errors import UserError, nearest

log = logging.getLogger(__name__)

_RIVALS = (
    ("--cos-lr", "--linear-lr", "--poly-lr"),
    ("--optimizer", "--adam"),
    ("--rect", "--no-rect"),
    ("--anchors", "--noautoanchor"),
)


def parse(script: str, argv: Sequence[str], defaults: object) -> dict[str, Any]:
    """Field -> value for what `argv` names, and nothing else; lists as tuples.

    Args:
        defaults: has an attribute a flag, which `--help` shows.

    Raises:
        UserError: an unknown flag, a value that does not fit, two flags that contradict each other.
    """
    words = _own_spellings(script, argv)
    namespace, strange = build_parser(script, defaults).parse_known_args(words)
    if strange:
        _refuse(script, strange[0])
    _refuse_contradictions(words)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(namespace).items()}
    for flag in ("imgsz", "t_imgsz"):
        if flag in given:
            given[flag] = _height_width(f"--{flag}", given[flag])
    return given


def build_parser(script: str, defaults: object) -> argparse.ArgumentParser:
    """The parser of a script. Its namespace has only what the command line names."""
    parser = _Parser(
        prog=script,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        usage=f"python {script} [flags]",
        epilog="Dashes and underscores are the same in every flag, and the spellings of YOLOv5 and YOLOv7 work.",
    )
    for title, flags in FLAGS[script]:
        group = parser.add_argument_group(title)
        for flag in flags:
            text = flag.help + _shown_default(flag, getattr(defaults, flag.dest))
            group.add_argument(flag.spelling, help=text.replace("%", "%%"), **flag.arguments)
    return parser


def spelling(field: str) -> str:
    """The flag that sets a field."""
    flags = (flag for groups in FLAGS.values() for _, group in groups for flag in group)
    return next((flag.spelling for flag in flags if flag.dest == field), f"--{field}")


class _Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _shown_default(flag: Flag, value: Any) -> str:
    if value in (None, "", ()) or "action" in flag.arguments or "default" in flag.help:
        return ""
    return f" (default {value[0] if isinstance(value, tuple) else value})"


def _canonical(spelling: str) -> str:
    return spelling.replace("_", "-").lower()


def _spellings(script: str) -> dict[str, str]:
    """Every spelling of a script's flags, in dashes -> the one of the table."""
    flags = [flag for _, group in FLAGS[script] for flag in group]
    return {_canonical(name): flag.spelling for flag in flags for name in (flag.spelling, *flag.also)} | {
        "--help": "--help"
    }


def _own_spellings(script: str, argv: Sequence[str]) -> list[str]:
    """The command line with every flag spelt as in our table."""
    known = _spellings(script)
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            if _canonical(name) in ABSENT:
                raise UserError(f"{name}: {ABSENT[_canonical(name)]}")
            name = known.get(_canonical(name), name)
        words.append(name + equals + value)
    return words


def _refuse(script: str, word: str) -> NoReturn:
    """Answers a word that is no flag of this script."""
    name = word.partition("=")[0]
    if not name.startswith("-"):
        key = f"--{name}"
        hint = f"; did you mean {key} {word.partition('=')[2]}?" if _canonical(key) in _spellings(script) else ""
        raise UserError(f"'{word}' belongs to no flag{hint}")
    others = [other for other in FLAGS if other != script and _canonical(name) in _spellings(other)]
    if others:
        raise UserError(f"{name} is a flag of {' and '.join(others)}, not of {script}")
    hint = nearest(_canonical(name), _spellings(script)) or "; --help lists all"
    raise UserError(f"{script} has no flag {name}{hint}")


def _refuse_contradictions(words: Sequence[str]) -> None:
    """Flags that say two different things of one matter."""
    given = {word.partition("=")[0] for word in words}
    for rivals in _RIVALS:
        found = [rival for rival in rivals if rival in given]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]} contradict each other; give one of them")


def _height_width(flag: str, sizes: Sequence[int]) -> tuple[int, int]:
    if len(sizes) == 1:
        return sizes[0], sizes[0]
    if len(sizes) != 2:
        raise UserError(f"{flag}: got {len(sizes)} numbers, expected one, or height and width")
    height, width = sizes
    log.info(
        "%s %d %d: height %d, width %d, in training and validation (YOLOv7's --img-size TRAIN TEST is not this)",
        *(flag, height, width, height, width),
    )
    return height, width
