"""The benchmark trains what is missing, compares like with like, and its table is what its runs say."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks import distillation, lanes, measured, report
from benchmarks.arms import BASELINE, Arm, Plan, Run, plan_runs, read_arm, training, understood
from benchmarks.report import Result
from engine import checkpoint
from engine.options import distill_options, train_options
from engine.recipe import recipe
from models.families import read_spec
from models.yolo import Model
from utils.errors import UserError

OUTPUTS, FEATURES = ("kl", "objectness_scaled"), ("cwd", "mimic")
RECIPE = ("finetune",)


def plan(out: Path = Path("out"), **changes: Any) -> Plan:
    given = {"weights": "n.pt", "cfg": "", "t_weights": ("t.pt",), "hyp": RECIPE, "epochs": 4, "imgsz": (320,)}
    return Plan(out=out, **{"data": "d.yaml", "batch_size": 16, "split": "test", **given, **changes})


def arm(name: str, recipes: Sequence[str] = RECIPE) -> Arm:
    return read_arm(name, OUTPUTS, FEATURES, recipes)


def words(name: str, of: Plan | None = None, recipes: Sequence[str] = RECIPE) -> list[str]:
    of = of or plan()
    return training(of, Run(Arm(BASELINE) if name == BASELINE else arm(name, recipes), 7, of.out / "arm" / "seed7"))


def behind(flag: str, command: Sequence[str]) -> list[str]:
    """The values of a flag."""
    start = command.index(flag) + 1
    return list(command[start : next((i for i in range(start, len(command)) if command[i][:2] == "--"), None)])


# -- commands ----------------------------------------------------------------------------------------------------------


def test_the_baseline_is_plain_training_of_the_same_budget() -> None:
    script, *given = words(BASELINE)
    options = train_options(given)
    assert script == "train.py"
    assert (options.weights, options.data, options.hyp) == ("n.pt", "d.yaml", RECIPE)
    assert (options.epochs, options.imgsz, options.batch_size, options.seed) == (4, (320, 320), 16, 7)
    assert (options.project, options.name, options.exist_ok) == (str(Path("out/arm")), "seed7", True)


@pytest.mark.parametrize("name", ["kl", "cwd", "kl+objectness_scaled+mimic", "cwd+mimic"])
def test_a_method_differs_from_the_baseline_in_teacher_and_losses_alone(name: str) -> None:
    script, *given = words(name)
    _, *plain = words(BASELINE)
    options, methods = distill_options(given), name.split("+")
    assert script == "train_distill.py"
    assert given[: len(plain)] == plain
    assert options.t_weights == ("t.pt",)
    assert options.d_output == (tuple(one for one in methods if one in OUTPUTS) or ("none",))
    assert options.d_feature == (tuple(one for one in methods if one in FEATURES) or None)


def test_a_student_from_scratch_has_an_architecture_and_no_weights() -> None:
    command = words("kl", plan(weights="", cfg="yolov5n"))
    assert behind("--weights", command) == [""]
    assert behind("--cfg", command) == ["yolov5n"]


def test_a_weight_becomes_a_recipe_that_keeps_the_methods_other_options(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("features: {cwd: {weight: 9, temperature: 2.0}, mimic: {weight: 3}}\n")
    of = plan(tmp_path / "out", hyp=(str(own),))
    weighted = arm("cwd:0.5+mimic+kl", of.hyp)
    command = words("cwd:0.5+mimic+kl", of, of.hyp)
    distillation.keep_settings(of, {}, [weighted])
    assert behind("--hyp", command) == [str(own), str(of.recipe(weighted))]
    hyp = recipe(distill_options(command[1:]))
    assert hyp.features == {"cwd": {"weight": 0.5, "temperature": 2.0}, "mimic": {"weight": 3}}
    assert hyp.outputs == {"kl": {}}


def test_a_recipe_brings_what_it_names_and_no_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("outputs: {kl: {temperature: 2.0}}\nschedule: {kind: cosine}\n")
    of = plan(tmp_path / "out")
    mine = arm(f"@{file}")
    distillation.keep_settings(of, {}, [mine])
    command = training(of, Run(mine, 0, of.out / mine.folder / "seed0"))
    hyp = recipe(distill_options(command[1:]))
    assert (hyp.outputs, hyp.features, hyp.schedule.kind) == ({"kl": {"temperature": 2.0}}, {}, "cosine")
    assert hyp.optimizer == recipe(train_options(words(BASELINE)[1:])).optimizer


def test_a_recipe_that_teaches_itself_takes_no_teacher(tmp_path: Path) -> None:
    file = tmp_path / "self.yaml"
    file.write_text("outputs: {kl: {}}\nteachers: [{kind: self, ema: 0.99}]\n")
    assert "--t_weights" not in words(f"@{file}")


def test_flags_of_the_teacher_are_kept_from_the_baseline() -> None:
    extra = ("--t_imgsz", "640", "640", "--workers", "0", "--t-cfg=yolov5s", "--val_period", "5")
    assert understood("train.py", extra) == ["--workers", "0", "--val_period", "5"]
    assert words("kl", plan(extra=extra))[-len(extra) :] == list(extra)
    assert words(BASELINE, plan(extra=extra))[-4:] == ["--workers", "0", "--val_period", "5"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("cdw", "--methods cdw: no method is called 'cdw'; did you mean 'cwd'?"),
        ("kl+xxxxx", "no method is called 'xxxxx'; known: cwd, kl, mimic, objectness_scaled"),
        ("kl:many", "--methods kl:many: the weight is 'many', expected a number of at least 0"),
        ("kl:-1", "the weight is '-1'"),
        ("kl:", "the weight is ''"),
        ("@fintune", "did you mean 'finetune'?"),
    ],
)
def test_a_wrong_method_is_answered(name: str, answer: str) -> None:
    with pytest.raises(UserError) as raised:
        arm(name)
    assert answer in str(raised.value)


def test_a_name_on_both_shelves_is_not_guessed() -> None:
    with pytest.raises(UserError, match="'l2' is an output and a feature loss"):
        read_arm("l2", ("l2",), ("l2",), RECIPE)


def test_runs_go_seed_by_seed_in_folders_of_their_own() -> None:
    runs = plan_runs(plan(), [Arm(BASELINE), arm("kl:2"), arm("kl+cwd")], [0, 3, 0])
    assert [run.title for run in runs[:3]] == ["baseline, seed 0", "kl:2, seed 0", "kl+cwd, seed 0"]
    assert [run.seed for run in runs] == [0, 0, 0, 3, 3, 3]
    assert runs[1].folder == Path("out/kl-2/seed0")
    with pytest.raises(UserError, match="another method has the folder kl-2 too"):
        plan_runs(plan(), [arm("kl:2"), Arm("kl-2")], [0])


# -- arithmetic --------------------------------------------------------------------------------------------------------


def result(arm_name: str, seed: int, score: float, seconds: float = 10.0, machine: str = "m", **more: Any) -> Result:
    return Result(
        arm_name, seed, score, score + 0.3, seconds, more.get("epochs", 4), more.get("memory", 500.0), machine
    )


# printed in every textbook: two-sided 95 %
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "expected"), TABLE.items())
def test_students_t_is_that_of_the_textbooks(freedom: int, expected: float) -> None:
    assert report.student_t(freedom) == pytest.approx(expected, abs=6e-4)


def test_students_t_is_that_of_its_density() -> None:
    """The area under the density, summed slowly."""
    freedom, step = 7, 1e-4
    norm = math.gamma(4) / (math.sqrt(7 * math.pi) * math.gamma(3.5))
    limit = report.student_t(freedom, 0.9)
    middles = np.arange(-limit + step / 2, limit, step)
    assert norm * ((1 + middles**2 / 7) ** -4).sum() * step == pytest.approx(0.9, abs=1e-4)


def test_gain_interval_time_and_memory_are_paired_by_seed() -> None:
    plain = [result(BASELINE, seed, score) for seed, score in ((0, 0.2), (1, 0.3), (2, 0.4))]
    taught = [result("cwd", seed, score, 15.0, memory=750.0) for seed, score in ((0, 0.3), (1, 0.5), (2, 0.7))]
    text = report.table(report.rows([*taught, *plain]), {"teacher": (0.9, 0.95)}, "test")
    # gains 0.1 0.2 0.3: mean 0.2, deviation 0.1; 4.3027 * 0.1 / sqrt(3) = 0.2484
    assert text.splitlines()[2:] == [
        "| baseline | 3 | 0.3000 ± 0.1000 | 0.6000 ± 0.1000 | - | - | 1 (10 s) | 1 (500 MB) |",
        "| teacher | - | 0.9000 | 0.9500 | - | - | - | - |",
        "| cwd | 3 | 0.5000 ± 0.2000 | 0.8000 ± 0.2000 | +0.2000 | -0.0484 to +0.4484 (n = 3) | 1.50 | 1.50 |",
    ]


def test_a_seed_without_its_baseline_counts_for_the_mean_but_not_for_the_gain() -> None:
    results = [result(BASELINE, 0, 0.2), result("cwd", 0, 0.1), result("cwd", 1, 0.5)]
    (_, row) = report.rows(results)
    assert row.gains == pytest.approx((-0.1,))
    assert row.interval is None
    assert "| cwd | 2 | 0.3000 ± 0.2828 | 0.6000 ± 0.2828 | -0.1000 | - | 1.00 | 1.00 |" in report.table(
        report.rows(results), {}, "val"
    )


def test_costs_on_different_machines_are_not_compared() -> None:
    (_, row) = report.rows([result(BASELINE, 0, 0.2, machine="fast"), result("cwd", 0, 0.3, machine="slow")])
    assert row.gain == pytest.approx(0.1)
    assert (row.time, row.memory) == (None, None)


def test_the_best_stands_on_top_and_what_has_no_gain_below() -> None:
    results = [result("a", 1, 0.9), result("b", 0, 0.1), result("c", 0, 0.4), result(BASELINE, 0, 0.2)]
    assert [row.arm for row in report.rows(results)] == [BASELINE, "c", "b", "a"]


def test_a_teacher_of_other_classes_has_no_score() -> None:
    assert report.table([], {"teacher": None}, "test").endswith("| teacher | - | - | - | - | - | - | - |")


def test_the_plot_draws_arms_with_one_seed_with_several_and_none(tmp_path: Path) -> None:
    results = [result(BASELINE, 0, 0.2), result(BASELINE, 1, 0.2), result("a$b", 0, 0.3)]
    results += [result("c", seed, 0.1 * seed) for seed in (0, 1)]
    for index, chosen in enumerate((results, results[:1], [])):
        path = report.plot(report.rows(chosen), {"teacher": (0.5, 0.8)}, "title", tmp_path / f"{index}.png")
        assert min(cv2.imread(str(path)).shape[:2]) > 200


# -- what is done and what is left -------------------------------------------------------------------------------------


class Fake(lanes.Children):
    """Trains in no time: scores are 0.1 a letter of the arm's name and 0.01 a seed."""

    def __init__(self, fails: Callable[[Sequence[str]], bool] = lambda words: False) -> None:
        super().__init__(1)
        self.asked: list[list[str]] = []
        self.fails = fails

    def launch(self, words: Sequence[str], log: Path) -> int:
        self.asked.append(list(words))
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.fails(words):
            log.write_text("some\rpercent\rall percent\nerror: boom\n")
            return 2
        if words[0] == "benchmarks/measured.py":
            folder = Path(words[1]).parent
            machine = {"device": "abacus", "threads": 1, "cores": 2, "torch": "2"}
            Path(words[1]).write_text(json.dumps({"finished": True, "rss_mb": 9.0, "cuda_mb": 0.0, **machine}))
            with (folder / "results.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([["epoch", "seconds"], *([epoch, 2.5] for epoch in range(4))])
        else:
            of, name = (Path(words[words.index(flag) + 1]) for flag in ("--project", "--name"))
            score = 0.1 * len(of.parent.name) + 0.01 * int(of.name[-1])
            (of / name).mkdir()
            (of / name / "metrics.json").write_text(json.dumps([{"mAP50-95": score, "mAP50": 0.9}]))
        return 0

    def scripts(self) -> list[str]:
        return [words[2] if words[0] == "benchmarks/measured.py" else words[0] for words in self.asked]


def work(runs: Sequence[Run], children: Fake, of: Plan) -> bool:
    return lanes.work_all(of, runs, 1, children, lambda run: run.title)


@pytest.fixture
def of(tmp_path: Path) -> Plan:
    return plan(tmp_path / "out")


@pytest.fixture
def runs(of: Plan) -> list[Run]:
    return plan_runs(of, [Arm(BASELINE), arm("kl")], [0, 1])


def test_every_run_is_trained_and_scored_once(of: Plan, runs: list[Run]) -> None:
    children = Fake()
    assert work(runs, children, of)
    assert children.scripts() == ["train.py", "val.py", "train_distill.py", "val.py"] * 2
    again = Fake()
    assert work(runs, again, of)
    assert again.asked == []


def test_best_weights_are_scored_on_the_split(of: Plan, runs: list[Run]) -> None:
    children = Fake()
    work(runs[:1], children, of)
    (_, command) = children.asked
    assert behind("--weights", command) == [str(runs[0].folder / "weights" / "best.pt")]
    assert behind("--task", command) == ["test"]


def test_another_split_is_scored_without_training(of: Plan, runs: list[Run]) -> None:
    work(runs, Fake(), of)
    children = Fake()
    assert work(runs, children, plan(of.out, split="val"))
    assert children.scripts() == ["val.py"] * 4


def test_new_methods_and_seeds_join(of: Plan, runs: list[Run]) -> None:
    work(runs, Fake(), of)
    children = Fake()
    work(plan_runs(of, [Arm(BASELINE), arm("kl"), arm("cwd")], [0, 1, 2]), children, of)
    assert children.scripts().count("train.py") == 1
    assert children.scripts().count("train_distill.py") == 4


def test_a_run_that_was_interrupted_goes_on(of: Plan, runs: list[Run]) -> None:
    half = runs[1]
    (half.folder / "weights").mkdir(parents=True)
    (half.folder / "weights" / "last.pt").write_bytes(b"")
    half.record.write_text(json.dumps({"finished": False}))
    children = Fake()
    work(runs, children, of)
    assert children.asked[2][2:] == ["train_distill.py", "--resume", str(half.folder)]


def test_a_failure_is_shown_and_the_others_go_on(of: Plan, runs: list[Run], capsys: Any) -> None:
    children = Fake(fails=lambda words: "train_distill.py" in words and "1" in behind("--seed", words))
    assert not work(runs, children, of)
    shown = capsys.readouterr().err
    assert "kl, seed 1: training failed; the end of" in shown
    assert "    all percent\n    error: boom" in shown
    text = report.conclude(of, runs, {}, "the command")
    assert "| kl | 1 | 0.2000 | 0.9000 | -0.6000 | - | 1.00 | 1.00 |" in text
    assert "**Missing**: kl, seed 1." in text


def test_a_child_that_says_it_is_done_and_left_nothing_has_failed(of: Plan, runs: list[Run]) -> None:
    assert "training failed" in lanes.work(of, runs[0], lambda words, log: 0)


def test_what_is_written(of: Plan, runs: list[Run]) -> None:
    work(runs, Fake(), of)
    metrics = of.out / "teacher.json"
    metrics.write_text(json.dumps([{"mAP50-95": 0.5, "mAP50": 0.7}]))
    text = report.conclude(of, runs, {"teacher": metrics}, "python benchmarks/distillation.py --seeds 0 1")
    assert (of.out / "test.md").read_text() == text
    assert "| baseline | 2 | 0.8050 ± 0.0071 | 0.9000 ± 0.0000 | - | - | 1 (10 s) | 1 (9 MB) |" in text
    assert "Seeds 0, 1; 4 epochs each" in text
    assert "abacus, 1 of 2 cores used, torch 2" in text
    assert "    python benchmarks/distillation.py --seeds 0 1\n" in text
    numbers = json.loads((of.out / "test.json").read_text())
    assert numbers["teachers"] == {"teacher": [0.5, 0.7]}
    assert [(one["arm"], one["seed"], one["seconds"]) for one in numbers["runs"]][1] == ("kl", 0, 10.0)
    assert (of.out / "test.png").exists()


def test_more_epochs_than_the_budget_are_said(of: Plan) -> None:
    text = "".join(report.notes(of, [], [result("a", 0, 0.1), result("b", 3, 0.1, epochs=6)]))
    assert "**Over the budget** (epochs): b, seed 3 (6)." in text


# -- settings ----------------------------------------------------------------------------------------------------------


def settings(out: Path, *changes: str) -> tuple[Plan, dict[str, Any]]:
    given = ["--weights", "n.pt", "--t_weights", "t.pt", "--data", "d.yaml", "--epochs", "4", "--out", str(out)]
    own, extra = (
        (changes[: changes.index("--")], changes[changes.index("--") + 1 :]) if "--" in changes else (changes, ())
    )
    return distillation.read_plan(distillation.parser().parse_args([*given, *own]), extra)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        (("--epochs", "5"), "its runs have epochs 4, this command 5; name another --out"),
        (("--t_weights", "t.pt", "u.pt"), 'its runs have t_weights ["t.pt"], this command ["t.pt", "u.pt"]'),
        (("--hyp", "finetune"), "its runs have recipes"),
        (("--", "--close-mosaic", "2"), "its runs have close_mosaic nothing, this command 2"),
    ],
)
def test_other_settings_do_not_join_a_folder(changes: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    distillation.keep_settings(*settings(tmp_path), [])
    with pytest.raises(UserError) as raised:
        distillation.keep_settings(*settings(tmp_path, *changes), [])
    assert answer in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("--lanes", "2"),
        ("--seeds", "5"),
        ("--split", "val"),
        ("--", "--workers", "3"),
        ("--hyp", "scratch-low.yaml"),
    ],
)
def test_what_changes_no_training_may_change(changes: tuple[str, ...], tmp_path: Path) -> None:
    distillation.keep_settings(*settings(tmp_path), [])
    distillation.keep_settings(*settings(tmp_path, *changes), [])


