"""The parts of a run that a recipe names, each with its own epochs, learning rate and terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.config import number
from utils.errors import UserError

ALL_TERMS = ("detection", "outputs", "features")


@dataclass(frozen=True)
class Phase:
    """What is trained for a while."""

    epochs: int = number(low=1)
    lr0: float | None = number(None, above=0)  # None: the recipe's; decays to lr0 * lrf within the phase
    # "detection" is the loss on labels, "outputs" and "features" all imitation of the kind, else a method's name
    terms: tuple[str, ...] = ALL_TERMS
    name: str = ""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms is empty, so nothing would be trained")


class Stretch(NamedTuple):
    """Where a phase lies in a run."""

    phase: Phase
    start: int  # its first epoch, from 0
    epochs: int


def stretches(phases: Sequence[Phase], epochs: int) -> list[Stretch]:
    """The phases of a run of so many epochs: as their recipe says, in proportion where the run is shorter or longer.

    Raises:
        UserError: a phase would be left without any epoch.
    """
    total = sum(phase.epochs for phase in phases)
    found, start, planned = [], 0, 0
    for place, phase in enumerate(phases, 1):
        planned += phase.epochs
        end = round(epochs * planned / total)
        if end <= start:
            raise UserError(
                f"{epochs} epochs are too few for {len(phases)} phases of {[one.epochs for one in phases]}: phase "
                f"{phase.name or place} would have none; give --epochs {total}, or leave it out"
            )
        found.append(Stretch(phase, start, end - start))
        start = end
    return found


def stretch_at(phases: Sequence[Phase], epoch: int, epochs: int) -> Stretch | None:
    """The phase of an epoch, None where the recipe has no phases."""
    return next((part for part in reversed(stretches(phases, epochs)) if part.start <= epoch), None)
