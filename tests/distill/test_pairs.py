from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from distill.cutmix import Cut, draw_cut
from distill.features.base import FeatureLoss, standardise
from distill.features.mimic import Mimic
from distill.pairs import FeaturePair, FlowPair, Lesson, match_layers
from models.families import read_spec
from models.yolo import Model
from utils.errors import UserError
from utils.types import FeatureInfo


class Seen(FeatureLoss):
    """Hands out what reaches the loss."""

    def __init__(self, adapter, needs=""):
        super().__init__()
        self.adapter = adapter
        self.needs_boxes, self.needs_prediction = needs == "boxes", needs == "predictions"

    def forward(self, student, teacher, lesson):
        self.student, self.teacher = student, teacher
        students = [student] if isinstance(student, torch.Tensor) else student
        return torch.stack([x.mean() for x in students]).sum()


def pair_of(adapter, c_student=4, c_teacher=6, cutmix=0.0):
    return FeaturePair("seen", FeatureInfo(17, c_student, 8), FeatureInfo(3, c_teacher, 8), Seen(adapter), cutmix)


def flow_of(adapter, cutmix=0.0):
    students, teachers = [FeatureInfo(17, 4, 8), FeatureInfo(20, 5, 16)], [FeatureInfo(3, 6, 8), FeatureInfo(9, 7, 16)]
    return FlowPair("seen", students, teachers, Seen(adapter), cutmix)


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
        pair([torch.randn(2, 4, 8, 8)], [torch.randn(2, 6, 8, 8)], lesson)
        assert pair.loss.student.shape == (2, 6, 8, 8)
        assert sum(p.numel() for p in pair.parameters()) == 4 * 6 + bias
    pair = pair_of(None)
    pair([torch.randn(2, 4, 8, 8)], [torch.randn(2, 6, 8, 8)], lesson)
    assert pair.loss.student.shape == (2, 4, 8, 8)
    assert not list(pair.parameters())


def test_an_unknown_adapter_is_a_programming_error():
    with pytest.raises(ValueError, match="conv_nb"):
        pair_of("conv_nb")


def test_maps_are_normalised_per_channel_on_both_sides(lesson):
    pair = pair_of("conv_bn")
    pair([50 * torch.randn(2, 4, 8, 8) + 7], [1e-2 * torch.randn(2, 6, 8, 8) - 3], lesson)
    for x in (pair.loss.student, pair.loss.teacher):
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.var((0, 2, 3), unbiased=False), torch.ones(6), atol=0.15, rtol=0)


@pytest.mark.parametrize("adapter", ["conv", None])
def test_maps_are_normalised_only_where_a_loss_asks_for_it(adapter, lesson):
    pair, teacher = pair_of(adapter), torch.randn(2, 6, 8, 8) + 3
    pair([torch.randn(2, 4, 8, 8)], [teacher], lesson)
    assert torch.equal(pair.loss.teacher, teacher)


def test_a_pair_keeps_nothing_of_the_teacher(lesson):
    pair = pair_of("conv_bn")
    pair([torch.randn(2, 4, 8, 8)], [torch.randn(2, 6, 8, 8)], lesson)
    assert list(pair.state_dict()) == ["adapter.weight"]


@pytest.mark.parametrize("adapter", ["conv_bn", "conv", None])
def test_losses_get_float32_under_autocast(adapter, lesson):
    pair = pair_of(adapter)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pair([torch.randn(2, 4, 8, 8).bfloat16()], [torch.randn(2, 6, 8, 8).bfloat16()], lesson)
    assert pair.loss.student.dtype == pair.loss.teacher.dtype == value.dtype == torch.float32


def test_a_pair_says_which_layers_it_compares():
    pair = FeaturePair("mimic", FeatureInfo(17, 4, 8), FeatureInfo(3, 4, 8), Mimic())
    assert (pair.name, pair.method, pair.stride) == ("kd_mimic_layer17", "mimic", 8)
    assert (pair.student_layers, pair.teacher_layers) == ((17,), (3,))
    flow = flow_of("conv_bn")
    assert (flow.name, flow.method, flow.stride) == ("kd_seen_layer17_20", "seen", 16)
    assert (flow.student_layers, flow.teacher_layers) == ((17, 20), (3, 9))


