"""Checkpoints of ours and of others -> state dicts -> models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.blocks import BLOCKS
from models.blocks.activation import ACTIVATIONS
from models.blocks.base import round_channels
from models.bounds import bounded
from models.families import known_specs, read_spec
from models.heads import ANCHOR_FREE, HEADS, REFUSED
from models.spec import ModelSpec
from models.stand_ins import StandIn, module_tensors, submodules
from models.transfer import TransferReport, anchors_in, last_layer, num_classes_in, transfer
from models.weights_file import read_file
from models.yolo import Model
from models.zoo import resolve_weights
from utils.classes import MOST_CLASSES
from utils.errors import UserError, shown

__all__ = ["Checkpoint", "TransferReport", "load_model", "read_checkpoint", "resolve_weights", "transfer"]

FORMAT, VERSION = "yolo-distill", 1
ALWAYS = 100_000_000  # numbers of a file of any size: 0.4 GB
# what reading comes to where a file has other things in the places of those that are looked for
MISMADE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
META = ("options", "hyp", "metrics")  # of ours, beside the model
# what resume looks up in ours (`engine/trainer.py`), and what it is
TRAINING: Mapping[str, Any] = {
    "task": Mapping,
    "optimizer": Mapping,
    "scaler": Mapping,
    "ema_updates": int,
    "optimizer_steps": int,
    "epoch": int,
    "best_fitness": int | float,
    "best_epoch": int,
    "class_maps": Tensor | None,
}
DEFAULT_CLASSES = 80  # COCO's, where neither data, cfg nor weights say


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file says.

    `spec` is None for a bare state dict of no known architecture; `names` None where the file has none or made them
    up; `training` is what resume needs, in ours alone; `meta` holds options, hyp and metrics of ours.
    """

    path: Path
    state: dict[str, Tensor]  # float32, keys `model.<layer>...`
    spec: ModelSpec | None
    names: tuple[str, ...] | None = None
    training: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        found = num_classes_in(self.state)
        head = None if self.spec is None else HEADS.get(self.spec.head[-1][2])
        return found if found is None or head is None else found - head.hidden_outputs


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads any weights file, running nothing of it: ours, a pickled YOLOv5, or a bare state dict.

    Raises:
        UserError: unreadable, refused (by name), or of a family that we don't have.
    """
    path = Path(path)
    content = read_file(path)
    try:
        return _interpreted(path, content)
    except MISMADE as error:
        raise UserError(f"{path} is not made as checkpoints are: {shown(str(error), 200)}") from error


def _interpreted(path: Path, content: Any) -> Checkpoint:
    if isinstance(content, StandIn):
        return _from_module(path, content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights, but a {type(content).__name__}")
    if content.get("format") == FORMAT:
        return _from_ours(path, content)
    for key in ("ema", "model", "state_dict"):  # the average is what was evaluated and published
        if isinstance(content.get(key), StandIn):
            return _from_module(path, content[key])
        if isinstance(content.get(key), Mapping):
            return _from_state(path, content[key])
    return _from_state(path, content)


def load_model(
    weights: str | Checkpoint,
    cfg: str | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    anchors: int | float | Sequence[Sequence[float]] | None = None,
    *,
    anchors_from_cfg: bool = False,
) -> tuple[Model, TransferReport | None]:
    """A model with its weights, float32, on the CPU, in training mode.

    Args:
        weights: a file, a published name, what was read of one, or '' for a model from scratch, of `cfg`.
        cfg: the architecture; None takes that of the weights.
        num_classes: None takes the number of `names`, else of the weights, else of `cfg`.
        names: of the classes; None takes those of the weights where the numbers agree.
        anchors: override those of weights and cfg: rows in pixels, or how many a level, to be found from data later.
        anchors_from_cfg: the anchors of `cfg` win over those of the weights, as in training from a model file.

    Raises:
        UserError: nothing to build from, or nothing of the weights fits.
    """
    if isinstance(weights, str):
        checkpoint = read_checkpoint(resolve_weights(weights)) if weights else None
    else:
        checkpoint = weights
    spec = _architecture(cfg, checkpoint)
    stands = anchors is not None or (anchors_from_cfg and bool(cfg))
    spec = _with_anchors(spec, anchors, None if stands or checkpoint is None else anchors_in(checkpoint.state))
    known = checkpoint.num_classes if checkpoint else None
    num_classes = num_classes or (len(names) if names else None) or known or spec.nc or DEFAULT_CLASSES
    if num_classes > MOST_CLASSES:
        where = spec.name if checkpoint is None else checkpoint.path
        raise UserError(f"{where}: {num_classes} classes; expected at most {MOST_CLASSES}")
    if names is None and checkpoint and checkpoint.names and len(checkpoint.names) == num_classes:
        names = checkpoint.names
    try:
        with bounded():
            model = Model(replace(spec, nc=num_classes), num_classes, names)
    except ValueError as error:
        raise UserError(f"{spec.name}: {error}") from error
    if checkpoint is None:
        return model, None
    anchors_key = f"model.{len(model.model) - 1}.anchors"
    try:
        report = transfer(model, checkpoint.state, leave={anchors_key} if stands else ())
    except MISMADE as error:  # its parts contradict each other
        raise UserError(f"{checkpoint.path} is not made as checkpoints are: {shown(str(error), 200)}") from error
    if not (spec.anchor_free or stands) and anchors_key not in dict(report.skipped):
        model.head.provisional = False
    return model, report


def recognise(state: Mapping[str, Tensor]) -> ModelSpec | None:
    """The known model whose tensors have these names and shapes, whatever its classes and anchors."""
    num_classes, anchors = num_classes_in(state), anchors_in(state)
    if num_classes is None or num_classes > MOST_CLASSES:
        return None
    shapes = {key: value.shape for key, value in state.items() if _is_weight(key, value)}
    for known in known_specs():
        if not _may_be(known, state):
            continue
        spec = _with_anchors(known, None, anchors)
        with torch.device("meta"):
            own = Model(spec, num_classes).state_dict()
        if {key: value.shape for key, value in own.items() if _is_weight(key, value)} == shapes:
            return spec
    return None


def _may_be(spec: ModelSpec, state: Mapping[str, Tensor]) -> bool:
    """Whether depth and the first convolution's width agree: spares building the others."""
    if last_layer(state) != len(spec.backbone) + len(spec.head) - 1:
        return False
    index, row = next((i, row) for i, row in enumerate(spec.backbone) if row[2] == "Conv")
    first = state.get(f"model.{index}.conv.weight")
    return first is not None and len(first) == round_channels(row[3][0], spec.width_multiple)


