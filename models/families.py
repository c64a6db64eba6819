"""Models by name: our families' files, with their scales and variants, and files of the user's own."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from models.spec import ModelSpec
from utils.errors import UserError, nearest
from utils.yaml_file import read_yaml

FAMILY_FILES = Path(__file__).resolve().parent / "cfg"
# where model files lie in the repositories that people come from: `models/hub/yolov5s6.yaml` in their notes is ours
FORMER_FOLDERS = {
    *("models", "hub", "cfg", "training", "deploy", "yolov3", "yolov5", "yolov7", "ultralytics"),
    *("v3", "v5", "v8", "v9", "v10", "11", "v11", "12", "v12", "26"),
}
DEPLOY = "-deploy"  # behind a name: the form for inference
SCALE_IN_NAME = re.compile(r"yolov?\d+([nsmblx])(?![a-tv-z])")  # yolov8n, yolo11x

log = logging.getLogger(__name__)


def read_spec(name: str) -> ModelSpec:
    """`yolov5s`, `yolov5s.yaml`, a path people have in their notes (`models/hub/yolov5s6.yaml`), or a model file.

    Raises:
        UserError: no such model or file, or a file that is not a model's.
    """
    path = Path(name)
    if path.is_file():
        return _from_file(path)
    if written := _behind_scale(path):
        return replace(_from_file(*written), name=path.stem)
    known = family_scales()
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if "deploy" in path.parent.parts:  # cfg/deploy/yolov7.yaml
        stem = stem.removesuffix(DEPLOY) + DEPLOY
    base = stem.removesuffix(DEPLOY)
    if base in known and set(path.parent.parts) <= FORMER_FOLDERS | {".", ".."}:
        file, scale = known[base]
        spec = _scaled(_family(file), scale, base)
        return spec if base == stem else deployed(spec)
    raise UserError(f"no model file {name}, and no model of that name{_hint(stem)} known: {', '.join(_families())}")


def _hint(stem: str) -> str:
    """What may be meant by a name that is none, however it is capitalised."""
    sizes = {re.sub(r"\[.*?\]", "", name): name for name in _families() if "[" in name}
    if stem.lower() in sizes:
        return f"; of which size? {sizes[stem.lower()]};"
    return nearest(stem.lower(), family_scales()) or ";"


def known_specs() -> Iterator[ModelSpec]:
    """Every model of our families, in training form, and for inference where that is another."""
    for name, (file, scale) in family_scales().items():
        spec = _scaled(_family(file), scale, name)
        yield spec
        inference = deployed(spec)
        if inference.head != spec.head:
            yield inference


@functools.cache  # our own files, which don't change under a run
def _family(file: Path) -> Mapping[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    values: Mapping[str, Any] = yaml.load(file.read_text(encoding="utf-8"), loader)
    return values


@functools.cache
def family_scales() -> dict[str, tuple[Path, str]]:
    """Every model of our families: name -> its family's file, its scale or variant there ('' for a model alone)."""
    known = {}
    for file in sorted(FAMILY_FILES.glob("*.yaml")):
        values = _family(file)
        for scale in values.get("scales", {"": None}):
            for ending in {"", values.get("anchor_free", "")}:
                known[values["name"].replace("{scale}", scale) + ending] = (file, scale)
        for variant in values.get("variants", {}):
            known[values["name"] + variant] = (file, variant)
    return known


def _families() -> Iterator[str]:
    """Every name, those of a family together: yolov5[nsmlxp], yolov5[nsmlxp]u."""
    for file in sorted(FAMILY_FILES.glob("*.yaml")):
        values = _family(file)
        name = values["name"].replace("{scale}", f"[{''.join(values.get('scales', ()))}]")
        yield from (
            name + ending
            for ending in ("", *values.get("variants", ()), values.get("anchor_free"))
            if ending is not None
        )


def deployed(spec: ModelSpec) -> ModelSpec:
    """The form for inference: a plain `Detect`, and nothing behind the layers that it reads.

    Models without anchors have no other form than the one that they are trained in.
    """
    if spec.anchor_free:
        return replace(spec, name=spec.name + DEPLOY)
    sources, number, module, args = spec.head[-1]
    kept = sources[: len(sources) // 2] if module == "IAuxDetect" else sources
    layers = len(spec.backbone) + len(spec.head) - 1
    end = max(source % layers for source in kept) + 1
    return replace(
        spec, name=spec.name + DEPLOY, head=(*spec.head[: end - len(spec.backbone)], (kept, number, "Detect", args))
    )


def _scaled(values: Mapping[str, Any], scale: str, name: str) -> ModelSpec:
    """A family's model of that scale (perhaps with some other rows) or variant (other keys).

    A name with the ending that the file's `anchor_free` says is the same with a head without anchors.
    """
    variant = values.get("variants", {}).get(scale, {})
    own = {**_with_rows(values, scale), **variant, "scale": scale if scale in values.get("scales", {}) else ""}
    spec = ModelSpec.from_dict(own, name, f"{name}.yaml")
    if "anchor_free" not in values or not name.endswith(values["anchor_free"]):
        return spec
    sources, number, *_ = spec.head[-1]
    return replace(spec, anchors=None, head=(*spec.head[:-1], (sources, number, "Detect", ("nc",))))


def _with_rows(values: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """A family's keys with the rows that are others at that scale: `rows: {scale: {number of the layer: row}}`."""
    backbone, head = list(values["backbone"]), list(values["head"])
    for layer, row in values.get("rows", {}).get(scale, {}).items():
        if layer < len(backbone):
            backbone[layer] = row
        else:
            head[layer - len(backbone)] = row
    return {**values, "backbone": backbone, "head": head}


def _from_file(path: Path, scale: str = "") -> ModelSpec:
    """A model file; of one with several `scales` the given one, else the one in its name, its key's, or the first."""
    values = read_yaml(path)
    scales = values.get("scales")
    if not isinstance(scales, Mapping) or not scales:
        return ModelSpec.from_dict(values, path.stem, str(path))
    if not scale:
        found = SCALE_IN_NAME.search(path.stem)
        wanted = (found.group(1) if found else "", values.get("scale"))
        named = [letter for letter in wanted if isinstance(letter, str) and letter in scales]
        scale = named[0] if named else next(iter(scales))
        if not named:
            log.info("%s has the scales %s: taking %s", path, ", ".join(map(str, scales)), scale)
    return ModelSpec.from_dict({**values, "scale": scale}, path.stem, str(path))


def _behind_scale(path: Path) -> tuple[Path, str] | None:
    """`yolov8n-mine.yaml` is the file `yolov8-mine.yaml` at scale n, where that file exists and has that scale."""
    found = SCALE_IN_NAME.search(path.stem)
    if found is None:
        return None
    file = path.with_name(path.stem[: found.start(1)] + path.stem[found.end(1) :] + path.suffix)
    scales = read_yaml(file).get("scales") if file.is_file() else None
    return (file, found.group(1)) if isinstance(scales, Mapping) and found.group(1) in scales else None