def test_two_layers_have_an_adapter_each(lesson):
    flow = flow_of("conv_bn")
    students = [torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 4)]
    flow(students, [torch.randn(2, 6, 8, 8) + 5, torch.randn(2, 7, 4, 4)], lesson)
    assert [x.shape for x in flow.loss.student] == [x.shape for x in flow.loss.teacher] == [(2, 6, 8, 8), (2, 7, 4, 4)]
    assert all(x.mean().abs() < 1e-4 for x in (*flow.loss.student, *flow.loss.teacher))
    assert [parameter.shape[:2] for parameter in flow.parameters()] == [(6, 4), (7, 5)]
    expected = standardise(flow.adapters[1](students[1]))
    torch.testing.assert_close(flow.loss.student[1], expected)


# -- a teacher that sees the images at another size -------------------------------------------------------------------


def slope(height, width):
    """A map whose value is the place of its position in the image, down and across."""
    down, across = (torch.arange(size).add(0.5) / size for size in (height, width))
    return torch.stack((down[:, None].expand(height, width), across.expand(height, width)))[None]


@pytest.mark.parametrize("size", [(12, 18), (4, 6), (6, 9), (9, 13)])
def test_the_map_of_a_teacher_at_another_size_is_brought_to_the_students_grid(size, lesson):
    pair = pair_of(None, 4, 2)
    pair([torch.randn(1, 4, 8, 12)], [slope(*size)], lesson)
    inner = (..., slice(1, -1), slice(1, -1))  # at the border there is nothing to go on from
    assert pair.loss.teacher.shape == (1, 2, 8, 12)
    torch.testing.assert_close(pair.loss.teacher[inner], slope(8, 12)[inner], atol=0.03, rtol=0)


def test_nothing_is_lost_between_the_positions_of_a_smaller_grid(lesson):
    pair, teacher = pair_of(None, 4, 1), torch.zeros(1, 1, 32, 32)
    teacher[0, 0, 16, 16] = 1.0
    pair([torch.randn(1, 4, 8, 8)], [teacher], lesson)
    assert pair.loss.teacher.sum().item() == pytest.approx(1 / 16, rel=0.1)


@pytest.mark.parametrize("size", [(8, 4), (16, 8), (4, 16)])
def test_maps_of_images_of_another_shape_are_refused(size, lesson):
    message = rf"student layer 17 is \(8, 8\) but teacher layer 3 is \({size[0]}, {size[1]}\)"
    with pytest.raises(UserError, match=message):
        pair_of("conv")([torch.randn(2, 4, 8, 8)], [torch.randn(2, 6, *size)], lesson)


# -- coarser grids ----------------------------------------------------------------------------------------------------


