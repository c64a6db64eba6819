from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from distill.features.base import FeatureLoss
from distill.features.mimic import Mimic
from distill.pairs import FeaturePair, Lesson, match_layers
from utils.errors import UserError
from utils.types import FeatureInfo


class Seen(FeatureLoss):
    """Hands out what reaches the loss."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, student, teacher, lesson):
        self.student, self.teacher = student, teacher
        return (student - teacher).square().mean() if student.shape == teacher.shape else student.mean()


def pair_of(adapter, c_student=4, c_teacher=6):
    return FeaturePair("seen", FeatureInfo(17, c_student, 8), FeatureInfo(3, c_teacher, 8), Seen(adapter))


@pytest.fixture
def lesson(draw_batch):
    return Lesson(draw_batch(), 8, None, nn.Identity())


def test_head_inputs_are_matched_by_stride_without_being_told(detector):
    student, teacher = detector(4, strides=(8, 16, 32)), detector(6, strides=(8, 16, 32))
    assert [(own.layer, other.layer) for own, other in match_layers(student, teacher)] == [(1, 1), (2, 2), (3, 3)]


def test_levels_that_only_one_side_has_are_left_out_and_reported(detector, caplog):
    student, teacher = detector(strides=(16, 32)), detector(strides=(8, 16, 32, 64))
    with caplog.at_level(logging.INFO):
        pairs = match_layers(student, teacher)
    assert [(own.stride, other.stride) for own, other in pairs] == [(16, 16), (32, 32)]
    assert [(own.layer, other.layer) for own, other in pairs] == [(1, 2), (2, 3)]
    assert "no level of stride 8, 64" in caplog.text


def test_no_common_stride_is_an_error(detector):
    with pytest.raises(UserError, match="no level of one stride: student 8, teacher 16, 32"):
        match_layers(detector(strides=(8,)), detector(strides=(16, 32)))


def test_layers_can_be_chosen(detector):
    pairs = match_layers(detector(), detector(6), [0, 2], [0, 2])
    assert [(own.layer, own.channels, other.channels) for own, other in pairs] == [(0, 4, 6), (2, 4, 6)]


@pytest.mark.parametrize(
    ("own", "others", "message"),
    [
        ([1, 2], [1], "student_kd_layers has 2 entries and teacher_kd_layers has 1"),
        ([1], None, "student_kd_layers is given and teacher_kd_layers is not"),
        (None, [1], "teacher_kd_layers is given and student_kd_layers is not"),
        ([], [], "student_kd_layers is empty"),
        ([1, 1], [1, 1], "names a layer twice"),
        ([4], [1], "student_kd_layers: there is no layer 4; the student has layers 0 to 3"),
        ([1], [-1], "teacher_kd_layers: there is no layer -1; the teacher has layers 0 to 3"),
        (
            [0],
            [2],
            "student layer 0 has stride 4 but teacher layer 2 has stride 16; "
            "choose layers of one stride in student_kd_layers and teacher_kd_layers",
        ),
    ],
)
def test_a_wrong_choice_is_answered(detector, own, others, message):
    with pytest.raises(UserError, match=message):
        match_layers(detector(), detector(), own, others)


def test_the_adapter_bridges_any_number_of_channels(lesson):
    for adapter, bias in (("conv_bn", 0), ("conv", 6)):
        pair = pair_of(adapter)
        pair(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8), lesson)
        assert pair.loss.student.shape == (2, 6, 8, 8)
        assert sum(p.numel() for p in pair.parameters()) == 4 * 6 + bias
    pair = pair_of(None)
    pair(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8), lesson)
    assert pair.loss.student.shape == (2, 4, 8, 8)
    assert not list(pair.parameters())


def test_an_unknown_adapter_is_a_programming_error():
    with pytest.raises(ValueError, match="conv_nb"):
        pair_of("conv_nb")


def test_maps_are_normalised_per_channel_on_both_sides(lesson):
    pair = pair_of("conv_bn")
    pair(50 * torch.randn(2, 4, 8, 8) + 7, 1e-2 * torch.randn(2, 6, 8, 8) - 3, lesson)
    for x in (pair.loss.student, pair.loss.teacher):
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.var((0, 2, 3), unbiased=False), torch.ones(6), atol=0.15, rtol=0)


def test_a_pair_keeps_nothing_of_the_teacher(lesson):
    pair = pair_of("conv_bn")
    pair(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8), lesson)
    assert list(pair.state_dict()) == ["adapter.weight"]


def test_normalises_in_float32_under_autocast(lesson):
    pair = pair_of("conv_bn")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pair(torch.randn(2, 4, 8, 8).bfloat16(), torch.randn(2, 6, 8, 8).bfloat16(), lesson)
    assert pair.loss.student.dtype == pair.loss.teacher.dtype == value.dtype == torch.float32


def test_maps_of_images_of_different_size_are_refused(lesson):
    with pytest.raises(ValueError, match=r"student layer 17 is \(8, 8\) but teacher layer 3 is \(4, 4\)"):
        pair_of("conv")(torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4), lesson)


def test_terms_are_named_after_method_and_student_layer():
    assert FeaturePair("mimic", FeatureInfo(17, 4, 8), FeatureInfo(3, 4, 8), Mimic()).name == "kd_mimic_layer17"
