"""The contract of `distill/outputs` between heads of all kinds: what fits runs, the rest is told."""

from __future__ import annotations

import math

import pytest
import torch

from distill.classes import match_classes
from distill.outputs import OUTPUTS
from distill.outputs.base import NEEDS, Sides
from distill.outputs.view import cells_of
from tests.distill.heads import KINDS, Gains, make_head, make_levels, three_levels
from utils.errors import UserError
from utils.types import Prediction

NAMES = ("cat", "dog", "bird")
PAIRS = [(own, other) for own in KINDS for other in KINDS if (own, other) != ("anchors", "anchors")]
ENTROPIES = {"objectness_scaled_bce", "soft_labels"}  # where both agree they need not be 0
EVERYWHERE = {"bckd", "kl", "softmax_kl", "soft_labels", "quality_focal"}  # teach "nothing here", too


def sides_of(student, teacher, own=NAMES, other=NAMES, strides=((8, 16, 32), (8, 16, 32))):
    heads = [make_head(*one) for one in zip((student, teacher), (len(own), len(other)), strides, strict=True)]
    return Sides(*heads, match_classes(own, other, len(own), len(other)), three_levels(Gains()))


def fits(name, student, teacher):
    sides = sides_of(student, teacher)
    return not any(NEEDS[need](sides) for need in OUTPUTS[name].needs)


FITTING = [(name, *pair) for name in sorted(OUTPUTS) for pair in PAIRS if fits(name, *pair)]
REFUSED = [(name, *pair) for name in sorted(OUTPUTS) for pair in PAIRS if not fits(name, *pair)]


class Case:
    """A loss between two heads, and what it is called with."""

    def __init__(self, name, student, teacher, images=2, own=NAMES, other=NAMES, **options):
        self.sides = sides_of(student, teacher, own, other)
        self.loss = OUTPUTS[name](self.sides, **options)
        self.student = make_levels(student, len(own), images)
        self.taught = make_levels(teacher, len(other), images)
        self.maps = [torch.randn(images, 4, *level.shape[-2:]) for level in make_levels("dfl", 1, images).levels]

    def learn(self):
        for leaf in (*self.student.levels, *self.maps):
            leaf.requires_grad_()
        return self

    def __call__(self, batch):
        extra = (self.maps,) if self.loss.needs_maps else ()
        return self.loss(self.student, self.taught, batch, *extra)

    @property
    def gradients(self):
        """Of what the student has put out, as far as the loss looks at it."""
        return [leaf.grad for leaf in (self.maps if self.loss.needs_maps else self.student.levels)]

    def views(self):
        """(student, teacher) cells of each level, before one speaks for its cell."""
        pairs = zip(self.student.levels, self.taught.levels, strict=True)
        return [
            (cells_of(self.sides.student, i, one), cells_of(self.sides.teacher, i, other))
            for i, (one, other) in enumerate(pairs)
        ]


@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_it_has_a_finite_value_and_a_gradient_that_reaches_the_student_only(name, student, teacher, draw_batch):
    case = Case(name, student, teacher).learn()
    for level in case.taught.levels:
        level.requires_grad_()
    value = case(draw_batch())
    value.backward()
    assert value.dtype == torch.float32 and value.shape == () and math.isfinite(value.item()) and value > 0
    assert all(gradient.isfinite().all() for gradient in case.gradients)
    assert sum(gradient.abs().sum() for gradient in case.gradients) > 0
    assert all(level.grad is None for level in case.taught.levels)


@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_finite_without_objects_for_blank_and_for_saturated_levels(name, student, teacher, size, draw_batch):
    case = Case(name, student, teacher)
    case.student, case.taught = (
        Prediction(tuple(size * level for level in side.levels)) for side in (case.student, case.taught)
    )
    value = case.learn()(draw_batch(empty=True))
    value.backward()
    assert math.isfinite(value.item())
    assert all(gradient is None or gradient.isfinite().all() for gradient in case.gradients)


@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_a_batch_of_no_images_costs_nothing(name, student, teacher, draw_batch):
    case = Case(name, student, teacher, images=0).learn()
    value = case(draw_batch(images=0, empty=True))
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_float32_inside_in_half_precision(name, student, teacher, dtype, draw_batch):
    case = Case(name, student, teacher)
    batch = draw_batch()
    case.student, case.taught = (
        Prediction(tuple(level.to(dtype) for level in side.levels)) for side in (case.student, case.taught)
    )
    with torch.autocast("cpu", dtype=dtype):
        half = case(batch)
    case.student, case.taught = (
        Prediction(tuple(level.float() for level in side.levels)) for side in (case.student, case.taught)
    )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, case(batch), rtol=1e-5 if not case.loss.needs_maps else 5e-2, atol=1e-6)


