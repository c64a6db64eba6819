"""Files that nobody would write, for every parser of foreign files: what does it do, how long, with how much memory?

    python benchmarks/fuzz.py --seconds 60
    python benchmarks/fuzz.py --only image archive --seconds 600 --seed 7

A case is a valid file with something changed in it, or parts of such files put together at random (`fuzz_cases.py`). A
parser may return, or refuse in a line (`fuzz_targets.py`). A failure is anything else: another exception, an answer
that the rest could not live with, a case of more than `--case-seconds` of the processor, one that takes more than
`--megabytes` of memory, or the end of the process. What failed is kept under `--out`, shrunk as far as it goes.

Each target is a process of its own, which can't take more than four times that memory. Exit status 1: there were
failures. The suite runs the same targets for a fixed number of cases (`tests/benchmarks/test_fuzz.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.fuzz_targets import TARGETS, Target, opened, run_case
from benchmarks.memory import limit, resident
from benchmarks.peers import machine, markdown
from utils.errors import exits_cleanly
from utils.memory import forget_peak
from utils.registry import find

ROUND = 500  # cases; of a round that fails, one is shrunk and kept
LIMIT = 4  # times the memory of a case, beyond which the process gets none
LAST = "last"  # the case that is being tried, in the folder of those that failed
SLOWER = 3  # times the limit of a case after which the process is ended


class Result(NamedTuple):
    """What came of a target."""

    cases: int
    taken: int  # of the cases: not refused
    seconds: float
    slowest: float  # seconds of a case, of the processor
    megabytes: float  # most that a case has taken
    failures: tuple[str, ...]


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    names = options.only or list(TARGETS)
    for name in names:
        find("target", name, TARGETS)
    if options.inside:
        limit(LIMIT * options.megabytes)
        print(json.dumps(fuzz(TARGETS[names[0]](), options)))
        return
    results = {name: run(name, words, options) for name in names}
    print(report(results, words))
    if any(result.failures for result in results.values()):
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", nargs="+", default=[], metavar="NAME", help=", ".join(TARGETS))
    made.add_argument("--seconds", type=float, default=60, help="of each target")
    made.add_argument("--cases", type=int, help="of each target at most; none where not given")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--case-seconds", type=float, default=10)
    made.add_argument("--megabytes", type=float, default=1000)
    made.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    made.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return made


def run(name: str, words: Sequence[str], options: argparse.Namespace) -> Result:
    """A target in a process of its own, which may end in any way."""
    command = [sys.executable, __file__, *words, "--only", name, "--inside"]
    begun = time.monotonic()
    try:
        patience = options.seconds + SLOWER * options.case_seconds + 60
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        return Result(0, 0, time.monotonic() - begun, 0.0, 0.0, (f"it hangs{_last(options.out)}",))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        reason = f"it ended with {done.returncode}: {last}{_last(options.out)}"
        return Result(0, 0, time.monotonic() - begun, 0.0, 0.0, (reason,))
    return Result(*json.loads(done.stdout.splitlines()[-1]))


def _last(folder: Path) -> str:
    """Where the case is that ended a process."""
    last = folder / LAST
    if not last.exists():
        return ""
    case = last.read_bytes()
    last.unlink()
    return f" ({keep(case, folder)})"


def fuzz(target: Target, options: argparse.Namespace) -> Result:
    """Rounds of cases until the time is over, or as many as are wanted."""
    begun, most = time.monotonic(), options.cases or math.inf
    cases = taken = 0
    slowest = largest = 0.0
    failures: list[str] = []
    number = options.seed * 1_000_000
    options.out.mkdir(parents=True, exist_ok=True)
    last = options.out / LAST

    with opened(target) as folder:

        def check(case: bytes) -> None:
            nonlocal cases, taken, slowest, largest
            last.write_bytes(case)
            forget_peak()
            before, started = resident(), time.process_time()  # other programs are not the parser's fault
            cases += 1
            taken += run_case(target, folder, case)
            lasted, grown = time.process_time() - started, (resident(peak=True) - before) / 1e6
            slowest, largest = max(slowest, lasted), max(largest, grown)
            assert lasted < options.case_seconds, f"a case of {lasted:.0f} seconds"
            assert grown < options.megabytes, f"a case of {grown:.0f} MB"

        while time.monotonic() - begun < options.seconds and cases < most:
            number += 1
            failed = failing(target, check, int(min(ROUND, most - cases)), number)
            if failed is not None:
                case, reason = failed
                failures.append(f"{reason} ({keep(case, options.out)})")
    last.unlink(missing_ok=True)
    return Result(cases, taken, time.monotonic() - begun, slowest, largest, tuple(dict.fromkeys(failures)))


def failing(target: Target, check: Callable[[bytes], None], count: int, seed: int) -> tuple[bytes, str] | None:
    """Tries so many cases; gives the smallest that fails, with what it raises."""
    last: list[tuple[bytes, str]] = []

    def watched(case: bytes) -> None:
        try:
            check(case)
        except Exception as error:
            last[:] = [(case, f"{type(error).__name__}: {str(error)[:200]}")]
            raise

    settings = hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
    )  # fmt: skip
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(target.cases)(watched)))()
    except Exception as error:
        return last[0] if last else (b"", f"{type(error).__name__}: {error}")
    return None


def keep(case: bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(case).hexdigest()[:12]
    path.write_bytes(case)
    return path


def report(results: dict[str, Result], words: Sequence[str]) -> str:
    """A table, the failures below it."""
    head = ("parser", "cases", "taken", "seconds", "slowest, s", "memory, MB", "failures")
    rows = [
        (name, f"{one.cases:,}", f"{one.taken:,}", f"{one.seconds:.0f}", f"{one.slowest:.2f}", f"{one.megabytes:.0f}",
         str(len(one.failures)))
        for name, one in results.items()
    ]  # fmt: skip
    failures = [f"- {name}: {failure}" for name, one in results.items() for failure in one.failures]
    total = f"{sum(one.cases for one in results.values()):,} cases, {len(failures)} failures"
    parts = [machine("fuzz.py", words), markdown(head, rows), total, "\n".join(failures)]
    return "\n\n".join(filter(None, parts))


if __name__ == "__main__":
    main()
