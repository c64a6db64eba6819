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
    monkeypatch.setattr(memory, "GROUP", folder)
    if limit:
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(used)


def test_free_is_what_the_machine_has_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch)
    assert memory.free_memory() == 8000 * 1024


@pytest.mark.parametrize(("limit", "free"), [("5000000", 3000000), ("max", 8192000), ("99000000", 8192000)])
def test_a_container_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int) -> None:
    machine(tmp_path, monkeypatch, limit, "2000000")
    assert memory.free_memory() == free


def test_another_system_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATUS", "MACHINE", "GROUP"):
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
