"""Distillation between the models of this repository, which the other files replace by small stand-ins."""

from __future__ import annotations

import logging

import pytest
import torch

from distill.build import build_distillation
from distill.teacher import Teacher
from losses.anchor import AnchorLoss, rescaled_gains
from models.families import read_spec
from models.yolo import Model
from utils.hyp import Hyp

NAMES = ("cat", "dog", "bird")
SIZE = (128, 128)


def task_of(student, teacher, frozen=Teacher, **recipe):
    hyp = Hyp(**recipe)
    gains = rescaled_gains(hyp, student.head.num_levels, student.num_classes, SIZE)
    criterion = AnchorLoss(student.head, hyp, SIZE)
    return build_distillation(student, criterion, [teacher], hyp, gains=gains, frozen=frozen)


@pytest.fixture(scope="module")
def pico():
    return Model(read_spec("yolov5p"), 3, NAMES)


@pytest.fixture(scope="module")
def nano():
    return Model(read_spec("yolov5n"), 3, NAMES)


def test_the_inputs_of_the_heads_are_found_and_taught(pico, nano, draw_batch):
    task = task_of(pico, nano, outputs={"objectness_scaled": {}, "kl": {}}, features={"cwd": {}, "mimic": {}}).train()
    terms = task(draw_batch(size=128))
    layers = [f"kd_{method}_layer{layer}" for method in ("cwd", "mimic") for layer in (17, 20, 23)]
    assert list(terms) == ["box", "obj", "cls", "kd_objectness_scaled", "kd_kl", *layers]
    assert all(terms[name].item() > 0 for name in task.term_names)
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters())


def test_the_folded_teacher_says_what_the_model_says(nano):
    images = torch.rand(2, 3, 128, 128)
    prediction, maps = Teacher(nano)(images, [17, 23])
    with torch.no_grad():
        expected, features = nano.eval()(images, extra_features=[17, 23])
    for ours, theirs in zip((*prediction.levels, *maps), (*expected.levels, *features), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    _, (early,) = Teacher(nano)(images, [17], want_prediction=False)
    torch.testing.assert_close(early, features[0], rtol=1e-3, atol=1e-4)


def test_a_p6_teacher_of_other_anchors_teaches_a_p5_student(pico, draw_batch, caplog):
    """At the strides that both have; each anchor of the student takes from the teacher's nearest."""
    teacher = Model(read_spec("yolov5n6"), 3, NAMES)
    with caplog.at_level(logging.INFO):
        terms = task_of(pico, teacher).train()(draw_batch(size=128))
    kd = [f"kd_cwd_layer{layer}" for layer in (17, 20, 23)]
    assert [name for name in terms if name.startswith("kd")] == ["kd_bckd", *kd]
    assert all(value.isfinite() and value > 0 for value in terms.values())
    assert "stride 8: student anchors take the teacher's nearest: 10,13 <- " in caplog.text


def test_at_their_default_weights_imitation_does_not_drown_the_detection_loss(pico, nano, draw_batch):
    """Measured by the pull on the student's body, which is clipped as a whole: terms alone say little of it."""
    task = task_of(pico, nano).train()
    terms = task(draw_batch(images=4, size=128))
    body = [parameter for name, parameter in task.model.named_parameters() if not name.startswith("model.24.")]

    def pull(*start):
        chosen = [value for name, value in terms.items() if name.startswith(start)]
        found = torch.autograd.grad(sum(chosen), body, retain_graph=True)
        return torch.stack([gradient.norm() for gradient in found]).norm().item()

    detection = pull("box", "obj", "cls")
    for start in ("kd_bckd", "kd_cwd"):
        assert 0.1 * detection < pull(start) < 20 * detection, start  # untrained models; cwd at weight 1: 100


def test_pseudo_labels_are_labels_of_unlabelled_images_alone(pico, nano, draw_batch):
    task, batch = task_of(pico, nano, outputs={}, features={"mimic": {}}, pseudo_labels=1e-6), draw_batch(size=128)
    seen = []
    task.criterion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    task(batch)
    assert torch.equal(seen[0].targets, batch.targets)
    task(batch._replace(labelled=torch.tensor([True, False]), targets=batch.targets[:1]))
    assert torch.equal(seen[1].targets[seen[1].targets[:, 0] == 0], batch.targets[:1])
    assert (seen[1].targets[:, 0] == 1).any()
    assert seen[1].labelled.all()


def test_a_teacher_may_see_larger_images(pico, nano, draw_batch, caplog):
    """Its maps are brought to the student's grid, its predictions to the student's cells."""
    recipe = {"outputs": {"objectness_scaled": {}, "kl": {}}, "features": {"cwd": {}, "mimic": {}}}
    task = task_of(pico, nano, lambda model: Teacher(model, image_scale=(2.0, 2.0)), **recipe).train()
    sizes = []
    task.courses[0].guide.model.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].shape[2:]))
    terms = task(draw_batch(size=128))
    assert sizes == [(256, 256)]
    assert all(terms[name].isfinite() and terms[name] > 0 for name in task.term_names)
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters())