def test_a_recipe_that_was_edited_does_not_join_its_older_runs(tmp_path: Path) -> None:
    of = plan(tmp_path)
    distillation.keep_settings(of, {}, [Arm("@mine", recipe="outputs: {kl: {}}")])
    with pytest.raises(UserError, match="the recipe of @mine has changed since"):
        distillation.keep_settings(of, {}, [Arm("@mine", recipe="outputs: {kl: {temperature: 2}}")])


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        (("--", "--seed", "3"), "behind --: seed is the benchmark's own"),
        (("--", "--wrokers", "3"), "no flag --wrokers; did you mean '--workers'?"),
        (("--weights", ""), "--weights is missing"),
    ],
)
def test_a_mistake_on_the_command_line_is_answered(changes: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        settings(tmp_path, *changes)
    assert answer in str(raised.value)


def test_val_runs_where_and_as_training_does(tmp_path: Path) -> None:
    of, _ = settings(tmp_path, "--", "--device", "cpu", "--workers", "0", "--single-cls", "--val-period", "5")
    assert of.evaluation == ("--device", "cpu", "--workers", "0", "--single-cls")


# -- children ----------------------------------------------------------------------------------------------------------


def test_lanes_share_the_cores() -> None:
    assert lanes.Children(1).environment == dict(os.environ)
    assert lanes.Children(10**6).environment["OMP_NUM_THREADS"] == "1"


def test_what_a_child_says_is_in_its_log(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys; print('out'); print('err', *sys.argv[1:], file=sys.stderr); sys.exit(3)")
    assert lanes.Children(1).launch([str(child), "a word"], tmp_path / "new" / "log.txt") == 3
    text = (tmp_path / "new" / "log.txt").read_text()
    assert f"$ python {child} 'a word'" in text
    assert "out\n" in text and "err a word\n" in text


def test_children_may_tidy_up_when_stopped(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        f"import sys, time; sys.path.insert(0, {str(Path(measured.__file__).parent)!r})\n"
        "from measured import stop_on_signals; stop_on_signals(); print('ready', flush=True)\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('tidied', flush=True)\n"
    )
    children, log, status = lanes.Children(1), tmp_path / "log.txt", []
    thread = threading.Thread(target=lambda: status.append(children.launch([str(child)], log)))
    thread.start()
    deadline = time.monotonic() + 30
    while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    children.stop()
    thread.join(30)
    assert "tidied" in log.read_text()
    assert status == [0]
    assert children.launch([str(child)], log) == -1  # no more are begun


def test_a_run_is_finished_when_its_script_ended_well_and_peaks_are_of_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pretended.py").write_text("def main(words):\n    if words: raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    record = tmp_path / "run.json"
    with pytest.raises(KeyboardInterrupt):
        measured.main(record, ["pretended.py", "stop"])
    left = json.loads(record.read_text())
    assert left["finished"] is False
    assert 10 < left["rss_mb"] < 1e6
    record.write_text(json.dumps(left | {"rss_mb": 1e9}))
    measured.main(record, ["pretended.py"])
    left = json.loads(record.read_text())
    assert (left["finished"], left["rss_mb"]) == (True, 1e9)
    assert left["threads"] == torch.get_num_threads()


# -- everything --------------------------------------------------------------------------------------------------------


def draw(folder: Path) -> Path:
    """Rectangles of two colours; gives the YAML file of the data set."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(4):
            image = rng.integers(0, 80, (64, 64, 3)).astype(np.uint8)
            image[16:48, 16:40] = (60, 60, 255) if index % 2 else (60, 255, 60)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            (folder / "labels" / split / f"{index}.txt").write_text(f"{index % 2} 0.4375 0.5 0.375 0.5\n")
    file = folder / "data.yaml"
    splits = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    file.write_text(f"path: {folder}\n{splits}names: [red, green]\n")
    return file


def test_baseline_and_method_are_trained_scored_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The scripts themselves, called in this process."""

    def launch(self: lanes.Children, words: Sequence[str], log: Path) -> int:
        asked.append(words)
        if words[0] == "benchmarks/measured.py":
            measured.main(Path(words[1]), list(words[2:]))
        else:
            __import__(words[0].removesuffix(".py")).main(words[1:])
        return 0

    asked: list[Sequence[str]] = []
    monkeypatch.setattr(lanes.Children, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    torch.manual_seed(0)
    model = Model(read_spec("yolov5p"), 2, ("red", "green"))
    teacher = checkpoint.save(tmp_path / "teacher.pt", model, options={}, hyp={}, metrics={}, half=True)
    given = ["--cfg", "yolov5p", "--t_weights", str(teacher), "--data", str(draw(tmp_path / "data"))]
    given += ["--methods", "kl:0.5+mimic", "--seeds", "3", "--epochs", "1", "--imgsz", "64", "--batch-size", "4"]
    given += ["--out", str(tmp_path / "out"), "--", "--workers", "0", "--device", "cpu"]
    distillation.main(given)
    assert len(asked) == 5  # the teacher's score, and two trainings with theirs
    printed = capsys.readouterr().out
    assert "| on test | seeds | mAP50-95 |" in printed
    assert printed.count("\n| kl:0.5+mimic | 1 | ") == 1
    assert "**" not in printed  # nothing is missing, or over the budget
    with (tmp_path / "out" / "kl-0.5+mimic" / "seed3" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {key for key in row if "/kd_" in key} >= {"train/kd_kl", "train/kd_mimic_layer17"}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"test.md", "test.json", "test.png", "settings.json"}
    distillation.main(given)
    assert len(asked) == 5