def _is_weight(key: str, value: Tensor) -> bool:
    """Convolutions tell an architecture, and what is implicit; norms may be folded away, biases come with that."""
    return key.startswith("model.") and key.endswith((".weight", ".implicit")) and value.ndim == 4


def _architecture(cfg: str | None, checkpoint: Checkpoint | None) -> ModelSpec:
    if cfg:
        return read_spec(cfg)
    if checkpoint is None:
        raise UserError("neither weights nor a model file (--cfg) given")
    if checkpoint.spec is None:
        raise UserError(
            f"{checkpoint.path} is a bare state dict of no model that we know, or a fused one; name its model file "
            "(--cfg or --t_cfg)"
        )
    return checkpoint.spec


def _with_anchors(spec: ModelSpec, given: Any, stored: Tensor | None) -> ModelSpec:
    """Given anchors win; those stored with the weights arrive with these, only their number matters here."""
    if spec.anchor_free:
        return spec
    if given is not None:
        try:
            return spec.with_anchors(given)
        except (TypeError, ValueError) as error:
            raise UserError(f"anchors: {error}") from error
    assert spec.anchors is not None
    count = spec.anchors if isinstance(spec.anchors, int) else len(spec.anchors[0]) // 2
    return spec if stored is None or stored.shape[1] == count else spec.with_anchors(stored.shape[1])


