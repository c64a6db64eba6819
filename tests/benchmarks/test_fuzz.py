"""Every parser of foreign files takes or refuses what nobody would write; a fixed number of cases, always the same."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck

from benchmarks import fuzz
from benchmarks.fuzz_targets import TARGETS, Target, opened, run_case
from benchmarks.memory import resident
from tests.benchmarks.tables import cells
from utils.allocator import return_freed_memory
from utils.errors import UserError
from utils.memory import forget_peak

CASES = 60
SECONDS = 10  # of the processor, a case
MEGABYTES = 1000
WEIGHTS = "checkpoint"  # a case of which, if it went wrong, would hear no signal and take all memory


@pytest.mark.parametrize("name", [name for name in TARGETS if name != WEIGHTS])
def test_a_parser_returns_or_refuses(name: str) -> None:
    target = TARGETS[name]()
    seen = []
    with opened(target) as folder:

        @hypothesis.seed(0)
        @hypothesis.settings(
            max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @hypothesis.given(target.cases)
        def check(case: bytes) -> None:
            forget_peak()
            before, begun = resident(), time.process_time()
            seen.append(run_case(target, folder, case))
            assert time.process_time() - begun < SECONDS
            assert resident(peak=True) - before < MEGABYTES * 1e6

        check()
    assert len(seen) >= CASES and not all(seen), "cases that are all valid try nothing"


def test_weights_are_taken_or_refused_by_a_process_that_may_end(tmp_path: Path) -> None:
    words = ["--cases", str(2 * CASES), "--seconds", "120", "--out", str(tmp_path)]
    result = fuzz.run(WEIGHTS, words, given(*words))
    assert not result.failures and 0 < result.taken < result.cases


def given(*words: str) -> object:
    return fuzz.parser().parse_args(["--cases", "100", *words])


def target(read: Callable[[Path], object]) -> Target:
    return TARGETS["label file"]()._replace(read=read)


def test_a_parser_that_breaks_is_a_failure_and_its_case_is_kept(tmp_path: Path) -> None:
    def breaks(path: Path) -> None:
        if b"1" in path.read_bytes():
            raise ZeroDivisionError("at the one")

    result = fuzz.fuzz(target(breaks), given("--out", str(tmp_path)))
    (failure,) = result.failures
    assert failure.startswith("ZeroDivisionError: at the one") and result.cases > 0
    (kept,) = tmp_path.iterdir()
    assert b"1" in kept.read_bytes() and kept.name in failure


def test_a_refusal_is_no_failure_and_one_without_a_reason_is(tmp_path: Path) -> None:
    def refuses(reason: str) -> Callable[[Path], object]:
        def read(_: Path) -> None:
            raise UserError(reason)

        return read

    refused = fuzz.fuzz(target(refuses("x.txt: no")), given("--out", str(tmp_path)))
    assert not refused.failures and refused.taken == 0 < refused.cases
    assert fuzz.fuzz(target(refuses("")), given("--out", str(tmp_path))).failures


def test_a_slow_parser_is_a_failure(tmp_path: Path) -> None:
    words = given("--out", str(tmp_path), "--case-seconds", "0.0001")
    assert "a case of" in fuzz.fuzz(target(lambda _: sum(range(100_000))), words).failures[0]


def test_a_parser_that_takes_much_memory_is_a_failure(tmp_path: Path) -> None:
    words = given("--out", str(tmp_path), "--megabytes", "50", "--cases", "5")
    return_freed_memory()  # what a process has to spare it takes first
    result = fuzz.fuzz(target(lambda _: bytearray(b"x") * 300_000_000), words)
    assert re.search(r"a case of [23]\d\d MB", result.failures[0]) and result.megabytes > 200


def test_memory_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    def refuses(_: Path) -> None:
        raise UserError("x.txt: damaged") from MemoryError()

    assert "it ran out of memory" in fuzz.fuzz(target(refuses), given("--out", str(tmp_path))).failures[0]


def test_the_case_that_ends_a_process_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / fuzz.LAST).write_bytes(b"the last")
    monkeypatch.setattr(fuzz.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11, "", ""))
    (failure,) = fuzz.run("label file", [], given("--out", str(tmp_path))).failures
    (kept,) = tmp_path.iterdir()
    assert failure.startswith("it ended with -11") and kept.name in failure and kept.read_bytes() == b"the last"


def test_no_more_cases_are_tried_than_are_wanted(tmp_path: Path) -> None:
    words = given("--out", str(tmp_path), "--seconds", "30", "--cases", "7")
    assert fuzz.fuzz(target(lambda _: None), words).cases == 7


def test_the_table_has_a_row_a_parser_and_names_failures() -> None:
    results = {
        "image": fuzz.Result(1000, 100, 60.0, 0.25, 12.0, ()),
        "archive": fuzz.Result(2000, 5, 60.0, 1.5, 3.0, ("it hangs",)),
    }
    text = fuzz.report(results, ["--seconds", "60"])
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == ["image", "1,000", "100", "60", "0.25", "12", "0"]
    assert "3,000 cases, 1 failures" in text and "- archive: it hangs" in text


def test_a_target_runs_in_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fuzz.main(["--only", "label file", "--cases", "9"])
    assert "| label file |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fuzz.main(["--only", "labels"])
    monkeypatch.setattr(fuzz, "limit", lambda _: None)  # which would be this process's
    fuzz.main(["--only", "label file", "--cases", "9", "--inside"])
    assert json.loads(capsys.readouterr().out)[-1] == []
