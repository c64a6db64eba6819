"""The contract of `distill/features`, over the whole table, and the value of each method."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.features import FEATURES
from distill.pairs import FeaturePair, Lesson
from distill.task import _feature_loss
from utils.errors import UserError
from utils.types import FeatureInfo

METHODS = sorted(FEATURES)


@pytest.fixture
def make_lesson(draw_batch, draw_prediction, detector):
    def make(empty=False):
        return Lesson(draw_batch(empty=empty), 8, draw_prediction(), detector().head)

    return make


def pair_of(name, c_student=4, c_teacher=6):
    loss = _feature_loss(name, c_teacher, 8, {})
    return FeaturePair(name, FeatureInfo(1, c_student, 8), FeatureInfo(1, c_teacher, 8), loss)


def maps(channels=4, dtype=torch.float32):
    return (2 * torch.randn(2, channels, 8, 8)).to(dtype)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_beside_a_half_precision_teacher(name, dtype, make_lesson):
    pair, student, teacher, lesson = pair_of(name, 4, 4), maps(), maps().to(dtype), make_lesson()
    pair.adapter = nn.Identity()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = pair(student.bfloat16(), teacher, lesson)
    full = pair(student.bfloat16().float(), teacher.float(), lesson)
    assert half.dtype == torch.float32
    assert half.shape == ()
    assert torch.equal(half, full)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [0.0, 1.0, 6e4])
def test_finite_without_objects_for_blank_and_for_huge_maps(name, size, make_lesson):
    pair, student = pair_of(name), (size * maps()).requires_grad_()
    value = pair(student, size * maps(6), make_lesson(empty=True))
    value.backward()
    assert math.isfinite(value.item())
    assert student.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in pair.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_student_and_adapter_only(name, make_lesson):
    pair, student, teacher = pair_of(name), maps().requires_grad_(), maps(6).requires_grad_()
    pair(student, teacher, make_lesson()).backward()
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in pair.parameters())
    assert teacher.grad is None


@pytest.mark.parametrize("name", METHODS)
def test_equal_maps_cost_nothing_and_different_ones_do(name, make_lesson):
    pair, student = pair_of(name, 4, 4), maps()
    pair.adapter = nn.Identity()
    assert pair(student, student.clone(), make_lesson()).item() == pytest.approx(0, abs=1e-6)
    assert pair(student, maps(), make_lesson()).item() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_size_does_not_depend_on_the_batch(name, make_lesson):
    loss, student, teacher, lesson = _feature_loss(name, 4, 8, {}), maps(), maps(), make_lesson()
    twice = loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), lesson)
    torch.testing.assert_close(twice, loss(student, teacher, lesson))


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_is_answered(name):
    with pytest.raises(UserError, match=f"feature loss '{name}' has no option temprature"):
        _feature_loss(name, 4, 8, {"temprature": 1.0})


def test_a_misspelt_method_is_answered():
    with pytest.raises(UserError, match=r"no feature loss is called 'cdw'; did you mean 'cwd'\? known: cwd, mimic"):
        _feature_loss("cdw", 4, 8, {})


@pytest.mark.parametrize("temperature", [0, -1, "warm", float("nan"), True])
def test_a_temperature_is_a_positive_number(temperature):
    with pytest.raises(UserError, match=r"temperature: got .* expected a number above 0"):
        _feature_loss("cwd", 4, 8, {"temperature": temperature})


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_is_the_divergence_of_each_channels_distribution(temperature, make_lesson):
    student, teacher = maps(), maps()
    total = 0.0
    for image in range(2):
        for channel in range(4):
            heights = [
                [math.exp(v / temperature) for v in x[image, channel].flatten().tolist()] for x in (student, teacher)
            ]
            q, p = ([h / sum(side) for h in side] for side in heights)
            total += sum(p_i * math.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True))
    loss = FEATURES["cwd"](temperature=temperature)
    expected = temperature**2 * total / (2 * 4)
    assert loss(student, teacher, make_lesson()).item() == pytest.approx(expected, rel=1e-5)


def test_cwd_does_not_care_how_strongly_a_channel_fires(make_lesson):
    student, teacher = maps(), maps()
    loss, lesson = FEATURES["cwd"](), make_lesson()
    torch.testing.assert_close(loss(student + 5, teacher - 3, lesson), loss(student, teacher, lesson))


def test_mimic_is_the_mean_squared_difference_of_normalised_maps(make_lesson):
    pair, student, teacher = pair_of("mimic", 4, 4), 3 * maps() + 1, maps()
    pair.adapter = nn.Identity()
    total = 0.0
    for channel in range(4):
        sides = []
        for x in (student, teacher):
            values = x[:, channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            sides.append([(v - mean) / math.sqrt(variance + 1e-5) for v in values])
        total += sum((a - b) ** 2 for a, b in zip(*sides, strict=True))
    assert pair(student, teacher, make_lesson()).item() == pytest.approx(total / student.numel(), rel=1e-4)
