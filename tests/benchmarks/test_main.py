"""One command runs the benchmarks of speed, and its page has what each of them printed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as everything
from tests.benchmarks.tables import draw
from utils.files import ROOT


def given(*words: str) -> list[str]:
    return ["--data", "d.yaml", *words]


@pytest.mark.parametrize("name", everything.SECTIONS)
def test_every_command_is_of_a_script_that_is_there_and_knows_its_flags(name: str) -> None:
    options = everything.parser().parse_args(given("--peer", "yolov5=a", "ultralytics=b"))
    for words in everything.SECTIONS[name][1](options):
        text = (ROOT / "benchmarks" / words[0]).read_text()
        for flag in (word for word in words if word.startswith("--")):
            assert f'add_argument("{flag}"' in text, f"{words[0]} has no {flag}"


def test_a_peer_that_a_script_does_not_know_is_not_named_to_it() -> None:
    options = everything.parser().parse_args(given("--peer", "ultralytics=b"))
    assert all("--peer" not in words for words in everything.validation(options))
    assert all(words[-2:] == ["--peer", "ultralytics=b"] for words in everything.pipeline(options))


def test_the_page_has_what_the_benchmarks_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["pipeline.py", "--data", str(draw(tmp_path)), "--imgsz", "64", "--batch-size", "2", "--batches", "1"]
    one = ("Input pipeline", lambda options: [[*small, "--rounds", "1"], [*small, "--rounds", "2"]])
    monkeypatch.setattr(everything, "SECTIONS", {"pipeline": one})
    everything.main(given("--out", str(tmp_path / "page.md")))
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("## Input pipeline\n\nImages a second")
    assert "Medians of 1 rounds" in page and "Medians of 2 rounds" in page
    assert page.strip() in capsys.readouterr().out


def test_a_benchmark_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ("Start-up", lambda options: [["startup.py", "--data", str(tmp_path / "none.yaml")]])
    good = ("Help", lambda options: [["workers.py", "--help"]])
    monkeypatch.setattr(everything, "SECTIONS", {"startup": bad, "help": good})
    with pytest.raises(SystemExit) as stopped:
        everything.main(given("--out", str(tmp_path / "page.md")))
    assert stopped.value.code == 1
    page = (tmp_path / "page.md").read_text()
    assert "**Failed**: startup.py" in page and "none.yaml" in page and "Traceback" not in page
    assert "What labels cost in memory" in page


def test_an_unknown_benchmark_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        everything.main(given("--only", "step"))
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_it_runs_as_a_module() -> None:
    import subprocess

    done = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "python -m benchmarks" in done.stdout
