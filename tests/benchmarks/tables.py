"""A small data set, and the cells of a table."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def draw(folder: Path) -> Path:
    """Four images with a box each, 64 pixels wide and 48 high; gives the YAML file of the data set."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(4):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), rng.integers(0, 255, (48, 64, 3)).astype(np.uint8))
        (folder / "labels" / f"{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [thing]\n")
    return file


def cells(line: str) -> list[str]:
    """Of one line of a Markdown table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]
