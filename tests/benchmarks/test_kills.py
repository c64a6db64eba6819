"""kill -9 at random instants: what the benchmark does at length, here a few times."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from benchmarks.kills import Bench, Found, differences, kill, look


def test_a_killed_training_goes_on_to_the_same_end(tmp_path: Path) -> None:
    found = kill(Bench(tmp_path, epochs=1, teacher=False), 2, random.Random(1))
    assert found.losses == ()
    assert found.kills == 2
    assert found.ended >= 1


def test_a_checkpoint_that_is_not_whole_is_seen(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 half of it")
    found = Found()
    look(tmp_path, found)
    assert len(found.losses) == 1
    assert "last.pt" in found.losses[0]


def test_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name / "weights").mkdir(parents=True)
        for file in ("last.pt", "best.pt"):
            torch.save({"model.0.conv.weight": torch.full((3,), value)}, tmp_path / name / "weights" / file)
        (tmp_path / name / "results.csv").write_text(f"epoch,seconds,loss\n1,{value},0.5\n")
    assert differences(tmp_path / "one", tmp_path / "one") == []
    assert differences(tmp_path / "one", tmp_path / "other") == [
        "last.pt: 1 of 1 tensors differ",
        "best.pt: 1 of 1 tensors differ",
    ]
