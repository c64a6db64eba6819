"""Training where OpenCV is not installed: from a packed cache, on whatever device there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.loader import eval_loader, train_loader
from data.spec import read_data
from utils.files import ROOT
from utils.hyp import DEFAULT, read_hyp

SIZE = 64
ABSENT = "import sys; sys.modules['cv2'] = None"  # as if it were not installed
NO_DECODING = """
from data import substitutes
def decode(path, reduction=1):
    raise AssertionError(f"{path} was decoded")
substitutes.decode = decode
"""
RUN = ["--cfg", "yolov5p", "--imgsz", str(SIZE), "--batch", "4", "--epochs", "1", "--device", "cpu", "--amp", "off"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A data set that was made without OpenCV; gives its YAML file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "drawn"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 60)).save(folder / f"images/{split}/{index}.jpg")
            rows = [f"{k % 2} 0.5 0.5 {rng.uniform(0.1, 0.9):.4f} {rng.uniform(0.1, 0.9):.4f}\n" for k in range(3)]
            (folder / f"labels/{split}/{index}.txt").write_text("".join(rows))
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [ball, box]\n")
    return folder / "data.yaml"


def train(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    call = f"{code}\nimport train\ntrain.main({[str(word) for word in words]!r})\nassert sys.modules['cv2'] is None"
    return subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_run_packs_trains_validates_and_saves(photographs: Path, tmp_path: Path) -> None:
    ran = train(
        ABSENT, "--data", photographs, *RUN, "--workers", 1, "--cache", "packed", "--project", tmp_path / "runs"
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs/exp/weights/best.pt").is_file()
    assert ran.stderr.count("no pictures: OpenCV is not installed") == 1
    assert not list((tmp_path / "runs/exp").glob("*.jpg"))
    assert (tmp_path / "runs/exp/PR_curve.png").is_file()


def test_a_run_uses_what_was_packed_elsewhere(photographs: Path, tmp_path: Path) -> None:
    given = {"image_size": (SIZE, SIZE), "batch_size": 4, "stride": 32, "cache": "packed"}
    train_loader(read_data(photographs), read_hyp(DEFAULT), seed=0, **given)
    eval_loader(read_data(photographs), "val", **given)
    moved = photographs.parent.rename(tmp_path / "moved") / "data.yaml"
    words = ("--data", moved, *RUN, "--workers", 0, "--cache", "packed", "--project", tmp_path / "runs", "--noplots")
    ran = train(ABSENT + NO_DECODING, *words)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs/exp/weights/best.pt").is_file()


def test_a_run_that_needs_opencv_says_so_in_one_line(photographs: Path, tmp_path: Path) -> None:
    ran = train(ABSENT, "--data", photographs, *RUN, "--workers", 0, "--project", tmp_path / "runs")
    assert ran.returncode == 2
    assert "without OpenCV" in ran.stderr.splitlines()[-1]
    assert "--cache packed" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
