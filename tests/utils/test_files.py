"""Half a file is never seen, and no run overwrites another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.files import ROOT, megabytes, run_folder, write_atomically, write_text


def test_root_is_the_repository() -> None:
    assert (ROOT / "utils" / "files.py").is_file()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_text(tmp_path / "results.csv", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_readable_by_others(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "a.txt", "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o644


def test_runs_are_numbered(tmp_path: Path) -> None:
    names = [run_folder(tmp_path / "runs", "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    assert run_folder(tmp_path / "runs", "exp", exist_ok=True).name == "exp"


def test_a_megabyte_is_a_million_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(2_500_000))
    assert megabytes(tmp_path / "x") == 2.5