@pytest.mark.parametrize(("name", "student", "teacher"), [case for case in FITTING if case[1] == case[2]])
def test_equal_predictions_do_not_pull(name, student, teacher, draw_batch):
    if name in ENTROPIES or OUTPUTS[name].needs_maps:
        pytest.skip("labels or maps have a say")
    case = Case(name, student, teacher).learn()
    case.taught = Prediction(tuple(level.detach().clone() for level in case.student.levels))
    value = case(draw_batch())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert max(gradient.abs().max().item() for gradient in case.gradients) < 1e-6


@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_size_does_not_depend_on_the_batch(name, student, teacher, draw_batch):
    case, batch = Case(name, student, teacher), draw_batch()
    once = case(batch)
    case.student, case.taught = (
        Prediction(tuple(level.repeat(2, *[1] * (level.ndim - 1)) for level in side.levels))
        for side in (case.student, case.taught)
    )
    case.maps = [one.repeat(2, 1, 1, 1) for one in case.maps]
    again = batch.targets + torch.tensor([2, 0, 0, 0, 0, 0])
    double = batch._replace(
        images=batch.images.repeat(2, 1, 1, 1),
        targets=torch.cat((batch.targets, again)),
        labelled=batch.labelled.repeat(2),
    )
    torch.testing.assert_close(case(double), once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_images_without_ground_truth_are_taught(name, student, teacher, draw_batch):
    case, batch = Case(name, student, teacher).learn(), draw_batch()
    case(batch._replace(labelled=torch.tensor([True, False]))).backward()
    assert sum(gradient[1].abs().sum() for gradient in case.gradients) > 0


@pytest.mark.parametrize("other", [("cat",), ("dog", "bird", "car")], ids=" ".join)
@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_finite_beside_a_silent_teacher_of_other_classes(name, student, teacher, other, draw_batch):
    if len(other) == 1 and name == "softmax_kl":
        pytest.skip("has nothing to compare with a single class in common, and says so")
    case = Case(name, student, teacher, other=other)
    for level in case.taught.levels:
        if teacher == "anchors":
            level[..., 4] = -20.0  # objectness
        else:
            level[:, -len(other) :] = -20.0
    value = case.learn()(draw_batch())
    value.backward()
    assert math.isfinite(value.item())
    assert all(gradient is None or gradient.isfinite().all() for gradient in case.gradients)


@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_a_cell_of_a_foreign_class_teaches_nothing(name, student, teacher, draw_batch):
    case = Case(name, student, teacher, other=(*NAMES, "car"))
    if case.loss.needs_maps:
        pytest.skip("what a map learns is not a cell's alone")
    case.learn()(draw_batch(empty=True)).backward()
    foreign = 0
    for gradient, (_, other) in zip(case.gradients, case.views(), strict=True):
        other = other.strongest()
        cells = ((other.classes().argmax(-1) == 3) & (other.belief() > 0.01))[:, 0]  # (B, H, W)
        foreign += int(cells.sum())
        pulls = gradient.abs().sum((1, 4) if student == "anchors" else 1)
        assert pulls[cells].sum() == 0
    assert foreign > 10


@pytest.mark.parametrize(("name", "student", "teacher"), [case for case in FITTING if case[0] in EVERYWHERE])
def test_a_class_that_the_teacher_does_not_know_is_not_taught(name, student, teacher, draw_batch):
    case = Case(name, student, teacher, own=("helmet", *NAMES)).learn()
    case(draw_batch()).backward()
    helmets = [g[..., 5] if student == "anchors" else g[:, -4] for g in case.gradients]
    others = [g[..., 6:] if student == "anchors" else g[:, -3:] for g in case.gradients]
    assert all(gradient.abs().sum() == 0 for gradient in helmets)
    assert sum(gradient.abs().sum() for gradient in others) > 0


@pytest.mark.parametrize(("name", "student", "teacher"), [case for case in FITTING if case[0] in EVERYWHERE])
def test_a_false_alarm_is_pulled_down(name, student, teacher, draw_batch):
    case = Case(name, student, teacher)
    for i, (level, other) in enumerate(zip(case.student.levels, case.taught.levels, strict=True)):
        for side, numbers in ((student, level), (teacher, other)):
            (numbers[..., 4:] if side == "anchors" else numbers[:, -3:]).fill_(-9.0)
        if i == 0:  # one cell, of one anchor if there are any
            (level[0, 1, 3, 2, 4:] if student == "anchors" else level[0, -3:, 3, 2]).copy_(
                torch.tensor([4.0, 1, 2, 3][-4 if student == "anchors" else -3 :])
            )
    case.learn()(draw_batch(empty=True)).backward()
    gradient = case.gradients[0]
    pulls = gradient[0, 1, 3, 2, 4:] if student == "anchors" else gradient[0, -3:, 3, 2]
    if name == "softmax_kl":  # which does not see how high they are
        assert pulls.abs().sum() > 0
    else:
        assert (pulls > 0).all()
    if student == "anchors":
        assert gradient[0, 0, 3, 2].abs().sum() == 0  # the other anchor is not what one sees


@pytest.mark.parametrize(("name", "student", "teacher"), FITTING)
def test_levels_are_matched_by_stride(name, student, teacher, draw_batch):
    if OUTPUTS[name].needs_maps:
        pytest.skip("maps go with the student's levels")
    torch.manual_seed(0)
    fine, coarse = (8, 16, 32), (16, 32, 64)
    size = 64
    mine, theirs = make_levels(student, strides=fine, size=size), make_levels(teacher, strides=coarse, size=size)
    part = OUTPUTS[name](sides_of(student, teacher, strides=(fine, coarse)))
    same = OUTPUTS[name](sides_of(student, teacher, strides=((16, 32), (16, 32))))
    batch = draw_batch(empty=True)._replace(labelled=torch.tensor([False, False]))
    expected = same(Prediction(mine.levels[1:]), Prediction(theirs.levels[:2]), batch)
    torch.testing.assert_close(part(mine, theirs, batch), expected)


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "student", "teacher"), REFUSED)
def test_a_pair_that_lacks_something_is_told_what_and_what_would_do(name, student, teacher):
    with pytest.raises(UserError) as told:
        OUTPUTS[name](sides_of(student, teacher))
    message = str(told.value)
    assert message.startswith(f"output loss '{name}' needs ")
    assert "the student" in message or "the teacher" in message
    assert "; these would do: " in message and message.endswith("or features only (outputs: {})")
    offered = message.split("these would do: ")[1].split(", or features")[0].split(", ")
    assert {"bckd", "kl", "soft_labels", "softmax_kl"} <= set(offered)
    assert all(fits(other, student, teacher) for other in offered)


