"""Writes tests/assets/yolov5_parity.json.gz, small extracts of the recorded numbers in ../shared/reference/parity.

    python tests/assets/extract_parity.py ../shared/reference/parity

Of each recorded YOLOv5: parameters, a digest of state-dict keys and shapes in order, and of every level and of the
decoded output every sixth of the 600 sampled values. Of the models recorded by their rows alone: the rows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).with_name("yolov5_parity.json.gz")
EVERY = 6


def main(folder: Path) -> None:
    names = sorted(file.name.removesuffix(".json.gz") for file in folder.glob("yolov5*.json.gz"))
    models = {name: extract(folder, name) for name in names}
    rows = {
        name: described
        for name, described in read(folder / "rows.json.gz").items()
        if name.startswith(("yolov5-", "yolov5s-"))
        if not name.endswith("u")
    }
    content = json.dumps({"models": models, "rows": rows}, separators=(",", ":")).encode()
    TARGET.write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{TARGET}: {len(models)} models, {len(rows)} more by their rows, {TARGET.stat().st_size} bytes")


def extract(folder: Path, name: str) -> dict[str, object]:
    described = read(folder / f"{name}.json.gz")
    recorded = np.load(folder / f"{name}.npz")
    outputs = [f"level{i}" for i in range(len(described["stride"]))] + ["decoded"]
    lines = [f"{key} {tuple(shape)}" for key, shape in described["state"].items()]
    return {
        "parameters": described["parameters"],
        "tensors": len(lines),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "stride": described["stride"],
        "outputs": [
            {
                "shape": recorded[f"{output}_shape"].tolist(),
                "largest": float(abs(recorded[f"{output}_value"]).max()),
                "index": recorded[f"{output}_index"][::EVERY].tolist(),
                "value": [float(f"{value:.8g}") for value in recorded[f"{output}_value"][::EVERY]],
            }
            for output in outputs
        ],
    }


def read(file: Path) -> dict[str, object]:
    return json.loads(gzip.decompress(file.read_bytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
