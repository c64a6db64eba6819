"""The table of costs and pulls has a row a method, and its pulls are gradients."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks import terms
from engine import checkpoint
from models.families import read_spec
from models.yolo import Model

METHODS = ("kl", "attention")  # neither has an adapter, which would begin differently each time


def draw(folder: Path) -> Path:
    """A coloured rectangle an image; gives the YAML file of the data set."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(4):
        image = rng.integers(0, 80, (64, 64, 3)).astype(np.uint8)
        image[16:48, 16:40] = (60, 60, 255) if index % 2 else (60, 255, 60)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        (folder / "labels" / f"{index}.txt").write_text(f"{index % 2} 0.4375 0.5 0.375 0.5\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [red, green]\n")
    return file


def stored(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = Model(read_spec("yolov5p"), 2, ("red", "green"))
    return checkpoint.save(path, model, options={}, hyp={}, metrics={}, half=False)


def words(folder: Path, *methods: str) -> list[str]:
    student, teacher = (stored(folder / f"{seed}.pt", seed) for seed in (0, 1))
    given = ["--weights", student, "--t_weights", teacher, "--data", draw(folder / "data"), "--methods", *methods]
    return [str(word) for word in (*given, "--imgsz", 64, "--batch-size", 4, "--rounds", 1, "--device", "cpu")]


def test_every_method_has_a_row_whose_pull_is_that_of_its_gradient(tmp_path: Path, capsys: Any) -> None:
    given = words(tmp_path, *METHODS)
    terms.main(given)
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["method", *METHODS, "recipe finetune"]
    assert all(math.isfinite(float(share.rstrip("%"))) for row in rows[1:] for share in row[1:3])

    bench = terms.Bench(terms.parser().parse_args(given))
    for name, *_, unweighed, weight, pull in rows[1:3]:
        task = bench.alone(name, weight=1.0)
        detection = bench.pull(task, ["box", "obj", "cls"])
        alone = bench.pull(task, list(task.term_names)) / detection
        assert alone > 0
        assert float(unweighed) == pytest.approx(alone, rel=0.01)
        assert float(weight) == terms.METHODS[name].default_weight
        assert float(pull) == pytest.approx(alone * float(weight), rel=0.01, abs=0.006)  # two decimals are shown
    assert rows[3][3:5] == ["", ""]  # of a recipe there is no one weight


def test_a_misspelt_method_is_answered_before_anything_is_read(capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        terms.main(["--weights", "none.pt", "--t_weights", "none.pt", "--data", "none.yaml", "--methods", "kl", "cdw"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no method is called 'cdw'; did you mean 'cwd'? known: ")
    assert error.count("\n") == 1
