"""Writing our checkpoints: plain data, a student alone under `model`, what only resume needs under `training`.

`models/weights.py` reads them. Keys:

    format, version     "yolo-distill", 1
    description         the model's rows and multiples (`ModelSpec.to_dict()`)
    names, named        class names, and whether they are real or made up
    model               the state dict of the student: its average (EMA); float16 once the run is over
    options, hyp        of the run, metrics of the epoch
    training            only while a run can be resumed: task (student, adapters), optimizer, epoch, chance
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.yolo import Model
from utils.files import write_atomically

FORMAT, VERSION = "yolo-distill", 1


def save(
    path: Path,
    model: Model,
    *,
    options: Mapping[str, Any],
    hyp: Mapping[str, Any],
    metrics: Mapping[str, float],
    half: bool,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one file, atomically. `half` stores floating-point weights as float16."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "description": model.spec.to_dict(),
        "names": list(model.names),
        "named": bool(model.named),
        "model": {key: _stored(key, value, half) for key, value in model.state_dict().items()},
        "options": dict(options),
        "hyp": dict(hyp),
        "metrics": dict(metrics),
    }
    if training is not None:
        content["training"] = dict(training)
    return write_atomically(path, lambda temporary: torch.save(content, temporary))


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    # anchors fitted to data would move by a two-thousandth of their size
    return value.half() if half and value.is_floating_point() and not key.endswith(".anchors") else value.clone()
