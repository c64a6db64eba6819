"""What a model is made of, as text: rows, multiples, anchors; read from a family's file or a single one."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, nearest

FAMILY_FILES = Path(__file__).resolve().parent / "cfg"
# where model files lie in the repositories that people come from: `models/hub/yolov5s6.yaml` in their notes is ours
FORMER_FOLDERS = {"models", "hub", "cfg", "training", "deploy", "v3", "v5", "yolov3", "yolov5", "yolov7"}
YOLOV7_LAYERS = {"MP", "SPPCSPC", "ReOrg"}  # each of its models has one of them, in any form
DEPLOY = "-deploy"  # behind a name: the form for inference

Row = tuple[Any, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model file: rows `[from, number, module, args]`, not yet scaled.

    `anchors`: per level w, h, w, h ... in pixels, or how many a level, to be found from data.
    """

    name: str
    backbone: tuple[Row, ...]
    head: tuple[Row, ...]
    anchors: int | tuple[tuple[float, ...], ...]
    depth_multiple: float = 1.0
    width_multiple: float = 1.0
    nc: int | None = None
    activation: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str, where: str) -> ModelSpec:
        """From the keys of a single model file; other keys are ignored. `where` begins the messages.

        Raises:
            UserError: what is missing or of a wrong type.
        """
        for key in ("backbone", "head", "anchors"):
            if key not in values:
                raise UserError(f"{where}: no '{key}'; a model file has nc, anchors, backbone, head")
        if not values["head"]:
            raise UserError(f"{where}: no rows under 'head'")
        try:
            return cls(
                name=name,
                backbone=tuple(_row(row, f"{where}: backbone row {i}") for i, row in enumerate(values["backbone"])),
                head=tuple(_row(row, f"{where}: head row {i}") for i, row in enumerate(values["head"])),
                anchors=_anchors(values["anchors"]),
                depth_multiple=float(values.get("depth_multiple", 1.0)),
                width_multiple=float(values.get("width_multiple", 1.0)),
                nc=None if values.get("nc") is None else int(values["nc"]),
                activation=values.get("activation"),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error

    @property
    def nms_iou(self) -> float:
        """The overlap of suppression with which the family's scores are published."""
        return 0.65 if any(row[2] in YOLOV7_LAYERS for row in (*self.backbone, *self.head)) else 0.6

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads, for YAML and checkpoints."""
        values = {
            "name": self.name,
            "nc": self.nc,
            "depth_multiple": self.depth_multiple,
            "width_multiple": self.width_multiple,
            "anchors": _plain(self.anchors),
            "backbone": _plain(self.backbone),
            "head": _plain(self.head),
        }
        return values | ({"activation": self.activation} if self.activation else {})

    def with_anchors(self, anchors: int | float | list[Any] | tuple[Any, ...]) -> ModelSpec:
        """The same with other anchors: rows in pixels, or a number a level (rounded: evolved recipes say 3.4)."""
        return replace(self, anchors=_anchors(anchors))


def read_spec(name: str) -> ModelSpec:
    """`yolov5s`, `yolov5s.yaml`, a path people have in their notes (`models/hub/yolov5s6.yaml`), or a model file.

    Raises:
        UserError: no such model or file, or a file that is not a model's.
    """
    path = Path(name)
    if path.is_file():
        return _from_file(path)
    known = family_scales()
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if "deploy" in path.parent.parts:  # cfg/deploy/yolov7.yaml
        stem = stem.removesuffix(DEPLOY) + DEPLOY
    base = stem.removesuffix(DEPLOY)
    if base in known and set(path.parent.parts) <= FORMER_FOLDERS | {".", ".."}:
        file, scale = known[base]
        spec = _scaled(_load(file), scale, base)
        return spec if base == stem else deployed(spec)
    hint = nearest(stem, known) or ";"
    raise UserError(f"no model file {name}, and no model of that name{hint} known: {', '.join(sorted(known))}")


def known_specs() -> Iterator[ModelSpec]:
    """Every model of our families, in training form, and for inference where that is another."""
    for name, (file, scale) in family_scales().items():
        spec = _scaled(_load(file), scale, name)
        yield spec
        inference = deployed(spec)
        if inference.head != spec.head:
            yield inference


@functools.cache  # our own files, which don't change under a run
def family_scales() -> dict[str, tuple[Path, str]]:
    """Every model of our families: name -> its family's file, its scale or variant there ('' for a model alone)."""
    known = {}
    for file in sorted(FAMILY_FILES.glob("*.yaml")):
        values = _load(file)
        for scale in values.get("scales", {"": None}):
            known[values["name"].replace("{scale}", scale)] = (file, scale)
        for variant in values.get("variants", {}):
            known[values["name"] + variant] = (file, variant)
    return known


def deployed(spec: ModelSpec) -> ModelSpec:
    """The form for inference: a plain `Detect`, and nothing behind the layers that it reads."""
    sources, number, module, args = spec.head[-1]
    kept = sources[: len(sources) // 2] if module == "IAuxDetect" else sources
    layers = len(spec.backbone) + len(spec.head) - 1
    end = max(source % layers for source in kept) + 1
    return replace(
        spec, name=spec.name + DEPLOY, head=(*spec.head[: end - len(spec.backbone)], (kept, number, "Detect", args))
    )


def _scaled(values: Mapping[str, Any], scale: str, name: str) -> ModelSpec:
    """A family's model of that scale (depth multiple, width multiple) or variant (other keys)."""
    if scale in values.get("scales", {}):
        depth, width = values["scales"][scale]
        values = {**values, "depth_multiple": depth, "width_multiple": width}
    else:
        values = {**values, **values.get("variants", {}).get(scale, {})}
    return ModelSpec.from_dict(values, name, f"{name}.yaml")


def _from_file(path: Path) -> ModelSpec:
    values = _load(path)
    if "scales" in values and "depth_multiple" not in values:
        names = [str(values.get("name", path.stem)).replace("{scale}", scale) for scale in values["scales"]]
        raise UserError(
            f"{path}: a family of several scales; name one of ours ({', '.join(names)}) or write"
            " depth_multiple and width_multiple into a file of your own"
        )
    return ModelSpec.from_dict(values, path.stem, str(path))


def _load(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = re.sub(r"\s+", " ", str(error))
        raise UserError(f"{path}: not a YAML file: {line}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a model file; a model file has nc, anchors, backbone, head")
    return values


def _row(row: Any, where: str) -> Row:
    """[from, number, module, args] as tuples, checked as far as one row alone can be."""
    if not isinstance(row, list | tuple) or len(row) != 4:
        raise UserError(f"{where}: a row is [from, number, module, args]; got {row}")
    sources, number, module, args = row
    listed = sources if isinstance(sources, list | tuple) else [sources]
    if not listed or not all(isinstance(source, int) for source in listed):
        raise UserError(f"{where}: 'from' is a layer number or a list of them; got {sources}")
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{where}: 'number' is 1 or more; got {number}")
    if not isinstance(module, str) or not isinstance(args, list | tuple):
        raise UserError(f"{where}: module is a name and args a list; got {module}, {args}")
    # 'None' is how published files spell it, a word to YAML
    return (_frozen(sources), number, module, tuple(None if arg == "None" else _frozen(arg) for arg in args))


def _anchors(value: Any) -> int | tuple[tuple[float, ...], ...]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"anchors are a number a level, or one list of widths and heights a level; got {value}")
    return tuple(tuple(side if isinstance(side, int) else float(side) for side in level) for level in value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
