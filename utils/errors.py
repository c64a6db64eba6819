"""A user's mistake: one clear line, no traceback."""

from __future__ import annotations

import difflib
import logging
import os
import re
import reprlib
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import wraps

from utils.interruption import Interrupted, terminated_as_interrupted

# seconds after which a rank tells its own error, and one that follows from another rank's: see `_await_turn`
FIRST_HAND, FOLLOWING = 2.0, 5.0
LEAVING = 20  # seconds in which a process must end then: what is left of a broken group may wait for the others


# what is in a value many times over, as aliases of YAML can be, is not written out
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 5
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200


class UserError(Exception):
    """Something the user can mend. Scripts print its message alone and exit with 2.

    The message says what, where (file: key), got, expected, and the nearest match or next step.
    """


class MachineFault(UserError):
    """The machine's doing and nobody's mistake: a run can go on once that is mended."""


class PeerLost(Exception):
    """Another rank has failed. Its own words are the reason; this is only the echo, and ends a script with 1."""


def said(error: BaseException) -> str:
    """An error's message; of one that a loader's process has sent, with its traceback in it, what it said there."""
    text = printable(str(error))
    if not re.match(r"Caught \w+ in (DataLoader worker process|pin memory thread)", text):
        return text
    return re.sub(r"^[\w.]+: ", "", text.rstrip().splitlines()[-1])


def nearest(name: object, known: Iterable[object]) -> str:
    """`"; did you mean 'lr0'?"` for the closest known name, or nothing when none is close."""
    found = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def shown(value: object, most: int = 80) -> str:
    """A value as an error quotes it: printable, and cut where it is long."""
    text = printable(value[: most + 1] if isinstance(value, str) else _SHORT.repr(value))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def printable(text: str) -> str:
    """Without what moves a terminal's cursor or hides what stands there; lines stay lines."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def exits_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates a script's `main`: the log goes to stderr (rank 0 alone is talkative), a `UserError` becomes one line
    there and exit status 2."""

    @wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
        logging.basicConfig(format="%(message)s", level=level)
        try:
            with terminated_as_interrupted():
                main(*args, **kwargs)
        except (UserError, PeerLost) as error:
            logging.getLogger(__name__).debug("traceback of the user error", exc_info=True)
            print(f"error: {_await_turn(error)}{said(error)}", file=sys.stderr)
            sys.exit(2 if isinstance(error, UserError) else 1)
        except KeyboardInterrupt as reason:
            if os.environ.get("RANK", "0") == "0":
                print("interrupted", file=sys.stderr)
            sys.exit(reason.status if isinstance(reason, Interrupted) else 130)
        except Exception as error:
            from utils.faults import find_fault  # which imports this file

            speaker, fault = _await_turn(error), find_fault(error)
            if fault is None:
                raise
            logging.getLogger(__name__).debug("traceback of the machine's fault", exc_info=True)
            less = "; a smaller --batch-size or --imgsz takes less" if fault.memory else ""
            print(f"error: {speaker}{fault.line}{less}", file=sys.stderr)
            sys.exit(2)

    return run


def _await_turn(error: Exception) -> str:
    """Returns when this rank is to tell an error, with the name that goes before; most ranks never return.

    A mistake is one line, though every rank makes it: rank 0 tells it at once and ends, and torchrun then ends the
    others, who wait. Who is still there tells what is wrong with itself alone, and last what only follows from another
    rank's end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ""
    rank = int(os.environ.get("RANK", "0"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    patience = FOLLOWING if isinstance(error, PeerLost) else FIRST_HAND if rank else 0.0
    if patience:
        time.sleep(patience + 0.3 * int(os.environ.get("LOCAL_RANK", "0")))  # one after the other
    if hasattr(signal, "alarm"):
        signal.alarm(LEAVING)
    return f"rank {rank}: " if rank else ""
