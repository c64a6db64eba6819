"""Optimizers with three parameter groups, and the learning rate as a pure function of time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from engine.muon import MuSGD
from utils.hyp import Hyp
from utils.phases import stretch_at
from utils.registry import find
from utils.types import Progress

log = logging.getLogger(__name__)

AUTO_SGD_ITERATIONS = 10_000  # `auto` takes SGD for longer runs, AdamW for shorter ones
GROUPS = ("weights", "norms", "biases")

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda groups, lr, momentum, **form: torch.optim.SGD(groups, lr, momentum, nesterov=True, **form),
    "MuSGD": lambda groups, lr, momentum, **_: MuSGD(groups, lr=lr, momentum=momentum),
    "Adam": lambda groups, lr, momentum, **form: torch.optim.Adam(groups, lr, (momentum, 0.999), **form),
    "AdamW": lambda groups, lr, momentum, **form: torch.optim.AdamW(groups, lr, (momentum, 0.999), **form),
    "Adamax": lambda groups, lr, momentum, **form: torch.optim.Adamax(groups, lr, (momentum, 0.999), **form),
    "NAdam": lambda groups, lr, momentum, **form: torch.optim.NAdam(groups, lr, (momentum, 0.999), **form),
    "RAdam": lambda groups, lr, momentum, **form: torch.optim.RAdam(groups, lr, (momentum, 0.999), **form),
    "RMSProp": lambda groups, lr, momentum, **form: torch.optim.RMSprop(groups, lr, momentum=momentum, **form),
}
FUSED = ("SGD", "Adam", "AdamW")  # in PyTorch: one kernel that goes through all tensors once


@dataclass(frozen=True)
class Recipe:
    """The numbers of the optimizer, after `auto` has been decided."""

    name: str
    lr0: float
    momentum: float
    warmup_bias_lr: float


def choose(name: str, hyp: Hyp, iterations: int, num_classes: int) -> Recipe:
    """Decides `auto` by the length of the run (as later YOLO trainers do) and says so; other names pass through."""
    if name != "auto":
        find("optimizer", name, OPTIMIZERS)
        return Recipe(name, hyp.lr0, hyp.momentum, hyp.warmup_bias_lr)
    if iterations > AUTO_SGD_ITERATIONS:
        recipe = Recipe("SGD", 0.01, 0.9, hyp.warmup_bias_lr)
    else:
        recipe = Recipe("AdamW", round(0.002 * 5 / (4 + num_classes), 6), 0.9, 0.0)
    log.info(
        "optimizer auto: %s, lr0 %g, momentum %g, because the run has %d iterations (SGD above %d)",
        *(recipe.name, recipe.lr0, recipe.momentum, iterations, AUTO_SGD_ITERATIONS),
    )
    return recipe


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weights that decay, weights of norms and biases that don't, in the order of `GROUPS`."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                groups["biases"].append(parameter)
            elif isinstance(child, _NORMS):
                groups["norms"].append(parameter)
            else:
                groups["weights"].append(parameter)
    decays = {"weights": weight_decay}
    return [{"params": groups[name], "weight_decay": decays.get(name, 0.0), "name": name} for name in GROUPS]


def build_optimizer(module: nn.Module, recipe: Recipe, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer over everything in `module` that may learn."""
    groups = parameter_groups(module, weight_decay)
    optimizer = OPTIMIZERS[recipe.name](groups, recipe.lr0, recipe.momentum, **fused_form(recipe.name, module))
    if isinstance(optimizer, torch.optim.SGD) and recipe.momentum > 0:
        # the fused kernel cannot take parameters that begin to learn after others; zeros make the same first step
        for group in groups:
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    counts = ", ".join(f"{len(group['params'])} {group['name']}" for group in groups)
    log.info("optimizer: %s, lr0 %g, %s (decay %g on weights)", recipe.name, recipe.lr0, counts, weight_decay)
    return optimizer


def lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Brings the state of each parameter into its layout: fused kernels walk through memory and look at no strides."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def fused_form(name: str, module: nn.Module) -> dict[str, bool]:
    """How an optimizer of PyTorch goes through the parameters: fused where it can, else as it chooses itself."""
    learners = [parameter for parameter in module.parameters() if parameter.requires_grad]
    plain = all(p.device.type in ("cpu", "cuda") and p.dtype is torch.float32 for p in learners)
    return {"fused": True} if name in FUSED and plain else {}


def decay(kind: str, done: float, final: float) -> float:
    """Factor on the learning rate when the share `done` of the run is over: 1 at the start, `final` at the end."""
    if kind == "linear":
        return 1 - done * (1 - final)
    if kind == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    if kind == "poly":
        return final + (1 - final) * (1 - done) ** 0.9  # the power of DeepLab's "poly" policy
    raise ValueError(f"unknown decay {kind!r}")


@dataclass(frozen=True)
class Timetable:
    """Learning rates, momentum and accumulation at any moment: pure in `Progress`, so resume needs nothing."""

    recipe: Recipe
    hyp: Hyp
    kind: str  # linear, cosine, poly
    batch_size: int  # over all ranks

    def warmup(self, progress: Progress) -> int:
        """Iterations of warm-up: at least 100 where there is any, as published."""
        if self.hyp.warmup_iterations is not None:
            return self.hyp.warmup_iterations
        if self.hyp.warmup_epochs <= 0:
            return 0
        return max(round(self.hyp.warmup_epochs * progress.steps_per_epoch), 100)

    def learning_rate(self, progress: Progress, group: str) -> float:
        """Decays a step an epoch; biases warm up from `warmup_bias_lr`, everything else from 0.

        Where the recipe has phases, each decays by itself, from its own learning rate if it has one.
        """
        lr0, epoch, epochs = self.recipe.lr0, progress.epoch, progress.epochs
        part = stretch_at(self.hyp.phases, epoch, epochs)
        if part is not None:
            lr0, epoch, epochs = part.phase.lr0 or lr0, epoch - part.start, part.epochs
        rate = lr0 * decay(self.kind, epoch / epochs, self.hyp.lrf)
        warm = self._warmth(progress)
        start = self.recipe.warmup_bias_lr if group == "biases" else 0.0
        return start + (rate - start) * warm

    def momentum(self, progress: Progress) -> float:
        start = min(self.hyp.warmup_momentum, self.recipe.momentum)
        return start + (self.recipe.momentum - start) * self._warmth(progress)

    def accumulate(self, progress: Progress) -> int:
        """Batches to an optimizer step: grows from 1 to nominal batch / batch during warm-up."""
        full = self.hyp.nominal_batch / self.batch_size
        return max(1, round(1 + (full - 1) * self._warmth(progress)))

    def _warmth(self, progress: Progress) -> float:
        length = self.warmup(progress)
        return min(1.0, progress.iteration / length) if length else 1.0

    def apply(self, optimizer: torch.optim.Optimizer, progress: Progress, factor: float = 1.0) -> None:
        """Writes this moment's numbers into the optimizer, learning rates times `factor`."""
        momentum = self.momentum(progress)
        for group in optimizer.param_groups:
            group["lr"] = factor * self.learning_rate(progress, group["name"])
            if "momentum" in group:
                group["momentum"] = momentum
            elif "betas" in group:
                group["betas"] = (momentum, group["betas"][1])


def decay_scale(batch_size: int, nominal: int) -> float:
    """Weight decay is meant for the nominal batch: larger batches make fewer steps and decay more in each."""
    accumulate = max(round(nominal / batch_size), 1)
    return batch_size * accumulate / nominal
