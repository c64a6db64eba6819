"""What a model is made of, as text: rows, multiples, anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from utils.classes import MOST_CLASSES
from utils.errors import UserError, shown

YOLOV7_LAYERS = {"MP", "SPPCSPC", "ReOrg"}  # each of its models has one of them, in any form
SCALE_KEYS = ("depth_multiple", "width_multiple", "max_channels")  # what a scale's two or three numbers are
# what a file may ask for; all published models stay far below
MOST_ANCHORS = 100  # a level
MOST_LAYERS = 10_000  # repetitions counted
MOST_MULTIPLE = 10.0  # of depth and width

Row = tuple[Any, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model file: rows `[from, number, module, args]`, not yet scaled.

    `anchors`: per level w, h, w, h ... in pixels, or how many a level, to be found from data; None for a head without.
    """

    name: str
    backbone: tuple[Row, ...]
    head: tuple[Row, ...]
    anchors: int | tuple[tuple[float, ...], ...] | None = None
    depth_multiple: float = 1.0
    width_multiple: float = 1.0
    nc: int | None = None
    activation: str | None = None
    scale: str = ""  # the letter: some blocks of YOLO11, 12 and 26 are others in the larger models
    max_channels: int | None = None  # of a row, before the width multiple
    reg_max: int = 16  # bins of a distance, of heads without anchors
    end2end: bool = False  # a one-to-one branch beside the one-to-many

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str, where: str) -> ModelSpec:
        """From the keys of a single model file; other keys are ignored. `where` begins the messages.

        Raises:
            UserError: what is missing or of a wrong type.
        """
        for key in ("backbone", "head"):
            if key not in values:
                raise UserError(
                    f"{where}: no '{key}'; a model file has nc, backbone, head, and anchors where its head has"
                )
            if not isinstance(values[key], list | tuple):
                raise UserError(
                    f"{where}: '{key}' is a list of rows [from, number, module, args]; got {shown(values[key])}"
                )
        if not values["head"]:
            raise UserError(f"{where}: no rows under 'head'")
        try:
            values = _at_scale(values)
            return cls(
                name=name,
                backbone=_rows(values["backbone"], f"{where}: backbone"),
                head=_rows(values["head"], f"{where}: head"),
                anchors=None if values.get("anchors") is None else _anchors(values["anchors"]),
                depth_multiple=_multiple(values, "depth_multiple"),
                width_multiple=_multiple(values, "width_multiple"),
                nc=None if values.get("nc") is None else _count(values, "nc", MOST_CLASSES),
                activation=None if values.get("activation") is None else _text(values, "activation"),
                scale=str(values.get("scale") or ""),
                max_channels=None if values.get("max_channels") is None else _count(values, "max_channels"),
                reg_max=16 if values.get("reg_max") is None else _count(values, "reg_max"),
                end2end=_flag(values, "end2end"),
            )
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error

    @property
    def anchor_free(self) -> bool:
        return self.anchors is None

    @property
    def two_branches(self) -> bool:
        """Whether the head has a one-to-one branch, whose boxes need no suppression."""
        return self.anchor_free and (self.end2end or self.head[-1][2] == "v10Detect")

    @property
    def nms_iou(self) -> float:
        """The overlap of suppression with which the family's scores are published."""
        if self.anchor_free:
            return 0.7
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
        others = ("activation", "scale", "max_channels", "reg_max", "end2end")
        return values | {key: getattr(self, key) for key in others if getattr(self, key) != getattr(ModelSpec, key)}

    def with_anchors(self, anchors: int | float | list[Any] | tuple[Any, ...]) -> ModelSpec:
        """The same with other anchors: rows in pixels, or a number a level (rounded: evolved recipes say 3.4)."""
        return replace(self, anchors=_anchors(anchors))


def _at_scale(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file's keys with what its `scales` say: depth multiple, width multiple and, perhaps, largest channels.

    Where its `scale` says none of them it is the first, which is what Ultralytics trains without a letter.
    """
    scales = values.get("scales")
    if not scales:
        return values
    if not isinstance(scales, Mapping):
        raise ValueError(
            f"scales: expected a letter a size, each with a list {', '.join(SCALE_KEYS)}; got {shown(scales)}"
        )
    scale = values["scale"] if values.get("scale") in scales else next(iter(scales))
    numbers = scales[scale]
    if not isinstance(numbers, list | tuple) or len(numbers) not in (2, 3):
        raise ValueError(f"scales: {shown(scale)}: expected a list {', '.join(SCALE_KEYS)}; got {shown(numbers)}")
    return {**values, **dict(zip(SCALE_KEYS, numbers, strict=False)), "scale": scale}


def _count(values: Mapping[str, Any], key: str, most: int = 1 << 31) -> int:
    """A whole number of at least 1."""
    value = values[key]
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        count = 0
    if not 1 <= count <= most:
        upper = f", {most} at most" if count > most else ""
        raise ValueError(f"{key}: got {shown(value)}, expected a whole number of at least 1{upper}")
    return count


def _multiple(values: Mapping[str, Any], key: str) -> float:
    multiple = float(values.get(key, 1.0))
    if not 0 < multiple <= MOST_MULTIPLE:
        raise ValueError(f"{key}: got {shown(values[key])}, expected a number in (0, {MOST_MULTIPLE:g}]")
    return multiple


def _text(values: Mapping[str, Any], key: str) -> str:
    if not isinstance(values[key], str):
        raise ValueError(f"{key}: got {shown(values[key])}, expected text")
    return str(values[key])


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key}: got {shown(repr(value))}, expected true or false")
    return bool(value)


def _rows(rows: Any, where: str) -> tuple[Row, ...]:
    found = tuple(_row(row, f"{where} row {i}") for i, row in enumerate(rows))
    layers = sum(row[1] for row in found)
    if layers > MOST_LAYERS:
        raise UserError(f"{where}: {layers} layers, repetitions counted; expected at most {MOST_LAYERS}")
    return found


def _row(row: Any, where: str) -> Row:
    """[from, number, module, args] as tuples, checked as far as one row alone can be."""
    if not isinstance(row, list | tuple) or len(row) != 4:
        raise UserError(f"{where}: a row is [from, number, module, args]; got {shown(row)}")
    sources, number, module, args = row
    listed = sources if isinstance(sources, list | tuple) else [sources]
    if not listed or not all(isinstance(source, int) for source in listed):
        raise UserError(f"{where}: 'from' is a layer number or a list of them; got {shown(sources)}")
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{where}: 'number' is 1 or more; got {shown(number)}")
    if not isinstance(module, str) or not isinstance(args, list | tuple):
        raise UserError(f"{where}: module is a name and args a list; got {shown(module)}, {shown(args)}")
    # 'None' is how published files spell it, a word to YAML
    return (_frozen(sources), number, module, tuple(None if arg == "None" else _frozen(arg) for arg in args))


def _anchors(value: Any) -> int | tuple[tuple[float, ...], ...]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not value <= MOST_ANCHORS:
            raise ValueError(f"anchors: got {shown(value)}, expected at most {MOST_ANCHORS} a level")
        return round(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"anchors are a number a level, or one list of widths and heights a level; got {shown(value)}")
    return tuple(tuple(side if isinstance(side, int) else float(side) for side in level) for level in value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
