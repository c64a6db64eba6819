"""One family teaches another, with the models of this repository."""

from __future__ import annotations

import dataclasses
import functools
import logging

import pytest
import torch

from distill.build import build_distillation
from distill.classes import match_classes
from distill.features import FEATURES
from distill.guides import Average
from distill.outputs import OUTPUTS
from distill.outputs.base import NEEDS, Sides
from distill.pairs import match_layers
from distill.teacher import Teacher
from losses.build import build_criterion
from models.families import read_spec
from models.yolo import Model
from utils.errors import UserError
from utils.hyp import TeacherRole, read_hyp

NAMES = ("cat", "dog", "bird")
SIZE = (128, 128)


def task_of(student, teacher, recipes=("finetune",), frozen=Teacher, **changes):
    """As train_distill.py makes it of a recipe."""
    hyp = read_hyp(*recipes)
    hyp = type(hyp)(**{**hyp.__dict__, **changes})
    criterion = build_criterion(student.head, hyp, SIZE)
    teachers = [] if teacher is None else [teacher]
    return build_distillation(student, criterion, teachers, hyp, gains=criterion.gains, frozen=frozen)


def model_of(name):
    return Model(read_spec(name), 3, NAMES)


@pytest.mark.parametrize(
    ("student", "teacher", "layers", "unmatched"),
    [
        ("yolov5n", "yolov7-tiny", (17, 20, 23), ""),
        ("yolov7-tiny", "yolov5n", (74, 75, 76), ""),
        ("yolov3-tiny", "yolov5n", (19, 15), "student has no level of stride 8"),
        ("yolov7-tiny", "yolov5n6", (74, 75, 76), "student has no level of stride 64"),
        ("yolov7-tiny", "yolov3-tiny", (75, 76), "teacher has no level of stride 8"),
        ("yolov3-slim", "yolov7-tiny", (44, 37, 30), ""),
    ],
)
def test_families_teach_each_other(student, teacher, layers, unmatched, draw_batch, caplog):
    with caplog.at_level(logging.INFO):
        task = task_of(model_of(student), model_of(teacher), features={"mimic": {}}).train()
    terms = task(draw_batch(size=128))
    sum(terms.values()).backward()
    assert [name for name in terms if name.startswith("kd")] == ["kd_bckd", *(f"kd_mimic_layer{i}" for i in layers)]
    assert all(value.isfinite() and value > 0 for value in terms.values())
    gradients = [parameter.grad for parameter in task.parameters() if parameter.requires_grad]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert unmatched in caplog.text


def test_anchors_of_yolov7_and_v5_are_matched_by_shape(draw_batch, caplog):
    with caplog.at_level(logging.INFO):
        task_of(model_of("yolov5n"), model_of("yolov7-deploy"))
    assert "stride 8: student anchors take the teacher's nearest: 10,13 <- 12,16 (IoU 0.68)" in caplog.text


def test_yolov7_teaches_its_tiny_by_the_layers_that_people_name(draw_batch):
    task = task_of(model_of("yolov7-tiny"), model_of("yolov7"), ("v7-tiny", "fgd-yolov7-tiny")).train()
    terms = task(draw_batch(size=128))
    assert list(terms) == ["box", "obj", "cls", "kd_fgd_layer57", "kd_fgd_layer65", "kd_fgd_layer73"]
    channels = [(pair.student.channels, pair.teacher.channels) for pair in task.courses[0].pairs]
    assert channels == [(64, 128), (128, 256), (256, 512)]
    sum(terms.values()).backward()
    assert all(value.isfinite() and value > 0 for value in terms.values())


def test_the_recipe_names_the_layers_before_yolov7s_last_convolutions():
    hyp, rows = read_hyp("v7-p5", "fgd-yolov7"), [*read_spec("yolov7").backbone, *read_spec("yolov7").head]
    assert hyp.student_kd_layers == hyp.teacher_kd_layers == (75, 88, 101)
    assert [rows[layer][0] for layer in rows[-1][0]] == [75, 88, 101]
    info = model_of("yolov7").feature_info
    assert [info[layer].stride for layer in hyp.student_kd_layers] == [8, 16, 32]
    assert hyp.loss_ota == 1


def test_a_student_with_auxiliary_levels_learns_through_all_of_them(draw_batch):
    rows = read_spec("yolov5p").to_dict()
    *head, (sources, number, _, args) = rows["head"]
    rows["head"] = [*head, [[*sources, *sources], number, "IAuxDetect", args]]
    student = Model(type(read_spec("yolov5p")).from_dict(rows, "aux", "aux"), 3, NAMES)
    task = task_of(student, model_of("yolov5n"), ("v7-p6",)).train()
    sum(task(draw_batch(size=128)).values()).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_layer_of_auxiliary_levels_is_no_layer_to_imitate():
    with torch.device("meta"):
        teacher = model_of("yolov7-w6")
    with pytest.raises(UserError, match="teacher_kd_layers: layer 118 is of the auxiliary levels"):
        match_layers(model_of("yolov5n"), teacher, [17], [118])


# -- without anchors --------------------------------------------------------------------------------------------------

CROSSWISE = [("yolov8n", "yolov5n"), ("yolov5n", "yolo26n"), ("yolov10n", "yolov8n"), ("yolo26n", "yolo11n")]


def eager(name):
    """A model that believes in something here and there, as it begins."""
    model = model_of(name)
    with torch.no_grad():
        if not model.spec.anchor_free:
            for level in model.head.m:
                level.bias.view(model.head.num_anchors, -1)[:, 4:] = torch.tensor([0.0, 1.0, -1.0, 0.0])
        else:
            for level in range(model.head.num_levels):
                model.head.towers(level)[1][-1].bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    return model


