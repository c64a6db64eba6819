"""The contract of `distill/outputs`, over the whole table, and the value of each method."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from distill.classes import match_classes
from distill.outputs import OUTPUTS
from distill.outputs.cellwise import strongest_of_class
from utils.errors import UserError
from utils.registry import build
from utils.types import Prediction

METHODS = sorted(OUTPUTS)
NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def loss_of(detector, gains):
    """A loss between two heads, by default equal ones."""

    def make(name, own=NAMES, other=NAMES, strides=((8, 16, 32), (8, 16, 32)), anchors=(None, None), **options):
        heads = [
            detector(num_classes=len(names), strides=s, anchors=a).head
            for names, s, a in zip((own, other), strides, anchors, strict=True)
        ]
        classes = match_classes(own, other, len(own), len(other))
        return build("output loss", name, OUTPUTS, *heads, classes, gains, options=options)

    return make


def copied(prediction, dtype=None):
    return Prediction(tuple(level.detach().clone().to(dtype or level.dtype) for level in prediction.levels))


def learning(prediction):
    return Prediction(tuple(level.requires_grad_() for level in prediction.levels))


def scaled(prediction, factor):
    return Prediction(tuple(level * factor for level in prediction.levels))


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_float32_inside_under_bf16(name, loss_of, draw_prediction, draw_batch):
    loss, batch = loss_of(name), draw_batch()
    student, taught = (copied(draw_prediction(), torch.bfloat16) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(student, taught, batch)
    full = loss(copied(student, torch.float32), copied(taught, torch.float32), batch)
    assert half.dtype == torch.float32
    assert half.shape == ()
    assert torch.equal(half, full)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("nms", [False, True])
def test_finite_without_objects_for_blank_and_for_saturated_maps(name, size, nms, loss_of, draw_prediction, draw_batch):
    student = learning(scaled(draw_prediction(), size))
    value = loss_of(name, nms=nms)(student, scaled(draw_prediction(), size), draw_batch(empty=True))
    value.backward()
    assert math.isfinite(value.item())
    assert all(level.grad.isfinite().all() for level in student.levels)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_the_student_only(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), learning(draw_prediction())
    loss_of(name)(student, taught, draw_batch()).backward()
    assert all(level.grad.abs().sum() > 0 for level in student.levels)
    assert all(level.grad is None for level in taught.levels)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nms", [False, True])
def test_equal_predictions_cost_nothing_and_different_ones_do(name, nms, loss_of, draw_prediction, draw_batch):
    loss, student, batch = loss_of(name, nms=nms), draw_prediction(), draw_batch()
    assert loss(student, copied(student), batch).item() == pytest.approx(0, abs=1e-7)
    assert loss(student, draw_prediction(), batch).item() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_size_does_not_depend_on_the_batch(name, loss_of, draw_prediction, draw_batch):
    loss, student, taught, batch = loss_of(name), draw_prediction(), draw_prediction(), draw_batch()
    twice = [Prediction(tuple(level.repeat(2, 1, 1, 1, 1) for level in p.levels)) for p in (student, taught)]
    torch.testing.assert_close(loss(*twice, batch), loss(student, taught, batch))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_it_learns_or_is_saved(name, loss_of):
    loss = loss_of(name)
    assert not loss.state_dict()
    assert not list(loss.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_is_answered(name, loss_of):
    with pytest.raises(UserError, match=f"output loss '{name}' has no option nsm; did you mean 'nms'"):
        loss_of(name, nsm=True)


# -- heads that differ ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_different_anchors_are_named(name, loss_of):
    others = {8: [[10, 13], [16, 30]], 16: [[36, 75], [76, 55]], 32: [[116, 90], [156, 198]]}
    with pytest.raises(UserError, match=r"stride 16: student 30,61 62,45, teacher 36,75 76,55; .*outputs: {}"):
        loss_of(name, anchors=(None, others))


@pytest.mark.parametrize("name", METHODS)
def test_anchors_rounded_by_half_precision_are_the_same(name, loss_of):
    rounded = {8: [[10.001, 13], [16, 30]], 16: [[30, 61.01], [62, 45]], 32: [[116, 90], [156, 198.1]]}
    assert loss_of(name, anchors=(None, rounded))


@pytest.mark.parametrize("name", METHODS)
def test_a_head_without_objectness_is_told_so(name, detector, gains):
    other = detector().head
    del other.anchors
    with pytest.raises(UserError, match=r"needs objectness, which the teacher's head \(TinyHead\) does not have"):
        OUTPUTS[name](detector().head, other, match_classes(NAMES, NAMES, 3, 3), gains)


@pytest.mark.parametrize("name", METHODS)
def test_levels_are_matched_by_stride(name, loss_of, draw_prediction, draw_batch):
    p5, p6 = draw_prediction(strides=(8, 16, 32)), draw_prediction(strides=(16, 32, 64))
    part = loss_of(name, strides=((8, 16, 32), (16, 32, 64)))
    same = loss_of(name, strides=((16, 32), (16, 32)))
    expected = same(Prediction(p5.levels[1:]), Prediction(p6.levels[:2]), draw_batch())
    torch.testing.assert_close(part(p5, p6, draw_batch()), expected)


@pytest.mark.parametrize("name", METHODS)
def test_no_common_stride_is_an_error(name, loss_of):
    with pytest.raises(UserError, match="no level of one stride: student 8, 16, teacher 32"):
        loss_of(name, strides=((8, 16), (32,)))


# -- classes that differ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_classes_are_compared_by_name(name, loss_of, draw_prediction, draw_batch):
    student, taught = draw_prediction(), draw_prediction()
    turned = Prediction(tuple(level[..., [0, 1, 2, 3, 4, 7, 6, 5]] for level in taught.levels))
    expected = loss_of(name)(student, taught, draw_batch())
    torch.testing.assert_close(loss_of(name, other=NAMES[::-1])(student, turned, draw_batch()), expected)


@pytest.mark.parametrize("name", METHODS)
def test_cells_of_a_foreign_class_teach_nothing(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), draw_prediction(num_classes=4)
    loss_of(name, other=[*NAMES, "car"])(student, taught, draw_batch()).backward()
    for own, other in zip(student.levels, taught.levels, strict=True):
        foreign = (other[..., 5:].argmax(-1) == 3) & (other[..., 4].sigmoid() > 0.01)
        assert foreign.any()
        assert own.grad[foreign].abs().sum() == 0
        assert (own.grad[~foreign].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_that_sees_nothing_is_no_proof_where_it_does_not_know_all_classes(
    name, loss_of, draw_prediction, draw_batch
):
    student, taught = learning(draw_prediction(num_classes=4)), draw_prediction()
    for level in taught.levels:
        level[..., 4] = -1000.0
    loss_of(name, own=[*NAMES, "helmet"])(student, taught, draw_batch()).backward()
    assert all(level.grad.abs().sum() == 0 for level in student.levels)


@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_the_teacher_does_not_know_is_not_taught(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction(num_classes=4)), draw_prediction()
    loss_of(name, own=["helmet", *NAMES])(student, taught, draw_batch()).backward()
    for level in student.levels:
        assert level.grad[..., 5].abs().sum() == 0
        assert level.grad[..., 6:].abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_single_class_has_no_class_term(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction(num_classes=1)), draw_prediction(num_classes=1)
    loss_of(name, own=["cat"], other=["cat"])(student, taught, draw_batch()).backward()
    for level in student.levels:
        assert level.grad[..., 5].abs().sum() == 0
        assert level.grad[..., 4].abs().sum() > 0


# -- values, beside slow loops ----------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def square(x, y):
    return (sigmoid(x) - sigmoid(y)) ** 2


def divergence(x, y, temperature):
    q, p = sigmoid(x / temperature), sigmoid(y / temperature)
    return temperature**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


def cell_by_cell(student, taught, box, objectness, classes):
    """Three means over the cells of all levels: boxes and classes weighted by belief, objectness plain."""
    sums, belief, cells = [0.0, 0.0, 0.0], 0.0, 0
    for own, other in zip(student.levels, taught.levels, strict=True):
        for mine, theirs in zip(own.flatten(0, 3).tolist(), other.flatten(0, 3).tolist(), strict=True):
            trust = sigmoid(theirs[4]) if sigmoid(theirs[4]) > 0.01 else 0.0  # the rest is background
            sums[0] += trust * sum(box(x, y) for x, y in zip(mine[:4], theirs[:4], strict=True)) / 4
            sums[1] += objectness(mine[4], theirs[4])
            sums[2] += trust * sum(classes(x, y) for x, y in zip(mine[5:], theirs[5:], strict=True)) / 3
            belief += trust
            cells += 1
    return sums[0] / belief, sums[1] / cells, sums[2] / belief


def test_objectness_scaled_is_its_formula(loss_of, draw_prediction, draw_batch, gains):
    student, taught = draw_prediction(), draw_prediction()
    box, objectness, classes = cell_by_cell(student, taught, lambda x, y: 4 * square(x, y), square, square)
    expected = 3 * (gains.box * box + gains.obj * objectness + gains.cls * classes)
    assert loss_of("objectness_scaled")(student, taught, draw_batch()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_its_formula(temperature, loss_of, draw_prediction, draw_batch, gains):
    student, taught = draw_prediction(), draw_prediction()
    kl = lambda x, y: divergence(x, y, temperature)  # noqa: E731
    _, objectness, classes = cell_by_cell(student, taught, lambda x, y: 0, kl, kl)
    batch = draw_batch()
    for factors in ((1.0, 1.0), (0.0, 1.0), (0.5, 0.0)):
        loss = loss_of("kl", temperature=temperature, objectness=factors[0], classes=factors[1])
        expected = 3 * (factors[0] * gains.obj * objectness + factors[1] * gains.cls * classes)
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)


def test_kl_pulls_like_cross_entropy_with_the_teachers_probability(loss_of, draw_prediction, draw_batch, gains):
    student, taught = learning(draw_prediction()), draw_prediction()
    loss_of("kl")(student, taught, draw_batch()).backward()
    cells = sum(level[..., 4].numel() for level in student.levels)
    for own, other in zip(student.levels, taught.levels, strict=True):
        expected = 3 * gains.obj * (own[..., 4].sigmoid() - other[..., 4].sigmoid()) / cells
        torch.testing.assert_close(own.grad[..., 4], expected.detach(), rtol=1e-4, atol=1e-7)


def test_kl_of_nothing_is_refused(loss_of):
    with pytest.raises(UserError, match="leaves nothing to compare"):
        loss_of("kl", objectness=0, classes=0)


def test_boxes_and_classes_of_background_teach_nothing(loss_of, draw_prediction, draw_batch):
    for name in METHODS:
        student, taught = learning(draw_prediction()), draw_prediction()
        for level in taught.levels:
            level[..., 4] = -1000.0
            level[:, :, :2, :2, 4] = 1000.0
        loss_of(name)(student, taught, draw_batch()).backward()
        own, grad = student.levels[0], student.levels[0].grad
        assert own.shape[2] > 2
        assert grad[:, :, 2:, 2:, [0, 1, 2, 3, 5, 6, 7]].abs().sum() == 0
        assert grad[:, :, :2, :2, 5:].abs().sum() > 0
        assert grad[..., 4].abs().sum() > 0


def test_strongest_of_class_is_the_slow_search():
    objectness, classes = torch.randn(2, 3, 6, 5), torch.randint(4, (2, 3, 6, 5))
    found = strongest_of_class(objectness, classes, 4)
    for b in range(2):
        for a in range(3):
            for y in range(6):
                for x in range(5):
                    rivals = [
                        objectness[b, other, v, u]
                        for other in range(3)
                        for v in range(max(0, y - 1), min(6, y + 2))
                        for u in range(max(0, x - 1), min(5, x + 2))
                        if classes[b, other, v, u] == classes[b, a, y, x]
                    ]
                    assert found[b, a, y, x] == (objectness[b, a, y, x] >= max(rivals))


@pytest.mark.parametrize("name", METHODS)
def test_with_nms_only_the_strongest_teach(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), draw_prediction()
    loss_of(name, nms=True)(student, taught, draw_batch()).backward()
    for own, other in zip(student.levels, taught.levels, strict=True):
        strongest = strongest_of_class(other[..., 4], other[..., 5:].argmax(-1), 3)
        background = other[..., 4].sigmoid() <= 0.01
        assert torch.equal(own.grad[..., :4].abs().sum(-1) > 0, strongest & ~background & (name != "kl"))
        assert torch.equal(own.grad[..., 4].abs() > 0, strongest | background)


def test_nms_is_yes_or_no(loss_of):
    with pytest.raises(UserError, match="nms: got 3, expected true or false"):
        loss_of("objectness_scaled", nms=3)


def test_log_is_quiet_where_class_lists_are_equal(loss_of, caplog):
    with caplog.at_level(logging.INFO):
        loss_of("kl")
    assert not caplog.text
