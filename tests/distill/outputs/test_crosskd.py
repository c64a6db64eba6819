"""The student's features, read by the teacher's head."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torchvision.ops import generalized_box_iou

from distill.classes import match_classes
from distill.outputs.base import Sides
from distill.outputs.crosskd import CrossHeadDistillation
from models.heads.anchor_free import AnchorFreeDetect
from tests.distill.outputs.conftest import FREE_GAINS, sigmoid
from utils.boxes import xywh_to_xyxy
from utils.errors import UserError
from utils.types import Prediction

NAMES = ("cat", "dog", "bird")
STRIDES = (8, 16)


def head_of(channels=8, classes=3, reg_max=4, **options):
    """Scores that differ, as a trained head's, and statistics that have moved."""
    head = AnchorFreeDetect(classes, [channels] * 2, STRIDES, reg_max, **options)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    for level in range(2):
        nn.init.normal_(head.towers(level)[1][2].weight, std=2)
        nn.init.zeros_(head.towers(level)[1][2].bias)
    return head.eval()


def loss_of(student, teacher, own=NAMES, other=NAMES, **options):
    classes = match_classes(own, other, len(own), len(other))
    return CrossHeadDistillation(Sides(student, teacher, classes, FREE_GAINS), **options)


def draw_maps(channels=8, images=2):
    return [torch.randn(images, channels, 64 // stride, 64 // stride) for stride in STRIDES]


def crossed(loss, student, teacher, maps, split):
    """Raw levels, tower by tower as one writes it."""
    levels = []
    for index, x in enumerate(maps):
        parts = []
        towers = zip(student.towers(index), teacher.towers(index), loss.adapters[index], strict=True)
        for own, other, adapter in towers:
            features = x
            for stage in own[:split]:
                features = stage(features)
            features = adapter(features)
            for stage in other[split:]:
                features = stage(features)
            parts.append(features)
        levels.append(torch.cat(parts, dim=1))
    return levels


def slow(head, mine, taught, beta=1.0, temperature=1.0, classes=range(3)):
    """Classes and boxes, each over what the teacher believes."""
    focal = apart = belief = 0.0
    bins = head.reg_max
    for index, (own, other) in enumerate(zip(mine, taught, strict=True)):
        boxes = [xywh_to_xyxy(head.decode_boxes(index, x)[:, 0]).double() for x in (own, other)]
        own, other = own.double().permute(0, 2, 3, 1), other.double().permute(0, 2, 3, 1)
        for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in own.shape[:3])).tolist():
            logits, wanted = (side[b, y, x, 4 * bins :].tolist() for side in (own, other))
            best = max(sigmoid(wanted[k]) for k in classes)
            for k in classes:
                p, t = sigmoid(logits[k]), sigmoid(wanted[k])
                focal -= abs(p - t) ** beta * (t * math.log(p) + (1 - t) * math.log(1 - p))
            if best <= 0.01:
                continue
            belief += best
            if bins == 1:
                distance = 1 - generalized_box_iou(*(side[b, y, x, None] for side in boxes)).item()
            else:
                q, p = (s[b, y, x, : 4 * bins].view(4, bins).div(temperature).softmax(-1) for s in (own, other))
                distance = temperature**2 * (p * (p / q).log()).sum().item() / 4
            apart += best * distance
    return focal / max(belief, 1), apart / max(belief, 1)


# -- value ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("channels", [8, 24])
def test_it_is_its_formula(channels, split, draw_batch):
    student, teacher = head_of(8), head_of(channels)
    maps, taught = draw_maps(), teacher(draw_maps(channels))
    for weights, beta, temperature in (((1.0, 4.0), 1.0, 1.0), ((2.0, 0.0), 2.0, 1.0), ((0.0, 1.0), 1.0, 3.0)):
        options = {"classes": weights[0], "box": weights[1], "beta": beta, "temperature": temperature}
        loss = loss_of(student, teacher, split=split, **options)
        with torch.no_grad():
            mine = crossed(loss, student, teacher, maps, split)
            focal, apart = slow(teacher, mine, taught.levels, beta, temperature)
        value = loss(student(maps), taught, draw_batch(), maps)
        assert value.item() == pytest.approx(weights[0] * focal + weights[1] * apart, rel=1e-4)


def test_direct_distances_are_compared_by_overlap(draw_batch):
    student, teacher = head_of(reg_max=4), head_of(reg_max=1)
    maps, taught = draw_maps(), teacher(draw_maps())
    loss = loss_of(student, teacher, classes=0, box=1)
    for level in taught.levels:
        level.data[:, :4] = level[:, :4].abs() + 1
    with torch.no_grad():
        for tower in (teacher.towers(level)[0][2] for level in range(2)):
            tower.weight *= 0.05  # boxes of some width on the other side, too
            tower.bias.fill_(3.0)
        mine = crossed(loss, student, teacher, maps, 2)
        assert all((level[:, :4] > 0).all() for level in mine)
        _, apart = slow(teacher, mine, taught.levels)
    assert loss(student(maps), taught, draw_batch(), maps).item() == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("split", [1, 2])
def test_a_student_with_the_teachers_head_and_maps_has_learnt_it_all(split, mode, draw_batch):
    """In training, too: its features are made with the statistics of the batch, as the head itself makes them."""
    student = head_of().train(mode == "train")
    teacher, maps = copy.deepcopy(student), [x.requires_grad_() for x in draw_maps()]
    taught = teacher([x.detach() for x in maps])
    value = loss_of(student, teacher, split=split)(student(maps), taught, draw_batch(), maps)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-4)
    other = loss_of(student, teacher, split=split)(student(maps), taught, draw_batch(), draw_maps())
    assert other.item() > 0.1


