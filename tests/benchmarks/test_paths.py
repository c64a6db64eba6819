"""Every arm is the plain way but for its fast path, and a switch changes what it says in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import lanes, measured, paths
from benchmarks.arms import BASELINE, Plan, Run, training
from benchmarks.switches import SWITCHES
from engine.options import train_options
from tests.benchmarks.tables import draw
from utils.files import ROOT

PLAN = Plan(Path("out"), "d.yaml", "", "yolov5n", (), ("finetune",), 2, (64,), 2, "test")


def options_of(name: str, on: tuple[str, ...]) -> Any:
    script, *words = training(PLAN, Run(paths.arm(name, on), 3, Path("out/x/seed3")))
    assert script == "train.py"
    return train_options(words)


def test_the_baseline_has_no_fast_path() -> None:
    plain = options_of(BASELINE, ())
    assert (plain.amp, plain.mosaic_pool, plain.cache, plain.augment_on, plain.compile) == ("off", 0, "", "auto", False)
    assert set(paths.arm(BASELINE, ()).off) == set(SWITCHES)


@pytest.mark.parametrize("name", paths.PATHS)
def test_an_arm_differs_from_it_by_its_path_alone(name: str) -> None:
    plain, own = paths.arm(BASELINE, ()), paths.arm(name, (name,))
    path = paths.PATHS[name]
    assert set(plain.off) - set(own.off) == ({path.switch} if path.switch else set())
    before, after = options_of(BASELINE, ()).to_dict(), options_of(name, (name,)).to_dict()
    changed = {key for key in before if before[key] != after[key]}
    expected = {"bf16": {"amp"}, "pool": {"mosaic_pool"}, "device": {"cache", "augment_on"}, "compile": {"compile"}}
    assert changed == expected.get(name, set())


def test_as_shipped_is_what_runs_unasked() -> None:
    shipped = [name for name, path in paths.PATHS.items() if path.shipped]
    arm = paths.arm(paths.SHIPPED, shipped)
    assert arm.words == () and arm.off == paths.ALWAYS_OFF


@pytest.mark.parametrize(
    ("switch", "shows", "plain", "fast"),
    [
        ("placing", "from data.dataset import TrainImages as t; print(t.composes.fget(None))", "False", ""),
        ("memory", "from data import store; print(store.SMALL > 0)", "False", "True"),
        ("reducing", "from data.store import ImageStore as s; print(s._reduction(None, 0))", "1", ""),
    ],
)  # fmt: skip
def test_a_switch_holds_in_its_process(switch: str, shows: str, plain: str, fast: str) -> None:
    def printed(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    assert printed(f"from benchmarks.switches import switch_off; switch_off(['{switch}']); {shows}") == plain
    assert printed(shows) == fast


def test_arms_are_trained_scored_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The scripts themselves, in this process, but for what is switched off in theirs."""
    asked: list[list[str]] = []

    def launch(self: lanes.Children, words: list[str], log: Path) -> int:
        asked.append(list(words))
        if words[0] == "benchmarks/measured.py":
            off = 4 if words[2] == "--off" else 2
            measured.main(Path(words[1]), list(words[off:]))
        else:
            __import__(words[0].removesuffix(".py")).main(words[1:])
        return 0

    monkeypatch.setattr(lanes.Children, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    torch.manual_seed(0)
    given = ["--cfg", "yolov5p", "--data", str(draw(tmp_path / "data")), "--seeds", "1", "--epochs", "1"]
    given += ["--imgsz", "64", "--batch-size", "2", "--paths", "pool", "--split", "val", "--out", str(tmp_path / "out")]
    paths.main([*given, "--", "--workers", "0", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert [words[3] for words in asked if words[0] == "benchmarks/measured.py"] == [
        "memory,placing,reducing",
        "memory,placing,reducing",
        "memory",
    ]
    assert "| baseline | 1 |" in printed and "| pool | 1 |" in printed and "| as shipped | 1 |" in printed
