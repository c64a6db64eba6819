"""What a pickle may be made of: it is read through before anything is made of it."""

from __future__ import annotations

import pickletools
from typing import BinaryIO

# what torch.save writes, and no more: other opcodes call what a program has registered, or take memory before they look
_OPCODES = """
    PROTO MARK STOP GLOBAL REDUCE NEWOBJ BUILD BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT
    EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_SET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING
"""
OPCODES = frozenset(_OPCODES.split())
MOST_OPCODES = 2_000_000  # the largest published model has 0.3 million; memory and time are those of so many objects
MOST_BITS = 64  # of a number as a key: Python's hash wraps at 61


def check_opcodes(file: BinaryIO) -> None:
    """Reads a pickle up to its end and makes nothing of it, but for a stack that says what may be no key.

    Raises:
        ValueError: an opcode that torch.save does not write, or one that would take more memory or time than its bytes
            are worth. A tuple as a key is such, which is hashed anew each time, with all that is in it, and so are
            large numbers, which can be made to collide.
    """
    stack: list[bool] = []  # whether it may be no key
    marks: list[int] = []
    memo: dict[int, bool] = {}
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
        elif name == "LONG1":
            stack.append(argument.bit_length() > MOST_BITS)
        else:
            taken = _taken(opcode, stack, marks)
            if (name == "SETITEM" and taken[1]) or (name == "SETITEMS" and any(taken[1::2])):
                raise ValueError("a key that is no name and no small number")
            stack += [name.startswith("TUPLE") or name == "EMPTY_TUPLE"] * len(opcode.stack_after)


def _taken(opcode: pickletools.OpcodeInfo, stack: list[bool], marks: list[int]) -> list[bool]:
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
