"""Small data sets that tests draw."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

SIZES = ((48, 64), (64, 48), (40, 40), (96, 32), (30, 90), (64, 64), (50, 70))


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """write(path, size, seed): noise of this height and width, in the format of the suffix."""

    def write(path: Path, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))
        return path

    return write


@pytest.fixture
def limited(root: Path) -> Callable[..., str]:
    """limited(imports, code): what this prints in a process of its own, which may take a gigabyte and a minute."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits of memory are those of Linux")

    def run(imports: str, code: str) -> str:
        limited = f"{imports}\nfrom benchmarks.memory import limit; limit(1000)\n{code}"
        words = [sys.executable, "-c", limited]
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def make_data(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """make(count, labels): a data set with `count` training and validation images each; gives its YAML file."""

    def make(count: int = 7, labels: Sequence[str] | None = None, extra: str = "") -> Path:
        rng = np.random.default_rng(0)
        for split in ("train", "val"):
            for index in range(count):
                write_image(tmp_path / f"images/{split}/{index}.png", SIZES[index % len(SIZES)], index)
                if labels is not None:
                    text = labels[index]
                else:
                    low, high = np.sort(rng.uniform(0, 1, (2, 3, 2)), axis=0)
                    rows = np.concatenate(((low + high) / 2, high - low), axis=1)
                    text = "".join(f"{rng.integers(3)} " + " ".join(f"{v:.6f}" for v in row) + "\n" for row in rows)
                path = tmp_path / f"labels/{split}/{index}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        file = tmp_path / "data.yaml"
        file.write_text(f"path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames: [a, b, c]\n{extra}")
        return file

    return make


@pytest.fixture
def bccd(tmp_path: Path, shared: Path) -> Path:
    """The YAML file of the real photographs of BCCD, through links, so that caches stay in the test's folder."""
    source, folder = shared / "data/bccd", tmp_path / "bccd"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for split in ("train", "val", "test"):
            (folder / kind / split).symlink_to(source / kind / split, target_is_directory=True)
    (folder / "data.yaml").write_text((source / "data.yaml").read_text())
    return folder / "data.yaml"
