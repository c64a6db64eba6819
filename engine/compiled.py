"""Networks as PyTorch's compiler makes them (`--compile`)."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from utils.errors import UserError

log = logging.getLogger(__name__)

C_COMPILERS = ("gcc", "clang")  # of which Triton takes one, where CC names none


def compile_networks(networks: Iterable[nn.Module], one_shape: bool, graphs: bool, backend: Any = "inductor") -> None:
    """Compiles each network in place, at its first call; names, copies and what is saved stay as they are.

    Args:
        one_shape: whether batches keep one shape (but for an epoch's last); else sizes are variables of the code.
        graphs: whether CUDA graphs replay the whole network, which saves the time of launching its kernels.

    Raises:
        UserError: there is no compiler.
    """
    for network in networks:
        device = next(network.parameters()).device
        require_compiler(device)
        mode = "reduce-overhead" if graphs and device.type == "cuda" and backend == "inductor" else None
        network.compile(backend=backend, mode=mode, dynamic=False if one_shape else None)
        log.info(
            "--compile: %s%s; its first steps take a minute or more",
            *(type(network).__name__, ", with CUDA graphs" if mode else ""),
        )


def require_compiler(device: torch.device) -> None:
    """Raises UserError where the compiler that PyTorch hands its code to is not installed."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError("--compile: Triton is not installed, which PyTorch needs for it on a GPU; leave it out")
        _require("C", [os.environ["CC"]] if os.environ.get("CC") else C_COMPILERS)
    else:
        from torch._inductor import config  # which says what it looks for on this system

        _require("C++", [name for name in config.cpp.cxx if name])


def _require(language: str, names: Sequence[str]) -> None:
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"--compile: there is no {language} compiler here ({' or '.join(names)}), which PyTorch needs for it; "
            "install one, or leave --compile out"
        )