@pytest.mark.parametrize(("student", "teacher"), CROSSWISE)
def test_every_output_method_that_fits_and_every_feature_method_runs(student, teacher, draw_batch):
    student, teacher = eager(student), eager(teacher)
    sides = student.head, teacher.head, match_classes(NAMES, NAMES, 3, 3), None
    outputs = {name: {} for name, made in OUTPUTS.items() if not any(NEEDS[need](Sides(*sides)) for need in made.needs)}
    assert {"bckd", "kl", "soft_labels", "softmax_kl"} <= set(outputs)
    task = task_of(student, teacher, outputs=outputs, features={name: {} for name in FEATURES}).train()
    terms = task(draw_batch(size=128))
    sum(terms.values()).backward()
    assert {name.split("_layer")[0] for name in terms if "_layer" in name} == {f"kd_{name}" for name in FEATURES}
    assert {f"kd_{name}" for name in outputs} < set(terms)
    for name, value in terms.items():
        assert value.isfinite() and (value > 0 or not name.startswith("kd_")), name
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", ["yolov10n", "yolo26n"])
def test_of_two_branches_the_one_to_many_learns_and_teaches(name, draw_batch):
    student, teacher = eager(name), eager(name)
    task = task_of(student, teacher, features={}).train()
    batch = draw_batch(size=128)
    value = task(batch)["kd_bckd"]
    names, parameters = zip(*(item for item in student.named_parameters() if item[1].requires_grad), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    moved = {one for one, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}
    assert not any(".one2one_" in one for one in moved)
    assert any(".cv3." in one for one in moved) and any(one.startswith("model.0.") for one in moved)

    shown = task.courses[0].show(batch).prediction
    teacher.eval().head.use("one_to_many")
    with torch.no_grad():
        for level, dense in zip(shown.levels, teacher(batch.images).levels, strict=True):
            torch.testing.assert_close(level, dense, rtol=1e-3, atol=1e-3)  # fused


def test_a_mean_teacher_and_one_that_learns_along_show_the_one_to_many_branch(draw_batch):
    model, batch = eager("yolo26n"), draw_batch(size=128)
    average = Average(model)
    shown, _ = average(batch.images)
    model.eval().head.use("one_to_many")
    with torch.no_grad():
        assert all(map(torch.equal, shown.levels, model(batch.images).levels))
    model.train().head.use("one_to_one")
    roles = (TeacherRole(kind="self"),)
    task = task_of(model, None, features={}, teachers=roles, outputs={"bckd": {}}).train()
    terms = task(batch)
    sum(terms.values()).backward()
    assert terms["kd_bckd"].isfinite()
    assert model.head.branch == "one_to_one"  # the student's own is left alone


@pytest.mark.parametrize(("student", "teacher"), [("yolov8n", "yolov5n"), ("yolov5n", "yolov8n")])
def test_images_of_another_size_are_refused_without_anchors(student, teacher):
    frozen = functools.partial(Teacher, image_scale=(2.0, 2.0))
    with pytest.raises(UserError, match=r"^--t_imgsz: outputs of the (student|teacher)'s head \(AnchorFreeDetect\)"):
        task_of(model_of(student), model_of(teacher), features={}, frozen=frozen)
    task_of(model_of(student), model_of(teacher), outputs={}, features={"cwd": {}}, frozen=frozen)


def test_which_anchor_speaks_is_said_once(caplog):
    with caplog.at_level(logging.INFO):
        task_of(model_of("yolov8n"), model_of("yolov5n"), features={})
    assert caplog.messages.count("of the teacher's anchors, the one of the highest score speaks for its cell") == 1


@pytest.mark.parametrize(("student", "teacher"), CROSSWISE[:3])
def test_hard_images_are_emphasised_and_unlabelled_ones_labelled(student, teacher, draw_batch):
    task = task_of(eager(student), eager(teacher), features={}, difficulty=1.0, pseudo_labels=0.2).train()
    batch = draw_batch(size=128)._replace(labelled=torch.tensor([True, False]))
    terms = task(batch)
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    course = task.courses[0]
    labelled = course.labeller(batch, course.show(batch).prediction)
    assert labelled.labelled.all() and (labelled.targets[:, 0] == 1).sum() > 1


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n"])
def test_a_class_weighs_the_same_however_many_the_teacher_knows(name):
    """The detection loss's weight of a class, whether a mean over classes is over one of them or over three."""
    gains = []
    for known in (NAMES, NAMES[:1]):
        task = task_of(
            model_of(name), Model(read_spec("yolov8n"), len(known), known), outputs={"bckd": {}}, features={}
        )
        gains.append(task.courses[0].outputs["bckd"].gains.cls / len(known))
    assert gains[0] == pytest.approx(gains[1])


@pytest.mark.parametrize("kind", ["frozen", "online"])
def test_two_branches_learn_from_bins_under_ddp(kind, draw_batch, one_rank):
    student, teacher = model_of("yolo26n"), model_of("yolov8n")
    hyp = read_hyp("finetune", "v8")
    criterion = build_criterion(student.head, hyp, SIZE)
    task = build_distillation(
        *(student, criterion, [teacher], dataclasses.replace(hyp, teachers=(TeacherRole(kind),))),
        gains=criterion.gains,
        criterion_of=lambda model: build_criterion(model.head, hyp, SIZE),
    ).train()
    wrapped = torch.nn.parallel.DistributedDataParallel(task)
    for _ in range(2):  # the second step tells of parameters that the first left without a gradient
        task.zero_grad(set_to_none=True)
        terms = wrapped(draw_batch(size=128))
        sum(terms.values()).backward()
    assert ("teacher" in terms) == (kind == "online")
    assert all(parameter.grad is not None for parameter in student.parameters() if parameter.requires_grad)
