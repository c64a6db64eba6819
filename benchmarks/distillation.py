r"""What a teacher is worth: every method beside the baseline, at equal budget, over several seeds.

    python benchmarks/distillation.py --weights yolov5n.pt --t_weights best.pt --data bccd.yaml \
        --methods bckd cwd bckd+cwd mgd:0.5 @classic-kl --seeds 0 1 2 --epochs 20 --imgsz 320 --hyp finetune \
        --split test --lanes 2 --out runs/distillation -- --workers 0 --val-period 5

A method is one loss or several joined by `+`, each with a weight behind `:` if it is not to be its own; or `@recipe`,
with everything that the recipe names. What stands behind `--` goes to train.py and train_distill.py unchanged.

Training selects its best epoch on val; the table (<out>/<split>.md, .json and .png) reports the split asked for, so
choose among methods by `--split val` and report the chosen by `--split test`: nothing is trained again for that. The
same command goes on where it was stopped, and may name more methods and seeds; the table has those that it names.
Exit status 1: some runs failed, the table is of the others.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.arms import BASELINE, Arm, Plan, plan_runs, read_arm
from benchmarks.lanes import Children, score_teachers, work_all
from benchmarks.measured import stop_on_signals
from benchmarks.report import conclude, read_result
from engine.command_line import parse
from engine.options import DistillOptions, Options
from utils.errors import UserError, exits_cleanly
from utils.files import write_text
from utils.hyp import DEFAULT, resolve_hyp

# what all arms share
SHARED = ("data", "weights", "cfg", "t_weights", "epochs", "imgsz", "batch_size", "hyp")
# flags of the training scripts that the benchmark gives itself, and those that may differ when it goes on
OWN = {*SHARED, "seed", "project", "name", "exist_ok", "resume", "d_output", "d_feature", "baseline"}
HARMLESS = {"device", "t_device", "workers", "cache", "verbose", "noplots"}


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    behind = words.index("--") if "--" in words else len(words)
    options, extra = parser().parse_args(words[:behind]), words[behind + 1 :]
    plan, settings = read_plan(options, extra)
    from distill.features import FEATURES
    from distill.outputs import OUTPUTS

    methods = [name for name in dict.fromkeys(options.methods) if name != BASELINE]
    arms = [Arm(BASELINE), *(read_arm(name, OUTPUTS, FEATURES, plan.hyp) for name in methods)]
    compare(plan, settings, arms, options, shlex.join(["python", "benchmarks/distillation.py", *words]))


def compare(
    plan: Plan, settings: dict[str, Any], arms: Sequence[Arm], options: argparse.Namespace, command: str
) -> None:
    """Trains and scores what is missing, and prints the table; exits with status 1 if some runs failed.

    Args:
        settings: see `read_plan`.
        options: seeds, lanes.
        command: that does it again.
    """
    runs = plan_runs(plan, arms, options.seeds)
    settings["bytes"] = prepare(plan)
    plan = counted_alike(plan)
    keep_settings(plan, settings, arms)
    children = Children(options.lanes)
    try:
        teachers = score_teachers(plan, children.launch)

        def after(run: Any) -> str:
            conclude(plan, runs, teachers, command)  # so that a table of what is there is always there
            return f"last: {run.title}: mAP50-95 {read_result(run, plan.split).map:.4f} on {plan.split}"

        good = work_all(plan, runs, options.lanes, children, after)
    except KeyboardInterrupt:
        children.stop()
        print(f"to go on: {command}", file=sys.stderr)
        raise
    print(f"{conclude(plan, runs, teachers, command)}\nresults: {plan.out}")
    if not good:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="distillation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--t_weights", "--t-weights", nargs="+", required=True, help="the teacher, or several")
    made.add_argument("--methods", nargs="+", default=[], help="such as bckd cwd:0.5 bckd+cwd @recipe")
    return with_shared_flags(made, Path("runs/distillation"))


def with_shared_flags(made: argparse.ArgumentParser, out: Path) -> argparse.ArgumentParser:
    """The parser, with the flags of everything that compares trainings; `out` is where they go unasked."""
    made.add_argument("--weights", default="", help="the student's start; without it --cfg starts from scratch")
    made.add_argument("--cfg", default="", help="the student's architecture")
    made.add_argument("--data", required=True)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--epochs", type=_count, default=20, help="of every arm; the phases of a recipe share them")
    made.add_argument("--imgsz", type=_count, nargs="+", default=[640])
    made.add_argument("--batch-size", type=_count, default=16)
    made.add_argument("--hyp", nargs="+", default=[DEFAULT], help="recipe of all arms; of several, later ones override")
    made.add_argument("--split", default="test", choices=("val", "test"), help="that the table reports")
    made.add_argument("--lanes", type=_count, default=1, help="trainings at a time, which share the cores")
    made.add_argument("--out", type=Path, default=out)
    return made


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got '{text}', expected a whole number of at least 1")
    return int(text)


def read_plan(options: argparse.Namespace, extra: Sequence[str]) -> tuple[Plan, dict[str, Any]]:
    """The plan, and its settings: what must not change while runs are added to a folder.

    Raises:
        UserError: no student, or a flag that the training scripts do not know or the benchmark gives itself.
    """
    if not options.weights and not options.cfg:
        raise UserError("--weights is missing: name the student's checkpoint, or --cfg to start from scratch")
    given = parse("train_distill.py", extra, DistillOptions())
    if taken := sorted(OWN & given.keys()):
        raise UserError(f"behind --: {taken[0]} is the benchmark's own; name it before --, if at all")
    evaluation = [word for name in ("device", "workers") if name in given for word in (f"--{name}", str(given[name]))]
    evaluation += ["--single-cls"] if given.get("single_cls") else []
    plan = Plan(
        out=options.out,
        data=options.data,
        weights=options.weights,
        cfg=options.cfg,
        t_weights=tuple(options.t_weights),
        hyp=tuple(options.hyp),
        epochs=options.epochs,
        imgsz=tuple(options.imgsz),
        batch_size=options.batch_size,
        split=options.split,
        extra=tuple(extra),
        evaluation=tuple(evaluation),
    )
    settings = {name: getattr(plan, name) for name in SHARED if name != "hyp"}
    settings["recipes"] = [resolve_hyp(name).read_text(encoding="utf-8") for name in plan.hyp]  # not only their names
    return plan, settings | {name: value for name, value in given.items() if name not in HARMLESS}


def counted_alike(plan: Plan) -> Plan:
    """With mAP counted as the student's family does, for its teacher, too."""
    from engine.start import architecture, family_of, starting_point

    student = Options(weights=plan.weights, cfg=plan.cfg)
    metric = family_of(architecture(student, starting_point(student, None))).metric
    return replace(plan, evaluation=(*plan.evaluation, "--metric", metric))


