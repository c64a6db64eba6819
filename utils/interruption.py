"""Signals that ask a process to end: what must not be broken off is finished first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED = (
    1.0  # seconds within which a second signal is taken for the first: launchers pass on what a terminal sends too
)


class Interrupted(KeyboardInterrupt):
    """A signal has ended what was going on."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """What the process exits with, as shells have it."""
        return 128 + self.number


class Interruption:
    """While it is open, the first signal is noted and asked for by whoever can stop; the second raises `Interrupted`.

        with Interruption() as interruption:
            for step in steps:
                ...
                if interruption.number: ...                 # save, and raise Interrupted(interruption.number)
            with interruption.at_once(): ...                # what can be broken off anywhere

    A signal that nobody has asked for is raised at the end of the block. One that the process was started to ignore, as
    shells start what runs in the background, stays ignored. Outside the main thread, where Python lets nobody listen to
    signals, it does nothing.

    Args:
        instead_of: errors that say no more than that others have had the signal, too: it is raised in their place.
    """

    def __init__(self, *instead_of: type[BaseException]) -> None:
        self.number = 0  # of the signal; 0: none
        self._instead_of = instead_of
        self._since = 0.0
        self._waits = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None or issubclass(kind, self._instead_of):
            self.check()

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.number:
            raise Interrupted(self.number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, a signal is raised where it comes."""
        self.check()
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def _note(self, number: int, _: FrameType | None) -> None:
        first, self.number = not self.number, self.number or number
        if first:
            self._since = time.monotonic()
        if not self._waits or not (first or time.monotonic() - self._since < REPEATED):
            raise Interrupted(number)
        if first and os.environ.get("RANK", "0") == "0":
            # not by a logger or print: these may be in the middle of a line, and do not bear being entered again
            os.write(2, f"\n{signal.Signals(number).name}: ending after this step; once more ends at once\n".encode())


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises `Interrupted`, as Ctrl-C raises KeyboardInterrupt: what is half done is tidied up."""

    def end(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_signals_to_parent() -> None:
    """For worker processes: a terminal or a scheduler tells all processes, and the parent still wants their work.

    They end when the parent itself sends them SIGTERM, as it does when it ends, or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere nobody says who has sent a signal: the first SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != parent:
        pass
    os._exit(0)
