"""Rows -> layer specs -> modules, with a closed vocabulary: nothing in a model file is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.blocks import BLOCKS
from models.blocks.activation import replace_activations
from models.blocks.base import LayerSpec
from models.heads import ANCHOR_FREE, HEADS, REFUSED
from models.spec import ModelSpec
from utils.errors import UserError, shown
from utils.registry import find
from utils.types import FeatureInfo

PROBE = 256  # pixels; strides up to 128 divide it
MANY_INPUTS = {"Concat", "Shortcut", "CBFuse", *HEADS, *ANCHOR_FREE}  # layers that take a list of maps

Maps = Tensor | tuple[Tensor, ...]  # what a layer puts out; several of CBLinear alone


class Graph(NamedTuple):
    """Modules in order, and how they are wired. The last one is the head."""

    layers: nn.Sequential
    sources: tuple[tuple[int, ...], ...]  # of each layer; -1 is the image
    joins: tuple[bool, ...]  # whether a layer takes a list of maps
    info: tuple[FeatureInfo, ...]  # of every layer but the head


def layer_specs(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """The rows of backbone and head in one sequence, depths scaled, sources absolute."""
    rows = [("backbone", i, row) for i, row in enumerate(spec.backbone)]
    rows += [("head", i, row) for i, row in enumerate(spec.head)]
    return tuple(_layer_spec(index, *row, spec) for index, row in enumerate(rows))


def _layer_spec(index: int, section: str, place: int, row: tuple[Any, ...], spec: ModelSpec) -> LayerSpec:
    sources, number, module, args = row
    where = f"{spec.name}: {section} row {place}, layer {index} {shown(_as_written(row), 200)}"
    listed = sources if isinstance(sources, tuple) else (sources,)
    absolute = tuple(source + index if source < 0 else source for source in listed)
    for written, source in zip(listed, absolute, strict=True):
        if not -1 <= source < index:
            raise UserError(f"{where}: 'from' {written} is not a layer before this one")
    if len(absolute) > 1 and module in BLOCKS and module not in MANY_INPUTS:
        raise UserError(f"{where}: {module} takes one input; got {len(absolute)}")
    depth = max(round(number * spec.depth_multiple), 1) if number > 1 else 1
    return LayerSpec(index, absolute, depth, module, args, where, spec.scale, spec.max_channels, spec.anchor_free)


def build_graph(spec: ModelSpec, num_classes: int) -> Graph:
    """Builds every layer and measures, on an image without content, what it puts out.

    Raises:
        UserError: a row that names no known module, or arguments or inputs that its module cannot take.
    """
    *body, last = layer_specs(spec)
    if last.module in REFUSED:
        raise UserError(
            f"{last.where}: {last.module} finds {REFUSED[last.module]}; this repository trains detectors of boxes"
        )
    _tried(last, find, "head", last.module, _heads(spec))
    maps: dict[int, Maps] = {-1: torch.empty(1, 3, PROBE, PROBE, device="meta")}
    layers, info = [], []
    for layer in body:
        module, maps[layer.index] = _tried(layer, _build_layer, layer, maps, spec)
        layers.append(module)
        info.append(_info(layer.index, maps[layer.index]))
    layers.append(_tried(last, _build_head, last, info, spec, num_classes))
    return Graph(
        nn.Sequential(*layers),
        tuple(layer.sources for layer in (*body, last)),
        tuple(layer.module in MANY_INPUTS for layer in (*body, last)),
        tuple(info),
    )


def _build_layer(layer: LayerSpec, maps: dict[int, Maps], spec: ModelSpec) -> tuple[nn.Module, Maps]:
    """The module of a row, and its output without content (on the device "meta")."""
    block = find("block", layer.module, BLOCKS)
    inputs = [maps[source] for source in layer.sources]
    if layer.module != "CBFuse":
        _require_single(layer, {source: isinstance(maps[source], tuple) for source in layer.sources})
    c_in = [_last(x).shape[1] for x in inputs]
    module, c_out = block.from_spec(layer, c_in, spec.width_multiple)
    if layer.number > 1 and not block.repeats_inside:
        more = [block.from_spec(layer, [c_out], spec.width_multiple)[0] for _ in range(layer.number - 1)]
        module = nn.Sequential(module, *more)
    if spec.activation:
        replace_activations(module, spec.activation)
    return module, _output_on_meta(module, inputs if layer.module in MANY_INPUTS else inputs[0])


def _build_head(layer: LayerSpec, info: Sequence[FeatureInfo], spec: ModelSpec, num_classes: int) -> nn.Module:
    if -1 in layer.sources:
        raise UserError("a head reads layers, not the image")
    levels = [info[source] for source in layer.sources]
    _require_single(layer, {level.layer: level.maps > 1 for level in levels})
    made: nn.Module = _heads(spec)[layer.module].from_spec(
        layer, [level.channels for level in levels], [level.stride for level in levels], num_classes, spec
    )
    if spec.activation:
        replace_activations(made, spec.activation)
    return made


def _require_single(layer: LayerSpec, several: Mapping[int, bool]) -> None:
    """Raises UserError where a layer before (number -> whether it puts out several maps) is for `CBFuse` alone."""
    for source in (source for source, has_several in several.items() if has_several):
        raise UserError(f"{layer.module} reads single maps; layer {source} puts out several, which CBFuse alone takes")


def _last(maps: Maps) -> Tensor:
    """Of a layer of several maps, the one that speaks for it."""
    return maps[-1] if isinstance(maps, tuple) else maps


def _info(index: int, maps: Maps) -> FeatureInfo:
    channels, height = _last(maps).shape[1:3]
    return FeatureInfo(index, channels, PROBE // height, len(maps) if isinstance(maps, tuple) else 1)


def _heads(spec: ModelSpec) -> dict[str, Any]:
    return ANCHOR_FREE if spec.anchor_free else HEADS


@torch.no_grad()
def _output_on_meta(module: nn.Module, x: Maps | list[Maps]) -> Maps:
    """Runs a module on shapes alone; its own weights and statistics are left out of it."""
    tensors = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    training = module.training
    output: Maps = functional_call(module.eval(), tensors, (x,))
    module.train(training)
    return output


def _tried(layer: LayerSpec, build: Any, *args: Any) -> Any:
    """What `build(*args)` returns; what goes wrong is told with the row."""
    try:
        return build(*args)
    except UserError as error:
        raise UserError(f"{layer.where}: {error}") from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{layer.where}: {shown(reason, 200)}") from error


def _as_written(value: Any) -> str:
    """A row as a model file has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(_as_written(part) for part in value)}]"
    return str(value)
