"""The command line: what people type is understood, what is wrong is answered in one line."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import options as module
from engine.flags import ABSENT
from engine.options import (
    DEMO,
    DistillOptions,
    Options,
    ValOptions,
    distill_options,
    options_from_dict,
    options_from_file,
    resumed,
    train_options,
    val_options,
)
from utils.errors import UserError


def train(line: str) -> Options:
    return train_options(shlex.split(line))


def distill(line: str) -> DistillOptions:
    return distill_options(shlex.split(line))


def val(line: str) -> ValOptions:
    return val_options(shlex.split(line))


def refused(parse: Callable[[str], object], line: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(line)
    assert "\n" not in str(caught.value)
    return str(caught.value)


MINE = "--data mine.yaml --weights yolov5n.pt"


def test_defaults_are_those_of_yolov5() -> None:
    options = train(MINE)
    assert (options.epochs, options.batch_size, options.imgsz, options.patience) == (100, 16, (640, 640), 100)
    assert (options.hyp, options.optimizer, options.seed, options.close_mosaic) == ((), None, 0, None)
    assert (options.project, options.name, options.lr_decay, options.amp) == ("runs/train", "exp", "linear", "auto")
    evaluation = val(MINE)
    assert (evaluation.batch_size, evaluation.conf_thres, evaluation.iou_thres) == (16, 0.001, None)
    assert (evaluation.max_det, evaluation.rect, evaluation.task, evaluation.project) == (300, True, "val", "runs/val")


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ("--img 416", "imgsz", (416, 416)),
        ("--img-size 416 736", "imgsz", (416, 736)),
        ("--img_size=320", "imgsz", (320, 320)),
        ("--batch 8", "batch_size", 8),
        ("--batch_size 8", "batch_size", 8),
        ("--save_period 5", "save_period", 5),
        ("--save-period -1", "save_period", 0),
        ("--notest", "noval", True),
        ("--cache", "cache", "ram"),
        ("--cache-images", "cache", "ram"),
        ("--cache disk", "cache", "disk"),
        ("--adam", "optimizer", "Adam"),
        ("--optimizer adamw", "optimizer", "AdamW"),
        ("--optimizer musgd", "optimizer", "MuSGD"),
        ("--close_mosaic 0", "close_mosaic", 0),
        ("--linear-lr", "lr_decay", "linear"),
        ("--cos_lr", "lr_decay", "cosine"),
        ("--poly-lr", "lr_decay", "poly"),
        ("--amp bf16", "amp", "bf16"),
        ("--sync_bn", "sync_bn", True),
        ("--label_smoothing 0.1", "label_smoothing", 0.1),
        ("--freeze 10", "frozen_layers", tuple(range(10))),
        ("--freeze 0", "frozen_layers", ()),
        ("--freeze 3 5", "frozen_layers", (3, 5)),
        ("--single_cls", "single_cls", True),
        ("--exist_ok", "exist_ok", True),
    ],
)
def test_what_people_type_in_training(typed: str, field: str, value: object) -> None:
    assert getattr(train(f"{MINE} {typed}"), field) == value


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ("--weights a.pt b.pt", "weights", ("a.pt", "b.pt")),
        ("--teacher-weights t.pt", "t_weights", ("t.pt",)),
        ("--conf_thres 0.25", "conf_thres", 0.25),
        ("--conf 0.25", "conf_thres", 0.25),
        ("--iou 0.5", "iou_thres", 0.5),
        ("--max_det 100", "max_det", 100),
        ("--no_rect", "rect", False),
        ("--save_json", "save_json", True),
        ("--task speed", "task", "speed"),
        ("--nms", "nms", True),
    ],
)
def test_what_people_type_in_evaluation(typed: str, field: str, value: object) -> None:
    assert getattr(val(f"{MINE} {typed}"), field) == value


@pytest.mark.parametrize(
    "typed", ["--t_weights t.pt", "--t-weights t.pt", "--teacher-weights=t.pt", "--teacher_weights t.pt"]
)
def test_the_teacher_has_many_names(typed: str) -> None:
    assert distill(f"{MINE} {typed}").t_weights == ("t.pt",)


def test_two_sizes_are_height_and_width_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train(f"{MINE} --img-size 416 736")
    assert "height 416, width 736" in caplog.text
    assert "YOLOv7" in caplog.text


@pytest.mark.parametrize(
    ("parse", "typed", "expected"),
    [
        (train, "--epoch 3", "train.py has no flag --epoch; did you mean '--epochs'?"),
        (train, "--frobnicate", "train.py has no flag --frobnicate; --help lists all"),
        (train, "epochs=3", "'epochs=3' belongs to no flag; did you mean --epochs 3?"),
        (train, "stray", "'stray' belongs to no flag"),
        (train, "--t_weights t.pt", "--t_weights is a flag of train_distill.py and val.py, not of train.py"),
        (train, "--nms", "--nms is a flag of val.py, not of train.py"),
        (val, "--epochs 3", "--epochs is a flag of train.py and train_distill.py, not of val.py"),
        (train, "--epochs 0", "--epochs: got '0', expected a whole number of at least 1"),
        (train, "--epochs 1.5", "--epochs: got '1.5', expected a whole number of at least 1"),
        (train, "--epochs", "--epochs: expected one argument"),
        (train, "--batch 0", "--batch-size: got '0', expected a whole number of at least 1"),
        (train, "--img 16", "--imgsz: got '16', expected a whole number of at least 32"),
        (train, "--img 64 64 64", "--imgsz: got 3 numbers, expected one, or height and width"),
        (train, "--label-smoothing nan", "--label-smoothing: got 'nan', expected a number in [0, 1)"),
        (train, "--cos-lr --linear-lr", "--cos-lr and --linear-lr contradict each other; give one of them"),
        (train, "--adam --optimizer SGD", "--optimizer and --adam contradict each other; give one of them"),
        (train, "--cache tape", "--cache: got 'tape'; known: ram, disk, packed"),
        (val, "--rect --no-rect", "--rect and --no-rect contradict each other; give one of them"),
        (val, "--iou 2", "--iou-thres: got '2', expected a number in [0, 1]"),
        (val, "--task study", "--task: got 'study'; known: train, val, test, speed"),
    ],
)
def test_a_mistake_is_one_line(parse: Callable[[str], object], typed: str, expected: str) -> None:
    assert refused(parse, f"{MINE} {typed}") == expected


def test_a_batch_of_minus_one_is_for_training() -> None:
    assert (
        train(f"{MINE} --batch-size -1").batch_size == distill(f"{MINE} --t_weights t.pt --batch -1").batch_size == -1
    )
    assert refused(val, f"{MINE} --batch-size -1") == (
        "--batch-size: -1 finds what training has room for; evaluation takes little: leave it out"
    )
    assert refused(train, f"{MINE} --batch-size -2") == "--batch-size: got '-2', expected a whole number of at least 1"


@pytest.mark.parametrize("flag", sorted(ABSENT))
@pytest.mark.parametrize("parse", [train, distill, val])
def test_flags_of_the_ancestors_are_answered_by_name(flag: str, parse: Callable[[str], object]) -> None:
    underscored = "--" + flag[2:].replace("-", "_")
    assert refused(parse, f"{MINE} {underscored} 3") == f"{underscored}: {ABSENT[flag]}"
    assert refused(parse, f"{MINE} {flag}=3") == f"{flag}: {ABSENT[flag]}"


@pytest.mark.parametrize(
    ("parse", "line", "expected"),
    [
        (train, "--weights a.pt", "--data is missing"),
        (train, "--data d.yaml --weights ''", "--weights is missing"),
        (distill, MINE, "--t_weights is missing"),
        (distill, "--data d.yaml --t_weights t.pt", "--weights is missing"),
        (val, "--data d.yaml", "--weights is missing"),
        (val, "", "--weights is missing"),
        (val, "--weights a.pt", "--data is missing"),
    ],
)
def test_what_is_missing_is_named(parse: Callable[[str], object], line: str, expected: str) -> None:
    assert refused(parse, line).startswith(expected)


def test_an_architecture_alone_starts_from_scratch() -> None:
    assert train("--data d.yaml --cfg yolov5n").weights == ""
    assert train("--data d.yaml").weights == "yolov5s.pt"


def test_the_demo_runs_without_arguments_and_gives_way_to_what_the_user_says() -> None:
    options = distill("")
    assert options.demo
    assert all(getattr(options, name) == value for name, value in DEMO.items())
    assert not options.explicit
    other = distill("--epochs 3 --baseline")
    assert other.demo
    assert (other.epochs, other.baseline, other.data) == (3, True, DEMO["data"])
    assert distill("").d_feature == ()
    assert distill("--d_output").d_feature is None


@pytest.mark.parametrize("line", ["--data d.yaml", "--data d.yaml --cfg yolov5n", "--resume"])
def test_the_users_own_matter_is_not_the_demo(line: str) -> None:
    options = train(line)
    assert not options.demo
    assert options.epochs == Options().epochs


def test_only_what_is_typed_is_explicit() -> None:
    assert train(f"{MINE} --epochs 100").explicit == {"data", "weights", "epochs"}


@pytest.mark.parametrize(
    "options",
    [
        train(MINE + " --freeze 3 5"),
        distill(""),
        distill(f"{MINE} --t_weights t.pt b.pt --d_output kl --t_imgsz 640 --t_kind online"),
        val(MINE),
    ],
    ids=lambda o: type(o).__name__,
)
def test_options_survive_a_file(options: Options | ValOptions, tmp_path: Path) -> None:
    options.save(tmp_path / "opt.yaml")
    assert options_from_file(tmp_path, type(options)) == dataclasses.replace(options, explicit=frozenset())


def test_a_run_is_found_by_its_folder_or_its_weights(tmp_path: Path) -> None:
    options = train(MINE)
    options.save(tmp_path / "opt.yaml")
    for path in (tmp_path, tmp_path / "opt.yaml", tmp_path / "weights" / "last.pt"):
        assert options_from_file(path, Options).weights == "yolov5n.pt"
    with pytest.raises(UserError, match=r"no opt\.yaml beside it"):
        options_from_file(tmp_path / "elsewhere" / "deep" / "last.pt", Options)


def test_a_run_is_resumed_by_its_own_script() -> None:
    with pytest.raises(UserError, match=r"a run of train_distill\.py; resume it there"):
        options_from_dict(distill("").to_dict(), Options, "opt.yaml")
    with pytest.raises(UserError, match=r"a run of train\.py; resume it there"):
        options_from_dict(train(MINE).to_dict(), DistillOptions, "opt.yaml")


def test_a_resumed_run_keeps_its_options_but_may_move() -> None:
    stored = train(f"{MINE} --epochs 7 --project mine")
    goes_on = resumed(train("--resume runs/train/exp --device cpu --workers 0 --project elsewhere"), stored)
    assert (goes_on.epochs, goes_on.project, goes_on.weights) == (7, "mine", "yolov5n.pt")
    assert (goes_on.device, goes_on.workers, goes_on.resume) == ("cpu", 0, "runs/train/exp")
    with pytest.raises(UserError, match="--resume goes on with the run's own options: leave out --epochs"):
        resumed(train("--resume --epochs 9"), stored)


def test_help_lists_every_field_of_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (train, distill, val):
        with pytest.raises(SystemExit) as stopped:
            parse("--help")
        assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--t_weights" in text
    hidden = {"demo", "explicit", "lr_decay"}
    for record in (Options, DistillOptions, ValOptions):
        for item in dataclasses.fields(record):
            if item.name not in hidden:
                assert f"--{item.name}" in text or f"--{item.name.replace('_', '-')}" in text


def test_default_workers_do_not_outnumber_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (4, 4), (64, 8)):
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        assert train(MINE).workers == workers


def test_what_the_pool_of_a_resumed_run_depends_on_is_said(caplog: pytest.LogCaptureFixture) -> None:
    stored = train_options(["--weights", "yolov5n.pt", "--data", "d.yaml", "--workers", "2"])
    for words, said in ((["--workers", "2"], False), (["--workers", "4"], True), (["--cache", "ram"], True)):
        caplog.clear()
        with caplog.at_level("INFO"):
            resumed(train_options(["--resume", *words]), stored)
        assert ("--mosaic-pool" in caplog.text) == said