def means_of_cells(x, cell):
    """The slow way: a mean over what lies in each cell of a map, also in the smaller ones at its border."""
    rows, columns = -(-x.shape[2] // cell), -(-x.shape[3] // cell)
    cells = [
        [x[:, :, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell].mean((2, 3)) for c in range(columns)]
        for r in range(rows)
    ]
    return torch.stack([torch.stack(row, -1) for row in cells], -2)


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_finer_maps_are_averaged_over_the_cells_of_the_least_stride(size, lesson):
    infos = FeatureInfo(17, 4, 8), FeatureInfo(3, 6, 8)
    pair = FeaturePair("seen", *infos, Seen(None), min_stride=32)
    student, teacher = torch.randn(2, 4, *size), torch.randn(2, 6, *size)
    pair([student], [teacher], lesson)
    torch.testing.assert_close(pair.loss.student, means_of_cells(student, 4))
    torch.testing.assert_close(pair.loss.teacher, means_of_cells(teacher, 4))
    assert (pair.stride, pair.grid) == (8, 32)


def test_an_adapter_may_as_well_stand_before_the_averaging(lesson):
    infos = FeatureInfo(17, 4, 8), FeatureInfo(3, 6, 8)
    pair = FeaturePair("seen", *infos, Seen("conv"), min_stride=16)
    student = torch.randn(2, 4, 8, 8)
    pair([student], [torch.randn(2, 6, 8, 8)], lesson)
    torch.testing.assert_close(pair.loss.student, means_of_cells(pair.adapter(student), 2))


@pytest.mark.parametrize("least", [1, 4, 8])
def test_maps_that_are_coarse_enough_stay_as_they_are(least, lesson):
    pair = FeaturePair("seen", FeatureInfo(17, 4, 8), FeatureInfo(3, 6, 8), Seen(None), min_stride=least)
    student = torch.randn(2, 4, 8, 8)
    pair([student], [torch.randn(2, 6, 8, 8)], lesson)
    assert torch.equal(pair.loss.student, student)
    assert pair.grid == 8


def test_each_of_two_layers_has_its_own_cells(lesson):
    students, teachers = [FeatureInfo(17, 4, 8), FeatureInfo(20, 5, 16)], [FeatureInfo(3, 6, 8), FeatureInfo(9, 7, 16)]
    pair = FlowPair("seen", students, teachers, Seen(None), min_stride=16)
    own = [torch.randn(2, 4, 8, 8), torch.randn(2, 5, 4, 4)]
    pair(own, [torch.randn(2, 6, 8, 8), torch.randn(2, 7, 4, 4)], lesson)
    torch.testing.assert_close(pair.loss.student[0], means_of_cells(own[0], 2))
    assert torch.equal(pair.loss.student[1], own[1])
    assert pair.grid == 16


def test_a_least_stride_between_two_is_an_error():
    with pytest.raises(
        UserError, match="'seen': min_stride: got 12, expected a multiple of 8, the stride of student layer 17"
    ):
        FeaturePair("seen", FeatureInfo(17, 4, 8), FeatureInfo(3, 6, 8), Seen(None), min_stride=12)


# -- cutmix -----------------------------------------------------------------------------------------------------------


def numbered(images, channels, size):
    """Each value says which image and which position it is of."""
    places = torch.arange(size * size).reshape(size, size)
    return (1000.0 * torch.arange(images)[:, None, None, None] + places).expand(images, channels, size, size).clone()


def test_student_and_teacher_are_cut_alike_and_no_position_moves(lesson):
    pair = pair_of(None, cutmix=1.0)
    seen = set()
    for _ in range(20):
        pair([numbered(3, 4, 8)], [numbered(3, 6, 8)], lesson)
        student, teacher = pair.loss.student, pair.loss.teacher
        assert torch.equal(student[:, :1].expand_as(student), student)  # all channels alike
        assert torch.equal(student[:, :1], teacher[:, :1])
        assert torch.equal(student % 1000, numbered(3, 4, 8) % 1000)
        assert torch.equal(student.sort(0).values, numbered(3, 4, 8))  # no position is lost or there twice
        foreign = student[:, 0] != numbered(3, 1, 8)[:, 0]
        assert torch.equal(foreign[0], foreign[1]) and torch.equal(foreign[0], foreign[2])
        down, across = foreign[0].any(1), foreign[0].any(0)
        assert torch.equal(foreign[0], down[:, None] & across)  # a rectangle
        seen.add(int(foreign[0].sum()))
    assert len(seen) > 5


def test_another_image_is_pasted_whichever_it_is(lesson):
    pair, origins = pair_of(None, cutmix=1.0), set()
    for _ in range(40):
        pair([numbered(4, 4, 8)], [numbered(4, 6, 8)], lesson)
        origins |= set((pair.loss.student[0] // 1000).unique().tolist())
    assert origins == {0, 1, 2, 3}


def test_two_layers_are_cut_in_the_same_place(lesson):
    flow = flow_of(None, cutmix=1.0)
    students, teachers = [numbered(2, 4, 16), numbered(2, 5, 8)], [numbered(2, 6, 16), numbered(2, 7, 8)]
    for seed in range(10):
        torch.manual_seed(seed)
        flow(students, teachers, lesson)
        torch.manual_seed(seed)
        cut = draw_cut(1.0, 2)
        for seen, maps in ((flow.loss.student, students), (flow.loss.teacher, teachers)):
            assert all(torch.equal(got, cut.paste(x)) for got, x in zip(seen, maps, strict=True))


def test_a_cut_is_the_same_part_of_maps_of_any_size():
    cut = Cut(1, top=0.25, left=0.5, bottom=0.75, right=1.0)
    for size in (4, 8, 16):
        foreign = cut.paste(numbered(2, 1, size))[0, 0] >= 1000
        expected = torch.zeros(size, size, dtype=torch.bool)
        expected[size // 4 : 3 * size // 4, size // 2 :] = True
        assert torch.equal(foreign, expected)


def test_cut_areas_are_as_in_the_paper():
    areas = []
    for _ in range(4000):
        cut = draw_cut(1.0, 2)
        areas.append((cut.bottom - cut.top) * (cut.right - cut.left))
    # a side s = sqrt(u) around a uniform centre, clipped, keeps s - s²/4 of its length on average
    expected = sum((math.sqrt(u) - u / 4) ** 2 for u in ((i + 0.5) / 1000 for i in range(1000))) / 1000
    assert sum(areas) / len(areas) == pytest.approx(expected, abs=0.02)


def test_maps_are_cut_with_the_chance_that_is_asked_for_and_only_in_training(lesson):
    def share_of_cut(pair):
        cut = 0
        for _ in range(400):
            pair([numbered(2, 4, 8)], [numbered(2, 6, 8)], lesson)
            cut += not torch.equal(pair.loss.student, numbered(2, 4, 8))
        return cut / 400

    assert share_of_cut(pair_of(None)) == 0
    assert 0.2 < share_of_cut(pair_of(None, cutmix=0.3)) < 0.4
    assert share_of_cut(pair_of(None, cutmix=1.0).eval()) == 0


def test_a_cut_is_drawn_from_the_generator_that_a_resumed_run_restores(lesson):
    def run(pair):
        shown = []
        for _ in range(8):
            pair([numbered(3, 4, 8)], [numbered(3, 6, 8)], lesson)
            shown.append(pair.loss.student)
        return torch.stack(shown), torch.get_rng_state()

    state = torch.get_rng_state()
    first, after = run(pair_of(None, cutmix=0.5))
    torch.set_rng_state(state)
    second, _ = run(pair_of(None, cutmix=0.5))
    assert torch.equal(first, second)
    assert not torch.equal(after, state)
    torch.set_rng_state(state)
    assert torch.equal(run(pair_of(None))[1], state)  # who does not cut draws nothing


def test_an_image_alone_is_left_whole(lesson):
    pair = pair_of(None, cutmix=1.0)
    for _ in range(5):
        pair([numbered(1, 4, 8)], [numbered(1, 6, 8)], lesson)
        assert torch.equal(pair.loss.student, numbered(1, 4, 8))


def test_maps_are_cut_before_the_adapter_which_does_not_feel_it(lesson):
    student, teacher, pair = torch.randn(3, 4, 8, 8), torch.randn(3, 6, 8, 8), pair_of("conv_bn", cutmix=1.0)
    torch.manual_seed(1)
    pair([student], [teacher], lesson)
    torch.manual_seed(1)
    cut = draw_cut(1.0, 3)
    torch.testing.assert_close(pair.loss.student, cut.paste(standardise(pair.adapter(student))))
    torch.testing.assert_close(pair.loss.teacher, cut.paste(standardise(teacher)))


def test_the_gradient_goes_to_the_image_that_a_rectangle_is_of(lesson):
    pair, student = pair_of(None, cutmix=1.0), torch.randn(3, 4, 8, 8, requires_grad=True)
    value = pair([student], [torch.randn(3, 6, 8, 8)], lesson)
    value.backward()
    torch.testing.assert_close(student.grad, torch.full_like(student, 1 / student.numel()))


@pytest.mark.parametrize("needs", ["boxes", "predictions"])
def test_who_looks_at_boxes_or_predictions_cannot_be_cut(needs):
    infos = FeatureInfo(17, 4, 8), FeatureInfo(3, 6, 8)
    FeaturePair("seen", *infos, Seen(None, needs))
    with pytest.raises(UserError, match=f"feature loss 'seen': cutmix 0.3: it looks at {needs}"):
        FeaturePair("seen", *infos, Seen(None, needs), cutmix=0.3)


def test_a_layer_of_several_maps_is_refused():
    with torch.device("meta"):
        model = Model(read_spec("yolov9e"), 3)
    with pytest.raises(UserError, match="student_kd_layers: layer 14 puts out 5 maps; take one that puts out a single"):
        match_layers(model, model, [14], [14])
