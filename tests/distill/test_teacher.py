from __future__ import annotations

import pytest
import torch

from distill.teacher import Teacher


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def test_teacher_statistics_never_move(detector, draw_batch):
    teacher = Teacher(detector())
    before = statistics(teacher)
    teacher.train()
    teacher(draw_batch().images, [1, 2])
    teacher(draw_batch().images, [1], want_prediction=False)
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    for name, value in statistics(teacher).items():
        assert torch.equal(value, before[name]), name


def test_teacher_is_frozen_and_leaves_the_callers_model_alone(detector, draw_batch):
    model = detector().train()
    teacher = Teacher(model, torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.training
    prediction, maps = teacher(draw_batch().images.requires_grad_(), [1])
    assert not any(tensor.requires_grad for tensor in (*prediction.levels, *maps))


def test_what_it_shows_can_be_saved_for_backward(detector, draw_batch):
    prediction, _ = Teacher(detector())(draw_batch().images)
    weight = torch.ones(1, requires_grad=True)
    (weight * prediction.levels[0]).sum().backward()  # raises for tensors of inference mode
    assert weight.grad is not None


def test_prediction_and_maps_come_in_the_asked_order(detector, draw_batch):
    model, images = detector(), draw_batch().images
    prediction, maps = Teacher(model)(images, [3, 1])
    expected, features = model.eval()(images, extra_features=[3, 1])
    for ours, theirs in zip((*prediction.levels, *maps), (*expected.levels, *features), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_layers_the_prediction_is_whole(detector, draw_batch):
    prediction, maps = Teacher(detector())(draw_batch().images)
    assert len(prediction.levels) == 3
    assert maps == []


def test_features_only_stops_after_the_last_wanted_layer(detector, draw_batch):
    teacher = Teacher(detector())
    prediction, (features,) = teacher(draw_batch().images, [1], want_prediction=False)
    assert prediction is None
    assert features.shape[2:] == (8, 8)
    assert teacher.model.calls == [2]  # of 4 layers and a head


@pytest.mark.parametrize("inside_autocast", [False, True])
def test_computes_in_its_own_precision(detector, draw_batch, inside_autocast):
    images = draw_batch().images
    for half, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside_autocast):
            prediction, maps = Teacher(detector(), half)(images, [1])
        assert {tensor.dtype for tensor in (*prediction.levels, *maps)} == {expected}


def test_half_precision_keeps_the_geometry_exact(detector):
    model = detector(anchors={8: [[10.1, 13.3]] * 2, 16: [[30.7, 61.9]] * 2, 32: [[373.3, 326.1]] * 2})
    assert torch.equal(Teacher(model, torch.bfloat16).head.anchors_px, model.head.anchors_px)
