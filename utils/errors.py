"""A user's mistake: one clear line, no traceback."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps


class UserError(Exception):
    """Something the user can mend. Scripts print its message alone and exit with 2.

    The message says what, where (file: key), got, expected, and the nearest match or next step.
    """


def nearest(name: object, known: Iterable[object]) -> str:
    """`"; did you mean 'lr0'?"` for the closest known name, or nothing when none is close."""
    found = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def exits_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates a script's `main`: the log goes to stderr (rank 0 alone is talkative), a `UserError` becomes one line
    there and exit status 2."""

    @wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
        logging.basicConfig(format="%(message)s", level=level)
        try:
            main(*args, **kwargs)
        except UserError as error:
            logging.getLogger(__name__).debug("traceback of the user error", exc_info=True)
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
