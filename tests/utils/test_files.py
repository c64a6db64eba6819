"""Half a file is never seen, and no run overwrites another."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
from pathlib import Path

import pytest
import torch

from utils.files import ROOT, megabytes, remove_leftovers, run_folder, write_atomically, write_text


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


def killed_while_writing(path: Path) -> None:
    """Leaves what `kill -9` leaves."""

    def die(temporary: Path) -> None:
        temporary.write_bytes(bytes(1000))
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=write_atomically, args=(path, die))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 9


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    path, other = tmp_path / "last.pt", tmp_path / "best.pt"
    for each in (path, other):
        killed_while_writing(each)
    (leftover,) = tmp_path.glob(".last-*.pt")

    def write(temporary: Path) -> None:
        remove_leftovers(path)
        assert not leftover.exists()
        temporary.write_text("whole")

    assert write_atomically(path, write).read_text() == "whole"
    assert {file.name[:6] for file in tmp_path.iterdir()} == {"last.p", ".best-"}


def test_room_that_a_killed_process_took_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    killed_while_writing(path)

    def write(temporary: Path) -> None:
        if len(list(tmp_path.iterdir())) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
        temporary.write_text("whole")

    assert write_atomically(path, write).read_text() == "whole"


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_a_checkpoint_for_which_there_is_no_room_says_so_and_leaves_the_old_one(tmp_path: Path, size: int) -> None:
    """PyTorch says no more than that writing failed."""
    path = tmp_path / "last.pt"
    torch.save({"a": torch.zeros(10)}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError) as refused:
            write_atomically(path, lambda temporary: torch.save({"a": torch.zeros(size)}, temporary))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == before
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