def prepare(plan: Plan) -> dict[str, int]:
    """Gets what several children would otherwise get at the same time; gives each weights file's size in bytes.

    Raises:
        UserError: data or weights are not to be found.
    """
    from data.spec import read_data
    from models.weights import resolve_weights

    data = read_data(plan.data)
    for split in ("train", "val", plan.split):
        data.sources(split)
    return {name: resolve_weights(name).stat().st_size for name in (plan.weights, *plan.t_weights) if name}


def keep_settings(plan: Plan, settings: Mapping[str, Any], arms: Sequence[Arm]) -> None:
    """Writes settings and recipes into the folder, where they are new.

    Raises:
        UserError: the folder's runs were made with others.
    """
    file = plan.out / "settings.json"
    now = json.loads(json.dumps(settings))  # as it is read back: lists, no tuples
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else now
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            was, asked = _brief(before.get(name)), _brief(now.get(name))
            raise UserError(f"{plan.out}: its runs have {name} {was}, this command {asked}; name another --out")
    for arm in arms:
        kept = plan.recipe(arm)
        if kept.exists() and kept.read_text(encoding="utf-8") != arm.recipe:
            raise UserError(f"{kept}: the recipe of {arm.name} has changed since; name another --out")
    write_text(file, json.dumps(now, indent=2) + "\n")
    for arm in arms:
        if arm.recipe:
            write_text(plan.recipe(arm), arm.recipe)


def _brief(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


if __name__ == "__main__":
    stop_on_signals()
    main()
