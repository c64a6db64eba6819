"""The recipe `hyp/yolo12-visdrone.yaml` from the words of its file to a run of its command."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml

from data.spec import resolve_data
from distill.build import build_distillation
from engine.optim import Recipe, build_optimizer
from engine.options import distill_options
from engine.recipe import recipe
from losses.build import build_criterion
from models.families import read_spec
from models.yolo import Model
from train_distill import main
from utils.family import ANCHOR_FREE
from utils.hyp import Schedule, TeacherRole
from utils.types import Batch, Progress

NAMES = ("cat", "dog", "bird")
SIZE = (64, 96)
FAMILIES = {"yolo12s": (2, 6, 8, 12, 15, 18), "yolo11s": (2, 6, 8, 14, 17, 20)}
STUDENT_LAYERS = FAMILIES["yolo12s"]
KD = [f"kd_cwd_layer{layer}" for layer in STUDENT_LAYERS]
STEPS = 5  # an epoch of the tests: its middle is a step


@pytest.fixture(scope="module")
def text(root):
    return (root / "hyp/yolo12-visdrone.yaml").read_text()


@pytest.fixture(scope="module")
def command(text):
    return shlex.split(text.splitlines()[0])[3:]  # without "# python train_distill.py"


@pytest.fixture(scope="module")
def hyp(command):
    return recipe(distill_options(command), ANCHOR_FREE)


def batch_of(images: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.3], [images - 1, 0, 0.2, 0.7, 0.1, 0.4]])
    return Batch(torch.rand(images, 3, *SIZE, generator=generator), targets, torch.ones(images, dtype=torch.bool))


def task_of(hyp, teacher, **changes):
    """As train_distill.py makes it, for a yolo12n."""
    torch.manual_seed(0)
    hyp = replace(hyp, **changes)
    student, guide = (Model(read_spec(name), 3, NAMES) for name in ("yolo12n", teacher))

    def criterion_of(model):
        return build_criterion(model.head, hyp, SIZE)

    criterion = criterion_of(student)
    gains = criterion.gains
    task = build_distillation(student, criterion, [guide], hyp, gains=gains, epochs=500, criterion_of=criterion_of)
    return task.train()


@pytest.fixture(scope="module", params=FAMILIES)
def task(request, hyp):
    """Of one family, and of two."""
    return task_of(hyp, request.param, teacher_kd_layers=FAMILIES[request.param])


def learners(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def at(task, step):
    task.at(Progress(7, step, 500, STEPS))
    return task


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_command_and_the_file_say_what_is_published(command, hyp):
    options = distill_options(command)
    assert (options.epochs, options.batch_size, options.imgsz) == (500, 32, (416, 736))
    assert (hyp.optimizer, hyp.close_mosaic) == ("SGD", 10)
    assert hyp.student_kd_layers == hyp.teacher_kd_layers == (2, 6, 8, 12, 15, 18)
    assert (hyp.features, hyp.outputs) == ({"cwd": {}}, {})
    assert hyp.teachers == (TeacherRole(kind="online"),)
    assert hyp.schedule == Schedule(kind="cosine", end=0.1, within="epoch")


def test_the_gains_are_those_of_the_students_family(hyp):
    assert (hyp.box, hyp.cls, hyp.dfl) == (7.5, 0.5, 1.5)


def test_the_lists_in_its_comment_are_of_the_same_strides(text):
    found = dict(re.findall(r"^#   (yolo\w+): \[([\d, ]+)\]$", text, re.MULTILINE))
    assert len(found) == 4
    for family, layers in found.items():
        with torch.device("meta"):
            model = Model(read_spec(f"{family}n"), 3)
        info = model.feature_info
        assert [info[int(layer)].stride for layer in layers.split(", ")] == [4, 16, 32, 8, 16, 32], family
        assert family != "yolov8" or model.head_inputs == (15, 18, 21)


# -- the task ---------------------------------------------------------------------------------------------------------


def test_all_six_pairs_and_the_teachers_own_loss_are_in_the_sum(task):
    at(task, 0).zero_grad()
    terms = task(batch_of())
    assert list(terms) == ["box", "cls", "dfl", *KD, "teacher"]
    assert all(value.isfinite() and value > 0 for value in terms.values())
    sum(terms.values()).backward()
    pairs = task.courses[0].pairs
    assert [pair.adapter.weight.shape[2:] for pair in pairs] == [(1, 1)] * 6
    assert all(pair.adapter.weight.grad.abs().sum() > 0 for pair in pairs)
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.grad is not None)


def test_maps_are_as_wide_as_the_image(task):
    seen = {}
    hooks = [
        pair.register_forward_pre_hook(lambda pair, maps: seen.update({pair.name: maps[0][0].shape[2:]}))
        for pair in task.courses[0].pairs
    ]
    at(task, 0)(batch_of())
    for hook in hooks:
        hook.remove()
    strides = (4, 16, 32, 8, 16, 32)
    assert seen == {name: (64 // stride, 96 // stride) for name, stride in zip(KD, strides, strict=True)}


def test_the_teacher_learns_from_labels_alone(task):
    teacher = task.courses[0].guide
    terms = at(task, 0)(batch_of())
    parameters = learners(teacher.model)
    alone = torch.autograd.grad(terms["teacher"], parameters, retain_graph=True, allow_unused=True)
    together = torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True)
    for one, both in zip(alone, together, strict=True):
        assert (one is None) == (both is None)
        assert one is None or torch.equal(one, both)
    assert sum(gradient.abs().sum() for gradient in alone if gradient is not None) > 0


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_imitation_falls_by_cosine_within_each_epoch(task, step):
    plain, now = at(task, 0)(batch_of()), at(task, step)(batch_of())
    share = 0.1 + 0.9 * (1 + math.cos(math.pi * step / (STEPS - 1))) / 2
    assert {0: 1.0, 2: 0.55, 4: 0.1}.get(step, share) == pytest.approx(share)
    for name in KD:
        assert now[name].item() == pytest.approx(share * plain[name].item(), rel=1e-4), name
    for name in set(plain) - set(KD):
        assert now[name].item() == pytest.approx(plain[name].item(), rel=1e-4), name


def test_one_optimizer_moves_student_adapters_and_teacher(task, hyp):
    optimizer = build_optimizer(task, Recipe("SGD", hyp.lr0, hyp.momentum, hyp.warmup_bias_lr), hyp.weight_decay)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    parts = {
        "student": learners(task.model),
        "teacher": learners(task.courses[0].guide.model),
        "adapters": learners(task.courses[0].pairs),
    }
    assert {id(parameter) for part in parts.values() for parameter in part} <= set(held)
    before = {name: [parameter.detach().clone() for parameter in part] for name, part in parts.items()}
    for step in range(2):
        optimizer.zero_grad()
        sum(at(task, step)(batch_of()).values()).backward()
        optimizer.step()
    for name, part in parts.items():
        moved = [not torch.equal(old, new) for old, new in zip(before[name], part, strict=True)]
        assert sum(moved) > 0.9 * len(moved), name


def test_the_logit_term_can_be_switched_on(hyp, text):
    (words,) = re.findall(r"^outputs: \{\}  # (\{.+\}) imitates", text, re.MULTILINE)
    task = task_of(hyp, "yolo12n", outputs=yaml.safe_load(words))
    (course,) = task.courses
    assert course.weighings["kd_kl"].weight == 0.25
    for head in (task.model.head, course.guide.head):  # as they start, neither sees anything anywhere
        for level in range(head.num_levels):
            torch.nn.init.zeros_(head.towers(level)[1][-1].bias)
    terms = at(task, 0)(batch_of())
    assert list(terms) == ["box", "cls", "dfl", "kd_kl", *KD, "teacher"]
    assert terms["kd_kl"] > 0
    own, theirs = (
        torch.autograd.grad(terms["kd_kl"], learners(model), retain_graph=True, allow_unused=True)
        for model in (task.model, course.guide.model)
    )
    assert sum(gradient.abs().sum() for gradient in own if gradient is not None) > 0
    assert all(gradient is None for gradient in theirs)


@pytest.mark.parametrize("method", ["mgd", "mimic"])
def test_its_other_methods_stand_behind_the_same_adapters(hyp, text, method):
    assert f"  # {method}: {{}}\n" in text
    task = task_of(hyp, "yolo12n", features={method: {}})
    terms = at(task, 0)(batch_of())
    assert [name for name in terms if name.startswith("kd")] == [name.replace("cwd", method) for name in KD]
    assert [pair.adapter.weight.shape[2:] for pair in task.courses[0].pairs] == [(1, 1)] * 6
    assert all(value.isfinite() and value > 0 for value in terms.values())


# -- the run ----------------------------------------------------------------------------------------------------------


def draw_visdrone(folder, images=4):
    """A VisDrone of a few tiny images, as it is unpacked."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (folder / f"VisDrone2019-DET-{split}" / kind).mkdir(parents=True)
        for index in range(images):
            place = folder / f"VisDrone2019-DET-{split}"
            cv2.imwrite(str(place / f"images/{index}.jpg"), rng.integers(0, 255, (54, 96, 3), dtype=np.uint8))
            (place / f"annotations/{index}.txt").write_text(
                "10,10,40,20,1,4,0,0\n60,30,50,20,1,1,0,1,\n0,0,9,9,0,0,0,0"
            )


def test_its_command_runs_on_visdrone_as_unpacked(command, tmp_path):
    draw_visdrone(tmp_path / "VisDrone")
    (tmp_path / "VisDrone.yaml").write_text(resolve_data("VisDrone").read_text())
    small = "--weights '' --cfg yolo12n --t_weights '' --t_cfg yolo12n --imgsz 64 96 --epochs 2 --batch-size 2"
    place = ["--data", str(tmp_path / "VisDrone.yaml"), "--project", str(tmp_path / "runs")]
    main([*command, *shlex.split(small), *place, "--workers", "0", "--device", "cpu"])
    (run,) = (tmp_path / "runs").iterdir()
    with (run / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for name in (*KD, "teacher"):
        assert all(float(row[f"train/{name}"]) > 0 for row in rows), name
    assert (run / "weights/teacher.pt").exists()
    assert [row["role"] for row in json.loads((run / "metrics.json").read_text())] == ["student", "teacher"]
