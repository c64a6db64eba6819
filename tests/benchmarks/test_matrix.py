"""The matrix of versions: what is installed, and what is told of what came of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import matrix
from benchmarks.matrix import NEWEST, Cell, Found
from tests.benchmarks.tables import cells
from utils.errors import UserError


def test_every_python_meets_every_torch_and_the_oldest_the_oldest_numpy() -> None:
    old, new = ("2.6", (NEWEST, "1.26")), (NEWEST, (NEWEST,))
    found = matrix.cells(["a", "b"], ["2.6", NEWEST], "1.26")
    assert found == [Cell("a", *old), Cell("a", *new), Cell("b", *old), Cell("b", *new)]


def test_a_torchvision_is_of_its_torch() -> None:
    assert matrix.constraints("2.6", "1.26") == "torch==2.6.*\ntorchvision==0.21.*\nnumpy==1.26.*\n"
    assert matrix.constraints("2.7.1", NEWEST) == "torch==2.7.1\ntorchvision==0.22.*\n"
    assert matrix.constraints(NEWEST, NEWEST) == ""
    with pytest.raises(UserError, match="--torch nightly: expected newest"):
        matrix.constraints("nightly", NEWEST)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("12 passed in 3.21s\n", "12 passed"),
        ("FAILED x\n== 1 failed, 12 passed, 3 warnings in 3.21s (0:00:03) ==\n", "1 failed, 12 passed, 3 warnings"),
        ("ImportError\n", "exit status 4"),
    ],
)
def test_the_last_line_of_the_tests_is_told(output: str, told: str) -> None:
    assert matrix.summary(subprocess.CompletedProcess([], 4, output, "")) == told


def test_a_python_that_is_not_there_is_told_and_no_failure(tmp_path: Path) -> None:
    (found,) = matrix.tried(Cell("python2.99", "2.6", (NEWEST,)), tmp_path, [])
    assert found == Found(["python2.99", "2.6", "-", NEWEST], "not on this machine")
    (row,) = [line for line in matrix.report([found], [], []).splitlines() if "2.99" in line]
    assert cells(row)[4:] == ["not on this machine", "-"]


ABSENT = "ERROR: No matching distribution found for torch==2.6.*\n"


@pytest.mark.parametrize(
    ("output", "told", "failed"),
    [
        (ABSENT, "not to be had: ERROR: No matching distribution found for torch==2.6.*", False),
        (f"WARNING: Retrying (Retry(total=4)) after connection broken\n{ABSENT}", "not installed: ERROR: No", True),
        ("ERROR: Could not install packages due to an OSError: No space left", "not installed: ERROR: Could", True),
        ("ERROR: ResolutionImpossible: for help visit\n", "not installed: ERROR: ResolutionImpossible", True),
        ("", "not installed: no reason given", True),
    ],
)
def test_only_what_the_registry_does_not_have_is_no_failure(output: str, told: str, failed: bool) -> None:
    found = matrix.not_installed(["python3.13", "2.6", "-", NEWEST], output)
    assert found.outcome.startswith(told) and found.failed == failed


RAN, SKIPPED = Found(["a"] * 4, "3 passed", 1.0), Found(["a"] * 4, "3 skipped", 1.0)
GONE, FAILED = Found(["a"] * 4, "not on this machine"), Found(["a"] * 4, "1 failed, 2 passed", 1.0, failed=True)


@pytest.mark.parametrize(
    ("found", "status"),
    [([RAN, GONE], None), ([RAN, FAILED], 1), ([GONE], "no test was run"), ([SKIPPED], "no test was run")],
)
def test_a_matrix_in_which_nothing_was_tested_has_not_passed(
    monkeypatch: pytest.MonkeyPatch, found: list[Found], status: object
) -> None:
    monkeypatch.setattr(matrix, "tried", lambda *_: found)
    if status is None:
        matrix.main(["--python", "a", "--torch", NEWEST])
        return
    with pytest.raises(SystemExit) as ended:
        matrix.main(["--python", "a", "--torch", NEWEST])
    assert ended.value.code == status