def _from_ours(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    if content.get("version", 0) > VERSION:
        raise UserError(f"{path} was written by a newer version (format {content['version']}); update this repository")
    if missing := [key for key in ("description", "names", "named", "model") if key not in content]:
        raise UserError(f"{path} is a checkpoint of ours without {', '.join(missing)}; it was not written by this code")
    mappings = {key: content[key] for key in ("description", *META, "training") if key in content}
    for key, value in mappings.items():
        if not isinstance(value, Mapping):
            raise UserError(f"{path}: {key}: expected keys and values; got {shown(value)}")
    description = content["description"]
    return Checkpoint(
        path,
        _tensors(path, content["model"]),
        ModelSpec.from_dict(description, shown(description.get("name", path.stem)), str(path)),
        _listed(content["names"]) if content["named"] else None,
        None if "training" not in content else _training(path, content["training"]),
        {key: content[key] for key in META if key in content},
    )


def _training(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What resume relies on, looked at as far as the kinds of its values; its tensors are the task's to compare."""
    for key, kinds in TRAINING.items():
        if key not in state or not isinstance(state[key], kinds):
            found = shown(state[key]) if key in state else "nothing"
            raise UserError(
                f"{path}: training: {key}: got {found}; it was not written by this code, and no run can go on from it"
            )
    return dict(state)


def _from_state(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    state = _tensors(path, content)
    if not any(key.startswith("model.") for key in state):
        raise UserError(f"{path} holds no weights of a YOLO model (keys like model.0.conv.weight)")
    return Checkpoint(path, state, recognise(state))


def _from_module(path: Path, module: StandIn) -> Checkpoint:
    inside = module.get("model")
    if isinstance(inside, StandIn) and isinstance(inside.get("yaml"), Mapping):  # a traced model holds the real one
        module = inside
    rows = module.get("yaml")
    if not isinstance(rows, Mapping) or "backbone" not in rows or "head" not in rows:
        raise UserError(f"{path} holds a {module.origin}, not a detector with a layer description")
    _check_family(path, module, rows)
    spec = ModelSpec.from_dict(rows, path.stem, str(path))
    return Checkpoint(
        path,
        _tensors(path, dict(module_tensors(module))),
        replace(spec, activation=_activation(path, module) or spec.activation),
        _names(module.get("names")),
    )


def _check_family(path: Path, module: StandIn, rows: Mapping[str, Any]) -> None:
    """Refuses what is not built of our blocks, with the name of what it is."""
    file = rows.get("yaml_file") or module.get("yaml_file")
    family = Path(file).stem if isinstance(file, str) else module.origin
    known = {*BLOCKS, *(HEADS if rows.get("anchors") else ANCHOR_FREE)}
    unknown = sorted({str(row[2]) for row in (*rows["backbone"], *rows["head"])} - known)
    if unknown:
        finds = REFUSED.get(str(rows["head"][-1][2]))
        reason = f"it finds {finds}, not boxes" if finds else f"its layers {shown(', '.join(unknown), 200)} are unknown"
        raise UserError(f"{path} holds a model of the family {family}, which is not supported: {reason}")


def _activation(path: Path, module: StandIn) -> str | None:
    """Which activation a pickled model uses, if not SiLU: releases differ without their rows saying so."""
    found = set()
    for name, child in submodules(module):
        kind = f"nn.{child.origin.rpartition('.')[2]}"
        if name == "act" and kind in ACTIVATIONS:
            found.add(f"{kind}({child.get('negative_slope')})" if kind == "nn.LeakyReLU" else kind)
    if len(found) > 1:
        raise UserError(f"{path} mixes activations ({', '.join(sorted(found))}), which no model file can say")
    return None if found <= {"nn.SiLU"} else found.pop()


def _names(names: Any) -> tuple[str, ...] | None:
    """Class names given as list or dict; None where they are only numbers."""
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list | tuple) or not names:
        return None
    listed = _listed(names)
    return None if all(re.fullmatch(r"(class\s*)?\d+", name) for name in listed) else listed


def _listed(names: Sequence[Any]) -> tuple[str, ...]:
    if not all(isinstance(name, str | int | float) for name in names):
        raise TypeError("the names of its classes are no names")
    return tuple(str(name) for name in names)


def _tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict as float32, wrappers' prefixes (`module.`) cut off.

    Raises:
        ValueError: they have far more numbers than the file has bytes, since one number can stand for many.
    """
    # by any layer: the first of some models (YOLOv9e, YOLOv7-W6) has no tensors
    found = (re.match(r"(.*?)model\.\d+\.", key) for key in content if isinstance(key, str))
    prefix = next((match[1] for match in found if match), "")
    state = {str(key).removeprefix(prefix): value for key, value in content.items() if isinstance(value, Tensor)}
    claimed, size = sum(value.numel() for value in state.values()), path.stat().st_size
    if claimed > max(size, ALWAYS):
        raise ValueError(f"its tensors have {claimed} numbers, and the file has {size} bytes")
    return {key: value.detach().float() if value.is_floating_point() else value for key, value in state.items()}
