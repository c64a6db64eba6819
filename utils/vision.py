"""Suppression by torchvision's own kernel, without importing torchvision.

Importing it takes 1.5 seconds (it brings the whole compiler of PyTorch), loading its library a thousandth of that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Of (N, 4) xyxy boxes and their (N,) scores, the indices of those that greedy suppression leaves, best first."""
    kept: Tensor = _kernel()(boxes, scores, iou)
    return kept


@functools.cache
def _kernel() -> Any:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("_C*")):  # _C.so, _C_stable.so, _C.pyd, whatever the version calls it
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(file))
    if not hasattr(torch.ops.torchvision, "nms"):
        import torchvision  # noqa: F401 - it knows better where its library is, or says what is wrong
    return torch.ops.torchvision.nms
