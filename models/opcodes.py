"""What a pickle may be made of: it is read through before anything is made of it."""

from __future__ import annotations

import pickletools
from typing import BinaryIO, NamedTuple

# what torch.save writes, and no more: other opcodes call what a program has registered, or take memory before they look
_OPCODES = """
    PROTO MARK STOP GLOBAL REDUCE NEWOBJ BUILD BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT
    EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_SET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING
"""
OPCODES = frozenset(_OPCODES.split())
# what gives a value that is hashed at a small cost; LONG1 is looked at by itself
_KEYS = "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING"
KEYS = frozenset(_KEYS.split())
CALLS = ("REDUCE", "NEWOBJ")
MOST_OPCODES = 2_000_000  # the largest published model has 0.3 million; memory and time are those of so many objects
MOST_BITS = 64  # of a number as a key: Python's hash wraps at 61
MOST_ARGUMENTS = 100  # of a call, which copies them each time; a path has one for each folder


class _Value(NamedTuple):
    """What is known of a value that a pickle would make."""

    is_key: bool = False  # a name or a small number
    entries: int = 0  # of a tuple


_KEY, _OTHER = _Value(is_key=True), _Value()


def check_opcodes(file: BinaryIO) -> None:
    """Reads a pickle up to its end and makes nothing of it, but for a stack of what is known of its values.

    Raises:
        ValueError: an opcode that torch.save does not write, or one that would take more memory or time than its bytes
            are worth. So would tuples as keys, which are hashed anew each time, with all that is in them, and large
            numbers, which can be made to collide: a key is what an opcode gives as such, and never what a call gives.
    """
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name not in OPCODES:
            raise ValueError(f"the opcode {name}, which torch.save does not write")
        if count > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes")
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            if argument > count:  # memory is taken for all numbers below
                raise ValueError(f"entry {argument} of a memo that has fewer")
            memo[argument] = stack[-1]
        elif name in KEYS or (name == "LONG1" and argument.bit_length() <= MOST_BITS):
            stack.append(_KEY)
        else:
            taken = _taken(opcode, stack, marks)
            keys = {"SETITEM": taken[1:2], "SETITEMS": taken[1::2]}.get(name, ())
            if not all(key.is_key for key in keys):
                raise ValueError("a key that is no name and no small number")
            if name in CALLS and taken[1].entries > MOST_ARGUMENTS:
                raise ValueError(f"a call with more than {MOST_ARGUMENTS} arguments")
            made = _Value(entries=len(taken)) if name.startswith("TUPLE") else _OTHER
            stack += [made] * len(opcode.stack_after)


def _taken(opcode: pickletools.OpcodeInfo, stack: list[_Value], marks: list[int]) -> list[_Value]:
    """Takes from the stack what the opcode takes; of one that looks for a mark, what is below it and then above."""
    before = opcode.stack_before
    has_mark = pickletools.markobject in before
    start = marks.pop() if has_mark else len(stack)
    start -= before.index(pickletools.markobject) if has_mark else len(before)
    if start < 0:
        raise ValueError("an empty stack")
    taken = stack[start:]
    del stack[start:]
    return taken
