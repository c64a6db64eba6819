"""What this process takes, and what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from utils import memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n"


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str = "", used: str = "") -> None:
    (folder / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(memory, "MACHINE", folder / "meminfo")
    monkeypatch.setattr(memory, "GROUPS", folder)
    monkeypatch.setattr(memory, "OWN_GROUPS", folder / "own")
    if limit:
        group(folder, limit, used)


def group(folder: Path, limit: str, used: str, cache: str = "0", version: int = 2) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cache}\n")


def test_free_is_what_the_machine_has_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch)
    assert memory.free_memory() == 8000 * 1024


@pytest.mark.parametrize(("limit", "free"), [("5000000", 3000000), ("max", 8192000), ("99000000", 8192000)])
def test_a_container_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int) -> None:
    machine(tmp_path, monkeypatch, limit, "2000000")
    assert memory.free_memory() == free


@pytest.mark.parametrize(("version", "line"), [(2, "0::/job/step"), (1, "4:cpu,memory:/job/step")])
def test_the_limit_of_a_job_holds_for_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, line: str
) -> None:
    machine(tmp_path, monkeypatch)
    (tmp_path / "own").write_text(f"9:devices:/job\n{line}\n")
    root = tmp_path if version == 2 else tmp_path / "memory"
    group(root / "job", "4000000", "1000000", version=version)
    group(root / "job/step", "max" if version == 2 else str(2**63 - 4096), "900000", version=version)
    assert memory.free_memory() == 3000000


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_were_read_can_be_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    machine(tmp_path, monkeypatch)
    group(tmp_path if version == 2 else tmp_path / "memory", "5000000", "4900000", "4000000", version)
    assert memory.free_memory() == 4100000


def test_another_system_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATUS", "MACHINE", "GROUPS", "OWN_GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path / "absent")
    assert memory.free_memory() is None
    assert memory.resident() is None


@pytest.mark.skipif(memory.resident() is None, reason="this system does not say")
def test_a_peak_is_seen_and_forgotten() -> None:
    memory.forget_peak()
    before = memory.resident() or 0
    taken = np.ones(100_000_000, dtype=np.uint8)
    del taken
    assert (memory.resident(peak=True) or 0) - before > 90e6
    memory.forget_peak()
    assert (memory.resident(peak=True) or 0) - before < 60e6
