"""How big a model is: parameters, GFLOPs, a table of its layers."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from models.yolo import Model

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor | tuple[Tensor, ...]]  # of a layer

REPEATS = 3  # runs that a layer's time is the mean of


class LayerCost(NamedTuple):
    milliseconds: float
    gflops: float
    parameters: int


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def gflops(model: Model, size: int = 640) -> float:
    """Billions of operations for one image of `size` pixels: thop's multiply-adds × 2, in fused form.

    The model itself is left alone; nothing is computed (shapes are enough), so this costs no time.
    """
    return _gflops(copy.deepcopy(model).fuse(), torch.empty(1, 3, size, size))


def layer_cost(layer: nn.Module, inputs: Inputs) -> LayerCost:
    """Time and GFLOPs of a layer on its inputs, for the whole batch."""
    with torch.no_grad():
        layer_copy = copy.deepcopy(layer).eval()  # batch statistics must not move
        layer_copy(inputs)
        _finish(inputs)
        start = time.perf_counter()
        for _ in range(REPEATS):
            layer_copy(inputs)
        _finish(inputs)
        milliseconds = (time.perf_counter() - start) / REPEATS * 1000
    return LayerCost(milliseconds, _gflops(layer_copy, inputs), count_parameters(layer))


def layer_table(model: Model) -> str:
    """One line a layer: number, where its input comes from, parameters, type, channels and stride put out."""
    lines = [f"{'layer':>5} {'from':>16} {'parameters':>12}  {'module':<18} {'channels':>8} {'stride':>6}"]
    for index, layer in enumerate(model.model):
        sources = ", ".join(map(str, model.sources[index]))
        start = f"{index:>5} {sources:>16} {count_parameters(layer):>12}  {type(layer).__name__:<18}"
        known = index < len(model.feature_info)
        end = f" {model.feature_info[index].channels:>8} {model.feature_info[index].stride:>6}" if known else ""
        lines.append(start + end)
    return "\n".join(lines)


def describe(model: Model) -> str:
    """Such as: yolov5s: 25 layers, 7,235,389 parameters, 16.4 GFLOPs at 640 px, 80 classes."""
    return (
        f"{model.spec.name}: {len(model.model)} layers, {count_parameters(model):,} parameters, "
        f"{gflops(model):.1f} GFLOPs at 640 px, {model.num_classes} classes"
    )


def _gflops(module: nn.Module, inputs: Inputs) -> float:
    """Of a module that may be altered: it is moved to the device "meta"."""
    from thop import profile

    # float32 throughout: nothing casts half-precision inputs there
    shapes = tree_map(lambda x: torch.empty(x.shape, device="meta"), inputs)
    with torch.no_grad():
        multiply_adds, _ = profile(module.to("meta").float().eval(), inputs=(shapes,), verbose=False)
    return 2 * multiply_adds / 1e9


def _finish(inputs: Inputs) -> None:
    """Waits for the device, where calls return before the work is done."""
    first = tree_leaves(inputs)[0]
    if first.is_cuda:
        torch.cuda.synchronize(first.device)