def test_only_classes_that_both_have_are_compared(draw_batch):
    student, teacher = head_of(classes=2), head_of(classes=3)
    maps, taught = draw_maps(), teacher(draw_maps())
    loss = loss_of(student, teacher, own=("bird", "helmet"), other=NAMES)
    with torch.no_grad():
        focal, apart = slow(teacher, crossed(loss, student, teacher, maps, 2), taught.levels, classes=[2])
    assert loss(student(maps), taught, draw_batch(), maps).item() == pytest.approx(focal + 4 * apart, rel=1e-4)


def test_bins_may_differ(draw_batch):
    student, teacher = head_of(reg_max=1), head_of(reg_max=6)
    maps, taught = draw_maps(), teacher(draw_maps())
    value = loss_of(student, teacher)(student(maps), taught, draw_batch(), maps)
    assert math.isfinite(value.item()) and value > 0


# -- what learns and what does not move -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 2])
def test_the_students_first_stages_learn_and_nothing_of_the_teacher_moves(split, draw_batch):
    student, teacher = head_of(8).train(), head_of(24).train()
    maps, taught = [x.requires_grad_() for x in draw_maps()], teacher(draw_maps(24))
    before = copy.deepcopy(teacher.state_dict())
    loss = loss_of(student, teacher, split=split)
    loss(student(maps), taught, draw_batch(), maps).backward()
    for index, x in enumerate(maps):
        assert x.grad.abs().sum() > 0
        for tower in student.towers(index):
            assert all(weight.grad.abs().sum() > 0 for weight in tower[:split].parameters())
            assert all(weight.grad is None for weight in tower[split:].parameters())
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_running_statistics_of_the_student_see_the_maps_once(draw_batch):
    student, teacher = head_of().train(), head_of()
    maps, taught = draw_maps(), teacher(draw_maps())
    prediction = student(maps)
    before = copy.deepcopy(student.state_dict())
    loss_of(student, teacher)(prediction, taught, draw_batch(), maps)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    student(maps)
    assert any(not torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_a_convolution_stands_between_towers_of_different_widths_alone():
    alike, wider = loss_of(head_of(24), head_of(24)), loss_of(head_of(8), head_of(24))
    assert not alike.state_dict() and not list(alike.parameters())
    # box towers have 16 channels in both
    assert {name: tuple(x.shape) for name, x in wider.state_dict().items()} == {
        f"adapters.{level}.1.{name}": shape
        for level in range(2)
        for name, shape in (("weight", (24, 8, 1, 1)), ("bias", (24,)))
    }


def test_the_convolution_between_learns(draw_batch):
    student, teacher = head_of(8), head_of(24)
    loss = loss_of(student, teacher)
    loss(Prediction(()), teacher(draw_maps(24)), draw_batch(), draw_maps()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in loss.parameters())


def test_of_two_branches_it_is_the_one_to_many(draw_batch):
    student, teacher = (head_of(two_branches=True) for _ in range(2))
    maps, taught = draw_maps(), Prediction(teacher.branch_levels("one_to_many", draw_maps()))
    loss_of(student, teacher)(student(maps), taught, draw_batch(), maps).backward()
    assert all(weight.grad is None for tower in student.one2one_cv2 for weight in tower.parameters())
    assert all(weight.grad is not None for tower in student.cv2 for weight in tower[:2].parameters())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_teacher_may_be_in_half_precision(half, draw_batch):
    student, teacher, maps = head_of(8).train(), head_of(24), draw_maps()
    taught = teacher(draw_maps(24))
    full = loss_of(student, teacher)
    in_half = loss_of(student, copy.deepcopy(teacher).to(half))
    in_half.load_state_dict(full.state_dict())
    taught_in_half = Prediction(tuple(level.to(half) for level in taught.levels))
    expected = full(student(maps), taught, draw_batch(), maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = in_half(student(maps), taught_in_half, draw_batch(), maps)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)
    assert all(weight.grad.isfinite().all() for weight in in_half.parameters())


@pytest.mark.parametrize("mode", ["eval", "train"])  # an average of weights; one that learns along
@pytest.mark.parametrize("split", [1, 2])
def test_the_teachers_norms_need_not_be_folded_under_autocast(split, mode, draw_batch):
    student, teacher, maps = head_of(8).train(), head_of(24).train(mode == "train"), draw_maps()
    taught, loss = teacher(draw_maps(24)), loss_of(student, teacher, split=split)
    expected = loss(student(maps), taught, draw_batch(), maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student(maps), taught, draw_batch(), maps)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


# -- options ----------------------------------------------------------------------------------------------------------


def test_options_are_checked(loss_between):
    for split in (0, 3, True, 2.0, "2"):
        with pytest.raises(UserError, match=r"'crosskd': split: got .*, expected 1 or 2"):
            loss_between("crosskd", split=split)
    with pytest.raises(UserError, match="'crosskd': beta: got -1, expected a number of at least 0"):
        loss_between("crosskd", beta=-1)
    with pytest.raises(UserError, match="'crosskd': classes and box are both 0, which leaves nothing to compare"):
        loss_between("crosskd", classes=0, box=0)


def test_heads_without_towers_are_told_so(loss_between):
    with pytest.raises(
        UserError, match=r"'crosskd' needs towers of convolutions, which the teacher's head \(TinyHead\)"
    ):
        loss_between("crosskd", teacher="anchors")
