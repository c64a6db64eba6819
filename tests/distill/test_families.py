"""One family teaches another, with the models of this repository."""

from __future__ import annotations

import logging

import pytest
import torch

from distill.build import build_distillation
from distill.pairs import match_layers
from distill.teacher import Teacher
from losses.anchor import rescaled_gains
from losses.build import build_criterion
from models.spec import read_spec
from models.yolo import Model
from utils.errors import UserError
from utils.hyp import read_hyp

NAMES = ("cat", "dog", "bird")
SIZE = (128, 128)


def task_of(student, teacher, recipes=("finetune",), frozen=Teacher, **changes):
    """As train_distill.py makes it of a recipe."""
    hyp = read_hyp(*recipes)
    hyp = type(hyp)(**{**hyp.__dict__, **changes})
    gains = rescaled_gains(hyp, student.head.num_levels, student.num_classes, SIZE)
    criterion = build_criterion(student.head, hyp, SIZE)
    return build_distillation(student, criterion, [teacher], hyp, gains=gains, frozen=frozen)


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
