"""What the loop needs to know of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.optim import Timetable


@dataclass(frozen=True)
class Plan:
    """Numbers and places, all decided before the first step."""

    folder: Path
    epochs: int
    device: torch.device
    precision: torch.dtype | None  # autocast format, None for float32
    timetable: Timetable
    stride: int
    seed: int = 0
    patience: int = 100  # epochs without a better fitness before stopping, 0 = never
    val_period: int = 1  # epochs between validations; the last epoch is always validated
    validate: bool = True
    save: bool = True  # False: only the final epoch is saved
    save_period: int = 0
    save_interval: float = 0.0  # minutes after which last.pt is written amidst an epoch, 0 = never
    close_mosaic: int = 0  # the last N epochs train without mosaic and mixup
    multi_scale: bool = False  # every batch is resized by a factor in [0.5, 1.5]
    quad: bool = False
    image_weights: bool = False
    clip_gradient: float = 10.0
    compile: bool = False
    options: Mapping[str, Any] | None = None  # stored in checkpoints
    hyp: Mapping[str, Any] | None = None
