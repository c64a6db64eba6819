"""What a benchmark compares: arms (the baseline, the methods), their seeds, and the command of every training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.flags import FLAGS
from utils.errors import UserError, nearest
from utils.hyp import Hyp, read_hyp, resolve_hyp

BASELINE = "baseline"
VAL_BATCH = 16  # of val.py: scores depend on how batches are padded


@dataclass(frozen=True)
class Arm:
    """The baseline, or a method as the command line names it."""

    name: str
    outputs: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    recipe: str = ""  # text of a recipe file behind those of all arms
    teachers: int | None = None  # how many of the teachers' weights it takes; None: all
    words: tuple[str, ...] = ()  # further words for the training script, this arm's alone
    off: tuple[str, ...] = ()  # fast paths that are switched off, see `benchmarks/switches.py`

    @property
    def folder(self) -> str:
        """A name that every file system takes."""
        return re.sub(r"[^\w.+-]+", "-", self.name.replace("@", "recipe-"))


@dataclass(frozen=True)
class Plan:
    """What all runs share."""

    out: Path
    data: str
    weights: str  # '' is from scratch
    cfg: str
    t_weights: tuple[str, ...]  # (): nothing has a teacher
    hyp: tuple[str, ...]
    epochs: int
    imgsz: tuple[int, ...]
    batch_size: int
    split: str
    extra: tuple[str, ...] = ()  # further words for the training scripts
    evaluation: tuple[str, ...] = ()  # and for val.py

    @property
    def size(self) -> list[str]:
        return ["--imgsz", *map(str, self.imgsz)]

    def recipe(self, arm: Arm) -> Path:
        return self.out / arm.folder / "recipe.yaml"


@dataclass(frozen=True)
class Run:
    """An arm with a seed."""

    arm: Arm
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def record(self) -> Path:
        """What `measured.py` leaves."""
        return self.folder / "run.json"

    def trained(self) -> bool:
        return self.record.exists() and bool(json.loads(self.record.read_text(encoding="utf-8"))["finished"])

    def scored(self, split: str) -> bool:
        return self.trained() and (self.folder / split / "metrics.json").exists()


# -- methods -----------------------------------------------------------------------------------------------------------


def read_arm(name: str, outputs: Iterable[str], features: Iterable[str], recipes: Sequence[str]) -> Arm:
    """A method in the spelling of the command line.

    Args:
        outputs, features: the names on both shelves.
        recipes: of all arms. Options that they give to a method stay where the command line gives a weight.

    Raises:
        UserError: no such method or recipe, or a weight that is none.
    """
    if name.startswith("@"):
        return _arm_of_recipe(name, recipes)
    hyp = read_hyp(*recipes)
    shelves = {"outputs": tuple(outputs), "features": tuple(features)}
    chosen: dict[str, list[str]] = {kind: [] for kind in shelves}
    weights: dict[str, float] = {}
    for part in name.split("+"):
        method, colon, weight = part.partition(":")
        chosen[_kind(name, method, shelves)].append(method)
        if colon:
            weights[method] = _weight(name, weight)
    recipe: dict[str, Any] = {}
    for kind, methods in chosen.items():
        if weights.keys() & set(methods):  # a later recipe replaces the kind as a whole: all of its methods stand in it
            own: Mapping[str, Mapping[str, Any]] = getattr(hyp, kind) or {}
            added = {method: {"weight": weights[method]} if method in weights else {} for method in methods}
            recipe[kind] = {method: {**own.get(method, {}), **options} for method, options in added.items()}
    text = yaml.safe_dump(recipe, sort_keys=False) if recipe else ""
    return Arm(name, tuple(chosen["outputs"]), tuple(chosen["features"]), text, _teachers(hyp))


def _arm_of_recipe(name: str, recipes: Sequence[str]) -> Arm:
    path = resolve_hyp(name[1:])
    hyp = read_hyp(*recipes, path)
    text = path.read_text(encoding="utf-8")
    return Arm(name, tuple(hyp.outputs or ()), tuple(hyp.features or ()), text, _teachers(hyp))


def _teachers(hyp: Hyp) -> int | None:
    """A teacher that is the student itself has no weights."""
    return sum(role.kind != "self" for role in hyp.teachers) if hyp.teachers else None


def _kind(name: str, method: str, shelves: Mapping[str, Sequence[str]]) -> str:
    """The shelf of a method."""
    kinds = [kind for kind, shelf in shelves.items() if method in shelf]
    if len(kinds) > 1:
        raise UserError(f"--methods {name}: '{method}' is an output and a feature loss; name it in a recipe (@file)")
    if not kinds:
        known = sorted(method for shelf in shelves.values() for method in shelf)
        hint = nearest(method, known) or f"; known: {', '.join(known)}"
        raise UserError(f"--methods {name}: no method is called '{method}'{hint}")
    return kinds[0]


def _weight(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"--methods {name}: the weight is '{text}', expected a number of at least 0")
    return value


def plan_runs(plan: Plan, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Run]:
    """Seed by seed, so that what is there after an interruption is comparable.

    Raises:
        UserError: two methods would share a folder.
    """
    folders = [arm.folder for arm in arms]
    for arm in arms:
        if folders.count(arm.folder) > 1:
            raise UserError(f"--methods {arm.name}: another method has the folder {arm.folder} too; rename the recipe")
    return [Run(arm, seed, plan.out / arm.folder / f"seed{seed}") for seed in dict.fromkeys(seeds) for arm in arms]


# -- commands ----------------------------------------------------------------------------------------------------------


def training(plan: Plan, run: Run) -> list[str]:
    """Script and arguments that train this run, or go on with it."""
    arm, plain = run.arm, run.arm.name == BASELINE or not plan.t_weights
    extra = (*plan.extra, *run.arm.words)
    script = "train.py" if plain else "train_distill.py"
    if (run.folder / "weights" / "last.pt").exists():
        return [script, "--resume", str(run.folder)]
    words = ["--weights", plan.weights, *(["--cfg", plan.cfg] if plan.cfg else [])]
    words += ["--data", plan.data, "--epochs", str(plan.epochs), *plan.size, "--batch-size", str(plan.batch_size)]
    words += ["--hyp", *plan.hyp, *([str(plan.recipe(arm))] if arm.recipe else [])]
    words += ["--seed", str(run.seed), "--project", str(run.folder.parent), "--name", run.folder.name]
    words += ["--exist-ok", "--noplots"]
    if plain:
        return [script, *words, *understood(script, extra)]
    teachers = plan.t_weights[: arm.teachers]
    words += ["--t_weights", *teachers] if teachers else []
    if not arm.outputs and not arm.features:  # of a recipe that names none: the defaults
        return [script, *words, "--d_output", "--d_feature", *extra]
    words += ["--d_output", *(arm.outputs or ["none"]), *(["--d_feature", *arm.features] if arm.features else [])]
    return [script, *words, *extra]


def scoring(plan: Plan, weights: str, folder: Path) -> list[str]:
    """Script and arguments that score weights on the split."""
    words = ["--weights", weights, "--data", plan.data, "--task", plan.split, *plan.size]
    words += ["--batch-size", str(VAL_BATCH), "--project", str(folder), "--name", plan.split]
    return ["val.py", *words, "--exist-ok", "--noplots", *plan.evaluation]


def understood(script: str, words: Sequence[str]) -> list[str]:
    """The flags, with their values, that the script has: one of the teacher's is none of the baseline's."""
    known = {_canonical(name) for _, group in FLAGS[script] for flag in group for name in (flag.spelling, *flag.also)}
    kept, keeping = [], True
    for word in words:
        if word.startswith("--"):
            keeping = _canonical(word.partition("=")[0]) in known
        if keeping:
            kept.append(word)
    return kept


def _canonical(spelling: str) -> str:
    return spelling.replace("_", "-").lower()
