"""Writing our checkpoints: plain data, a student alone under `model`, what only resume needs under `training`.

`models/weights.py` reads them. Keys:

    format, version     "yolo-distill", 1
    description         the model's rows and multiples (`ModelSpec.to_dict()`)
    names, named        class names, and whether they are real or made up
    model               the state dict of the student: its average (EMA); float16 once the run is over
    options, hyp        of the run, metrics of the epoch
    training            only while a run can be resumed: task (student, adapters), optimizer, epoch and batch, chance
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.weights import FORMAT, VERSION
from models.yolo import Model
from utils.files import remove_leftovers, write_atomically

if TYPE_CHECKING:
    from engine.callbacks import EpochRecord
    from engine.plan import Plan


def save_epoch(folder: Path, average: Model, record: EpochRecord, plan: Plan) -> None:
    """best.pt where this epoch is the best; every `save_period` epochs a file that stays."""
    common = _common(plan, record)
    if record.best or not plan.save or not (folder / "best.pt").exists():  # one of an earlier run may lie there
        save(folder / "best.pt", average, half=True, **common)
    if plan.save_period > 0 and (record.epoch + 1) % plan.save_period == 0:
        save(folder / f"epoch{record.epoch}.pt", average, half=True, **common)


def remove_unfinished(folder: Path) -> None:
    """Removes what a process has left that was killed while it wrote."""
    for name in ("last.pt", "best.pt"):
        remove_leftovers(folder / name)


def save_last(
    folder: Path, average: Model, plan: Plan, training: Mapping[str, Any] | None, record: EpochRecord | None = None
) -> None:
    """last.pt.

    Args:
        training: what resume needs; None at the end of a run, where this file too becomes the float16 average alone.
        record: of the epoch; None amidst one.
    """
    save(folder / "last.pt", average, half=training is None, training=training, **_common(plan, record))


def _common(plan: Plan, record: EpochRecord | None) -> dict[str, Any]:
    row = {} if record is None else record.row()
    metrics = {key: value for key, value in row.items() if key.startswith("metrics/")}
    return {"options": plan.options or {}, "hyp": plan.hyp or {}, "metrics": metrics}


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
