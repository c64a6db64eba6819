"""A data set that the repository draws by itself: shapes that are told apart by details, in clutter.

Five points or six, petals or teeth, a hole or a notch: what a small model confuses and a bigger one does not. Images
follow from the settings alone; they are drawn once and kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.drawn_scene import CLASSES, draw_scene
from utils.config import from_mapping, number
from utils.dist import is_main
from utils.errors import UserError
from utils.files import ROOT
from utils.opencv import cv2

log = logging.getLogger(__name__)

VERSION = 1  # to be raised whenever the same settings give other pictures
MOST_PIXELS = 4_000_000_000  # of all images: thirty times the demonstration's, and at most 12 GB

__all__ = ["CLASSES", "DrawSettings", "drawn_folder", "read_settings"]


@dataclass(frozen=True)
class DrawSettings:
    """How many images, how large, from which seed."""

    seed: int = number(0, low=0)
    train: int = number(1600, low=1, high=100_000)
    val: int = number(200, low=1, high=100_000)
    test: int = number(200, low=0, high=100_000)
    size: tuple[int, int] = number((192, 256), low=64, high=2048)  # of the sides, smallest and largest, pixels


def read_settings(draw: Any, where: str) -> DrawSettings:
    """The settings under `draw:`; UserError names what is wrong."""
    if not isinstance(draw, Mapping):
        raise UserError(f"{where}: draw: expected a mapping such as {{seed: 0, train: 1600, val: 200}}")
    settings = from_mapping(draw, DrawSettings, f"{where}: draw")
    if settings.size[0] > settings.size[1]:
        raise UserError(f"{where}: draw: size: expected the smallest side first, got {list(settings.size)}")
    count = settings.train + settings.val + settings.test
    if count * settings.size[1] ** 2 > MOST_PIXELS:
        raise UserError(
            f"{where}: draw: got {count} images of up to {settings.size[1]} x {settings.size[1]} pixels, "
            f"{count * settings.size[1] ** 2 / 1e9:.1f} billion in all, expected at most {MOST_PIXELS / 1e9:.0f}; "
            "take fewer or smaller ones"
        )
    return settings


def drawn_folder(settings: DrawSettings, root: Path = ROOT / "datasets") -> Path:
    """The folder with `images/` and `labels/`; drawn first where it is not there yet."""
    key = hashlib.sha256(json.dumps([VERSION, asdict(settings)], sort_keys=True).encode()).hexdigest()[:10]
    folder = root / f"drawn-{key}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=".drawn-"))
        try:
            _draw_all(settings, temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster; its pictures are the same
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _draw_all(settings: DrawSettings, folder: Path) -> None:
    splits = {"train": settings.train, "val": settings.val, "test": settings.test}
    for split in splits:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    jobs = [(split, index) for split, count in splits.items() for index in range(count)]
    cores = min(8, os.cpu_count() or 1)
    if "fork" in get_all_start_methods():
        one_core: Any = {"initializer": cv2.setNumThreads, "initargs": (0,)}
        pool: Any = ProcessPoolExecutor(cores, mp_context=get_context("fork"), **one_core)
    else:
        pool = ThreadPoolExecutor(cores)
    with pool:
        done = pool.map(partial(_draw_one, settings, folder), jobs, chunksize=16)
        for _ in tqdm(done, "drawing the demonstration data set", len(jobs), disable=not is_main()):
            pass


def _draw_one(settings: DrawSettings, folder: Path, job: tuple[str, int]) -> None:
    """Draws one image; its numbers depend on seed, split and index, not on who draws it."""
    split, index = job
    rng = np.random.default_rng((settings.seed, ("train", "val", "test").index(split), index))
    low, high = settings.size
    height, width = rng.integers(low, high + 1, size=2).tolist()
    image, classes, boxes = draw_scene((height, width), rng)
    name = f"{index:05d}"
    done, encoded = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    if not done:
        raise OSError("OpenCV cannot write PNG files")
    (folder / "images" / split / f"{name}.png").write_bytes(encoded.tobytes())
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    rows = np.concatenate((centre, sides), axis=1) / (width, height, width, height)
    lines = [f"{label} " + " ".join(f"{value:.6f}" for value in row) for label, row in zip(classes, rows, strict=True)]
    (folder / "labels" / split / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
