"""Finding a run that goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.runs import environment, find_run
from utils.errors import UserError


def make_run(folder: Path, age: int = 0, *parts: str) -> Path:
    """A run folder, and a last.pt in it (or in its baseline's folder), so many seconds old."""
    last = folder.joinpath(*parts, "weights", "last.pt")
    last.parent.mkdir(parents=True)
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


def test_a_machine_without_git_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    made = environment(torch.device("cpu"))
    assert made["git_commit"] == "unknown"
    assert made["torch"] == torch.__version__
