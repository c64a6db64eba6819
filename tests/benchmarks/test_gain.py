"""The table of a benchmark is what its runs say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gain


def results(student: float, baseline: float) -> gain.Results:
    values = {"student": student, "baseline": baseline, "teacher": 0.5}
    return {role: dict.fromkeys(gain.SCORES, value) for role, value in values.items()}


def test_the_gain_is_averaged_seed_by_seed() -> None:
    text = gain.table([results(0.3, 0.2), results(0.4, 0.2), results(0.5, 0.2)], [0, 1, 2], "test", "command")
    assert "| baseline | 0.2000 ± 0.0000 |" in text
    assert "| student | 0.4000 ± 0.1000 |" in text
    assert "| gain | +0.2000 ± 0.1000 |" in text
    assert "+0.1000, +0.2000, +0.3000" in text


def test_a_loss_is_reported_as_one() -> None:
    assert "| gain | -0.1000 ± 0.0000 |" in gain.table([results(0.1, 0.2)], [0], "val", "command")


def test_a_seed_with_results_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = tmp_path / "seed3" / "test" / "metrics.json"
    scored.parent.mkdir(parents=True)
    (tmp_path / "seed3" / "metrics.json").write_text("[]")
    scored.write_text(json.dumps([{"role": "student", **dict.fromkeys(gain.SCORES, 0.4)}]))
    monkeypatch.setattr(gain, "run", lambda *words: pytest.fail("nothing is left to run"))
    assert gain.run_seed(3, ["--data", "d.yaml"], "test", tmp_path) == {"student": dict.fromkeys(gain.SCORES, 0.4)}
