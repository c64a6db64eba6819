"""Finding a run that goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.runs import environment, find_run, forget_earlier_run, run_of_this_launch
from utils.config import write_mapping
from utils.errors import UserError


def make_run(folder: Path, age: int = 0, *parts: str) -> Path:
    """A run folder, and a last.pt in it (or in its baseline's folder), so many seconds old."""
    last = folder.joinpath(*parts, "weights", "last.pt")
    last.parent.mkdir(parents=True, exist_ok=True)
    last.touch()
    os.utime(last, (1e9 - age, 1e9 - age))
    (folder / "opt.yaml").touch()
    return last


def test_without_a_path_the_newest_run_is_meant(tmp_path: Path) -> None:
    make_run(tmp_path / "exp", age=10)
    make_run(tmp_path / "exp2", age=5)
    make_run(tmp_path / "exp3", age=20)
    assert find_run("", str(tmp_path)) == tmp_path / "exp2"


def test_a_run_that_is_still_at_its_baseline_is_found(tmp_path: Path) -> None:
    make_run(tmp_path / "exp", 0, "baseline")
    assert find_run("", str(tmp_path)) == tmp_path / "exp"


def test_a_folder_and_its_last_weights_mean_the_same(tmp_path: Path) -> None:
    last = make_run(tmp_path / "exp")
    assert find_run(str(last), "elsewhere") == find_run(str(tmp_path / "exp"), "elsewhere") == tmp_path / "exp"


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--resume: no weights/last\.pt under"):
        find_run("", str(tmp_path))
    with pytest.raises(UserError, match="no such file or folder"):
        find_run(str(tmp_path / "nothing"), "")
    (tmp_path / "other.pt").touch()
    with pytest.raises(UserError, match=r"no opt\.yaml beside it"):
        find_run(str(tmp_path / "other.pt"), "")


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that this launch has begun, with a checkpoint."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    monkeypatch.setattr("sys.argv", ["train.py", "--data", "a.yaml"])
    folder = tmp_path / "exp"
    folder.mkdir()
    write_mapping(folder / "environment.yaml", environment(torch.device("cpu")))
    os.utime(folder / "environment.yaml", (1e9, 1e9))
    make_run(folder, age=-60)
    return folder


def test_the_same_launch_goes_on_with_its_run(begun: Path) -> None:
    assert run_of_this_launch(str(begun.parent)) == begun


def test_another_launch_or_command_does_not(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for launch, command in (("job8", "a.yaml"), ("job7", "b.yaml"), ("", "a.yaml")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        monkeypatch.setattr("sys.argv", ["train.py", "--data", command])
        assert run_of_this_launch(str(begun.parent)) is None


def test_a_run_that_has_ended_is_not_gone_on_with(begun: Path) -> None:
    (begun / "metrics.json").touch()
    assert run_of_this_launch(str(begun.parent)) is None


def test_what_an_earlier_run_has_left_in_the_folder_says_nothing_of_this_one(begun: Path) -> None:
    (begun / "metrics.json").touch()
    os.utime(begun / "metrics.json", (1e9 - 60, 1e9 - 60))
    assert run_of_this_launch(str(begun.parent)) == begun
    os.utime(begun / "weights/last.pt", (1e9 - 60, 1e9 - 60))  # this one has none yet
    assert run_of_this_launch(str(begun.parent)) is None
    make_run(begun, -30, "baseline")
    forget_earlier_run(begun)
    assert {path.name for path in begun.rglob("*") if path.is_file()} == {"environment.yaml", "opt.yaml"}


def test_a_neighbour_that_cannot_be_read_stops_nobody(begun: Path) -> None:
    (begun.parent / "other").mkdir()
    (begun.parent / "other/environment.yaml").write_text("{")
    assert run_of_this_launch(str(begun.parent)) == begun


def test_a_machine_without_git_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    made = environment(torch.device("cpu"))
    assert made["git_commit"] == "unknown"
    assert made["torch"] == torch.__version__
