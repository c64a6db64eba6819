"""Writes tests/assets/parity.json.gz, small extracts of the recorded numbers in ../shared/reference/parity.

    python tests/assets/extract_parity.py ../shared/reference/parity

Of each recorded YOLOv3, v5 and v7: parameters, a digest of state-dict keys and shapes in order, and of every level and
of the decoded output every sixth of the 600 sampled values. All of these come from the reference implementations,
filled by rule; real files were at hand of yolov5n and yolov5s alone. `anchor_grid` of YOLOv7's heads, the anchors in
pixels once more, is left out of the keys: we do not keep it. Of every v3 and v7, training and deploy form: a digest of
its rows. Of the v5 recorded by their rows alone: the rows.

Beside it parity-anchor-free.json.gz, the same of the models without anchors; what is sampled there are not levels but
the boxes and the scores of each branch, over all positions.

Also writes tests/assets/losses-v7.json and losses-anchor-free.json: the recorded cases of these losses, whole, targets
that several share once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).with_name("parity.json.gz")
ANCHOR_FREE = Path(__file__).with_name("parity-anchor-free.json.gz")
EVERY = 6
LOSSES = tuple(Path(__file__).with_name(name) for name in ("losses-v7.json", "losses-anchor-free.json"))
HYP = ("box", "cls", "cls_pw", "obj", "obj_pw", "anchor_t", "fl_gamma", "label_smoothing")  # what the losses read


def main(folder: Path) -> None:
    names = sorted(file.name.removesuffix(".json.gz") for file in folder.glob("yolov[357]*.json.gz"))
    models = {name: extract(folder, name) for name in names}
    described = {name: rows for name, rows in read(folder / "rows.json.gz").items() if not name.endswith("u")}
    rows = {name: own for name, own in described.items() if name.startswith(("yolov5-", "yolov5s-"))}
    digests = {name: rows_digest(own) for name, own in described.items() if name.startswith(("yolov3", "yolov7"))}
    content = json.dumps({"models": models, "rows": rows, "digests": digests}, separators=(",", ":")).encode()
    TARGET.write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{TARGET}: {len(models)} models, {len(rows)} more by their rows, {TARGET.stat().st_size} bytes")
    write_anchor_free(folder)
    for file in LOSSES:
        write_losses(file, read(folder / f"{file.name}.gz"))


def write_anchor_free(folder: Path) -> None:
    names = sorted(file.name.removesuffix(".json.gz") for file in folder.glob("yolo*.json.gz"))
    models = {name: extract(folder, name) for name in names if not name.startswith(("yolov3", "yolov5", "yolov7"))}
    digests = {name: plain_digest(own) for name, own in read(folder / "rows.json.gz").items() if "anchors" not in own}
    content = json.dumps({"models": models, "digests": digests}, separators=(",", ":")).encode()
    ANCHOR_FREE.write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{ANCHOR_FREE}: {len(models)} models, {ANCHOR_FREE.stat().st_size} bytes")


def plain_digest(described: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(_rows(described)).replace('"None"', "null").encode()).hexdigest()


def extract(folder: Path, name: str) -> dict[str, object]:
    described = read(folder / f"{name}.json.gz")
    recorded = np.load(folder / f"{name}.npz")
    parts = described.get("level_names", [])
    outputs = [f"level{i}" for i in range(len(parts or described["stride"]))]
    if "one2one.boxes" not in parts:  # of heads with two branches the decoded form is not comparable
        outputs.append("decoded")
    state = {key: shape for key, shape in described["state"].items() if not key.endswith("anchor_grid")}
    lines = [f"{key} {tuple(shape)}" for key, shape in state.items()]
    return {
        "parameters": described["parameters"],
        "tensors": len(lines),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "stride": described["stride"],
        **({"parts": parts} if parts else {}),
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


def rows_digest(described: dict[str, object]) -> str:
    """Of anchors and rows, without the activation that YOLOv7-tiny's name one by one."""
    rows = [[*row[:3], [arg for arg in row[3] if not str(arg).startswith("nn.")]] for row in _rows(described)]
    rows = [[*row[:3], row[3][:3] if row[2] == "Conv" else row[3]] for row in rows]  # "None", 1: the defaults
    content = json.dumps([described["anchors"], rows]).replace('"None"', "null")
    return hashlib.sha256(content.encode()).hexdigest()


def _rows(described: dict[str, object]) -> list[list[object]]:
    return [*described["backbone"], *described["head"]]


def write_losses(file: Path, cases: list[dict[str, object]]) -> None:
    """A line a target and a line a case, as losses-v5.json."""
    rows: dict[str, str] = {}
    for case in cases:
        targets = ",\n".join(json.dumps([int(row[0]), int(row[1]), *row[2:]]) for row in case["targets"])
        case["targets"] = next((name for name, known in rows.items() if known == targets), case["name"])
        rows.setdefault(case["targets"], targets)
        if "hyp" in case:
            case["hyp"] = {key: case["hyp"][key] for key in HYP}
    shown = ",\n".join(f'"{name}": [\n{targets}\n]' for name, targets in rows.items())
    lines = ",\n".join(json.dumps(case) for case in cases)
    file.write_text(f'{{"targets": {{\n{shown}\n}},\n"cases": [\n{lines}\n]}}\n')
    print(f"{file}: {len(cases)} cases, {file.stat().st_size} bytes")


def read(file: Path) -> dict[str, object]:
    return json.loads(gzip.decompress(file.read_bytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