def test_each_need_has_words_of_its_own():
    said = {
        (
            "objectness_scaled",
            "direct",
            "anchors",
        ): "needs objectness, which the student's head (AnchorFreeDetect) does",
        (
            "objectness_scaled",
            "anchors",
            "dfl",
        ): "needs objectness, which the teacher's head (AnchorFreeDetect) does no",
        ("logit_mse", "dfl", "direct"): "needs raw numbers that mean the same on both sides, and the student has a Anc",
    }
    for (name, student, teacher), words in said.items():
        with pytest.raises(UserError) as told:
            OUTPUTS[name](sides_of(student, teacher))
        assert f"output loss '{name}' {words}" in str(told.value)
    assert NEEDS["dfl"](sides_of("dfl", "anchors")).endswith("the teacher's head (TinyHead) does not have")
    assert NEEDS["dfl"](sides_of("direct", "dfl")).endswith("the student's head (AnchorFreeDetect) does not have")
    assert NEEDS["dfl"](sides_of("dfl", "more bins")).endswith("the student has 8, the teacher 12")
    assert NEEDS["towers"](sides_of("anchors", "dfl")).startswith("towers of convolutions, which the student's head")
    assert not NEEDS["dfl"](sides_of("dfl", "dfl"))
    assert not NEEDS["layout"](sides_of("direct", "direct"))


def test_softmax_of_all_channels_needs_anchors_on_both_sides():
    with pytest.raises(UserError, match="'softmax_kl': channels: all needs two heads with anchors; use channels: clas"):
        OUTPUTS["softmax_kl"](sides_of("anchors", "dfl"), channels="all")
    with pytest.raises(UserError, match=r"one in common; use the output loss 'kl'$"):
        OUTPUTS["softmax_kl"](sides_of("dfl", "dfl", ("cat",), ("cat",)))


def test_kl_of_scores_without_classes_is_nothing():
    with pytest.raises(UserError, match="'kl': classes is 0, and student and teacher have not both an objectness"):
        OUTPUTS["kl"](sides_of("dfl", "anchors"), classes=0)
