"""What a run starts with: the weights, and the family whose defaults go with them."""

from __future__ import annotations

from pathlib import Path

from engine.options import Options
from models.families import read_spec
from models.spec import ModelSpec
from models.weights import Checkpoint, read_checkpoint, resolve_weights
from utils.errors import UserError
from utils.family import ANCHOR_FREE, ANCHORS, Family


def starting_point(options: Options, folder: Path | None) -> Checkpoint | None:
    """The weights that students begin with, None from scratch; where `folder` is a run's that was begun, its last."""
    last = None if folder is None else folder / "weights" / "last.pt"
    if last is not None and last.exists():
        return read_checkpoint(last)
    return read_checkpoint(resolve_weights(options.weights)) if options.weights else None


def architecture(options: Options, start: Checkpoint | None, resuming: bool = False) -> ModelSpec | None:
    """Of the student; None where neither --cfg nor the weights say it, which is a mistake that `student` answers.

    A run that goes on has its architecture with its weights: the file of --cfg may be gone.
    """
    if options.cfg and not (resuming and start is not None and start.spec is not None):
        return read_spec(options.cfg)
    return None if start is None else start.spec


def family_of(spec: ModelSpec | None) -> Family:
    """Whose defaults a model of this architecture is trained with."""
    return ANCHOR_FREE if spec is not None and spec.anchor_free else ANCHORS


def refuse_anchors(options: Options, family: Family) -> None:
    """Raises UserError where anchors are asked for and the student has none."""
    if family is ANCHOR_FREE and (options.anchors or options.noautoanchor):
        flag = f"--anchors {options.anchors}" if options.anchors else "--noautoanchor"
        raise UserError(f"{flag}: the student's head has no anchors; leave it out")
