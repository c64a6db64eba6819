"""The contract of `distill/outputs`, over the whole table. Values of the methods are tested in files of their own."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from distill.classes import match_classes
from distill.outputs import OUTPUTS
from distill.outputs.base import Sides
from distill.outputs.cellwise import CellwiseLoss, strongest_of_class
from tests.distill.heads import three_levels
from utils.errors import UserError
from utils.types import Prediction

METHODS = sorted(name for name, made in OUTPUTS.items() if not {"dfl", "towers"} & {*made.needs})  # two anchor heads
CELLWISE = [name for name in METHODS if issubclass(OUTPUTS[name], CellwiseLoss)]
WITH_NMS = [(name, nms) for name in METHODS for nms in ((False, True) if name in CELLWISE else (False,))]
WITH_LABELS = {"soft_labels"}  # learn from the targets, too
BY_POSITIVES = {"dist", "quality_focal"}  # look at the cells that answer for them
FEW_CELLS = {"dist"}  # and at no others
# each cell teaches itself alone, and no object is needed
BY_CELL = [name for name in METHODS if name not in {"cwd_logits", *BY_POSITIVES}]
ENTROPIES = {"objectness_scaled_bce"}  # where both agree they are the teacher's entropy
NAMES = ["cat", "dog", "bird"]


def copied(prediction, dtype=None):
    return Prediction(tuple(level.detach().clone().to(dtype or level.dtype) for level in prediction.levels))


def learning(prediction):
    return Prediction(tuple(level.requires_grad_() for level in prediction.levels))


def scaled(prediction, factor):
    return Prediction(tuple(level * factor for level in prediction.levels))


def with_nms(nms):
    return {"nms": True} if nms else {}


def sees(level):
    return level[..., 4].sigmoid() > 0.01


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_float32_inside_in_half_precision(name, dtype, loss_of, draw_prediction, draw_batch):
    loss, batch = loss_of(name), draw_batch()
    student, taught = (copied(draw_prediction(), dtype) for _ in range(2))
    with torch.autocast("cpu", dtype=dtype):
        half = loss(student, taught, batch)
    full = loss(copied(student, torch.float32), copied(taught, torch.float32), batch)
    assert half.dtype == torch.float32
    assert half.shape == ()
    torch.testing.assert_close(half, full, rtol=1e-6, atol=0)  # the order of a sum may differ, with the layout


@pytest.mark.parametrize(("name", "nms"), WITH_NMS)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("empty", [False, True])
def test_finite_without_objects_for_blank_and_for_saturated_maps(
    name, size, nms, empty, loss_of, draw_prediction, draw_batch
):
    student = learning(scaled(draw_prediction(), size))
    loss = loss_of(name, **with_nms(nms))
    value = loss(student, scaled(draw_prediction(), size), draw_batch(empty=empty))
    value.backward()
    assert math.isfinite(value.item())
    assert all(level.grad.isfinite().all() for level in student.levels)


@pytest.mark.parametrize("sides", [(-1e4, -1e4), (-1e4, 1e4), (1e4, -1e4), (1e4, 1e4)])
@pytest.mark.parametrize("name", METHODS)
def test_finite_where_every_number_is_saturated(name, sides, loss_of, draw_prediction, draw_batch):
    student, taught = (scaled(draw_prediction(), 0) for _ in sides)
    for prediction, side in zip((student, taught), sides, strict=True):
        for level in prediction.levels:
            level += side
    value = loss_of(name)(learning(student), taught, draw_batch())
    value.backward()
    assert math.isfinite(value.item())
    assert all(level.grad.isfinite().all() for level in student.levels)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_no_images_costs_nothing(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction(images=0)), draw_prediction(images=0)
    value = loss_of(name)(student, taught, draw_batch(images=0, empty=True))
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_the_student_only(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), learning(draw_prediction())
    loss_of(name)(student, taught, draw_batch()).backward()
    reached = [level.grad.abs().sum() > 0 for level in student.levels]
    assert any(reached) if name in FEW_CELLS else all(reached)
    assert all(level.grad is None for level in taught.levels)


@pytest.mark.parametrize(("name", "nms"), [case for case in WITH_NMS if case[0] not in WITH_LABELS])
def test_equal_predictions_do_not_pull_and_different_ones_do(name, nms, loss_of, draw_prediction, draw_batch):
    loss, student, batch = loss_of(name, **with_nms(nms)), learning(draw_prediction()), draw_batch()
    value = loss(student, copied(student), batch)
    value.backward()
    if name not in ENTROPIES:
        assert value.item() == pytest.approx(0, abs=1e-6)
    assert max(level.grad.abs().max().item() for level in student.levels) < 1e-7
    assert loss(student, draw_prediction(), batch).item() > value.item() + 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_size_does_not_depend_on_the_batch(name, loss_of, draw_prediction, draw_batch):
    loss, student, taught, batch = loss_of(name), draw_prediction(), draw_prediction(), draw_batch()
    twice = [Prediction(tuple(level.repeat(2, 1, 1, 1, 1) for level in p.levels)) for p in (student, taught)]
    again = batch.targets + torch.tensor([2, 0, 0, 0, 0, 0])
    double = batch._replace(targets=torch.cat((batch.targets, again)), labelled=batch.labelled.repeat(2))
    torch.testing.assert_close(loss(*twice, double), loss(student, taught, batch))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_it_learns_or_is_saved(name, loss_of):
    loss = loss_of(name)
    assert not loss.state_dict()
    assert not list(loss.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_is_answered(name, loss_of):
    with pytest.raises(UserError, match=f"output loss '{name}' has no option nsm; "):
        loss_of(name, nsm=True)


def test_a_misspelt_method_or_word_is_answered(loss_of):
    with pytest.raises(UserError, match=r"no output loss is called 'bkcd'; did you mean 'bckd'\? known: bckd, crossk"):
        loss_of("bkcd")
    with pytest.raises(UserError, match=r"output loss 'kl' has no option temprature; did you mean 'temperature'\?"):
        loss_of("kl", temprature=2)
    with pytest.raises(
        UserError, match=r"'softmax_kl': channels: got 'clases'; did you mean 'classes'\? known: all, cl"
    ):
        loss_of("softmax_kl", channels="clases")
    with pytest.raises(UserError, match="'bckd': iou: got 'niou'; did you mean"):
        loss_of("bckd", iou="niou")


@pytest.mark.parametrize("name", METHODS)
def test_images_without_ground_truth_are_taught(name, loss_of, draw_prediction, draw_batch):
    loss, student, taught, batch = loss_of(name), learning(draw_prediction()), draw_prediction(), draw_batch()
    unlabelled = batch._replace(labelled=torch.tensor([True, False]))
    value = loss(student, taught, unlabelled)
    value.backward()
    assert all(level.grad[1, ..., 4:].abs().sum() > 0 for level in student.levels)
    moved = batch.targets.clone()
    moved[moved[:, 0] == 1, 2:] = 0.9  # what stands there does not matter
    assert torch.equal(value, loss(student, taught, unlabelled._replace(targets=moved)))
    if name not in WITH_LABELS | BY_POSITIVES:
        assert torch.equal(value, loss(student, taught, batch))


@pytest.mark.parametrize("name", [name for name in CELLWISE if name != "logit_mse"] + ["soft_labels"])
def test_the_class_logit_of_a_teacher_of_one_class_teaches_nothing(name, loss_of, draw_prediction, draw_batch):
    student, taught, batch = draw_prediction(), draw_prediction(num_classes=1), draw_batch()
    loss = loss_of(name, other=["cat"])
    before = loss(student, taught, batch)
    for level in taught.levels:
        level[..., 5] = torch.randn_like(level[..., 5])
    assert torch.equal(loss(student, taught, batch), before)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_positive_default_weight(name):
    assert OUTPUTS[name].default_weight > 0


# -- heads that differ ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_anchors_of_the_teacher_do_not_matter(name, detector, gains, draw_prediction, draw_batch):
    """What was taught has been translated before."""
    few = {8: [[9, 9], [9, 9]], 16: [[36, 75], [76, 55]], 32: [[99, 90], [156, 9]]}
    classes = match_classes(NAMES, NAMES, 3, 3)
    heads = detector().head, detector().head, detector(anchors=few).head
    student, taught, batch = draw_prediction(), draw_prediction(), draw_batch()
    sides = [Sides(heads[0], other, classes, three_levels(gains)) for other in heads[1:]]
    same, different = (OUTPUTS[name](one)(student, taught, batch) for one in sides)
    assert torch.equal(same, different)


@pytest.mark.parametrize("name", ["bckd", "decoupled", "soft_labels"])
def test_anchors_fitted_after_the_loss_was_built_count(name, detector, gains, draw_prediction, draw_batch):
    head = detector().head
    loss = OUTPUTS[name](Sides(head, detector().head, match_classes(NAMES, NAMES, 3, 3), three_levels(gains)))
    student, taught, batch = draw_prediction(), draw_prediction(), draw_batch()
    before = loss(student, taught, batch)
    head.anchors *= torch.tensor([1.5, 0.5])
    assert loss(student, taught, batch) != before


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


@pytest.mark.parametrize("name", BY_CELL)
def test_cells_of_a_foreign_class_teach_nothing(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), draw_prediction(num_classes=4)
    loss_of(name, other=[*NAMES, "car"])(student, taught, draw_batch()).backward()
    for own, other in zip(student.levels, taught.levels, strict=True):
        foreign = (other[..., 5:].argmax(-1) == 3) & sees(other)
        assert foreign.any()
        assert own.grad[foreign].abs().sum() == 0
        assert (own.grad[~foreign & sees(other)].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", BY_CELL)
def test_a_teacher_that_sees_nothing_is_no_proof_where_it_does_not_know_all_classes(
    name, loss_of, draw_prediction, draw_batch
):
    student, taught = learning(draw_prediction(num_classes=4)), draw_prediction()
    for level in taught.levels:
        level[..., 4] = -1000.0
    loss_of(name, own=[*NAMES, "helmet"])(student, taught, draw_batch()).backward()
    assert all(level.grad.abs().sum() == 0 for level in student.levels)


@pytest.mark.parametrize("name", BY_CELL)
def test_a_teacher_that_sees_nothing_is_heard_where_it_knows_all_classes(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), draw_prediction()
    for level in taught.levels:
        level[..., 4] = -1000.0
    loss_of(name)(student, taught, draw_batch()).backward()
    for level in student.levels:
        assert (level.grad[..., 4][level[..., 4] > 2] > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_the_teacher_does_not_know_is_not_taught(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction(num_classes=4)), draw_prediction()
    batch = draw_batch()._replace(labelled=torch.tensor([True, False]))
    loss_of(name, own=["helmet", *NAMES])(student, taught, batch).backward()
    for level in student.levels:
        assert level.grad[..., 5].abs().sum() == 0
        assert level.grad[..., 6:].abs().sum() > 0


@pytest.mark.parametrize("teacher", [["cat"], NAMES])
@pytest.mark.parametrize("name", BY_CELL)
def test_a_single_class_has_no_class_term(name, teacher, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction(num_classes=1)), draw_prediction(num_classes=len(teacher))
    loss_of(name, own=["cat"], other=teacher)(student, taught, draw_batch()).backward()
    for level in student.levels:
        assert level.grad[..., 5].abs().sum() == 0
        assert level.grad[..., 4].abs().sum() > 0


# -- what the cellwise have in common ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLWISE)
def test_boxes_and_classes_of_background_teach_nothing(name, loss_of, draw_prediction, draw_batch):
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


@pytest.mark.parametrize("name", CELLWISE)
def test_with_nms_only_the_strongest_teach(name, loss_of, draw_prediction, draw_batch):
    student, taught = learning(draw_prediction()), draw_prediction()
    loss_of(name, nms=True)(student, taught, draw_batch()).backward()
    for own, other in zip(student.levels, taught.levels, strict=True):
        strongest = strongest_of_class(other[..., 4], other[..., 5:].argmax(-1), 3)
        background = ~sees(other)
        assert torch.equal(own.grad[..., :4].abs().sum(-1) > 0, strongest & ~background & (name != "kl"))
        assert torch.equal(own.grad[..., 4].abs() > 0, strongest | background)


@pytest.mark.parametrize("name", CELLWISE)
def test_nms_is_yes_or_no(name, loss_of):
    with pytest.raises(UserError, match=f"^output loss '{name}': nms: got 3, expected true or false$"):
        loss_of(name, nms=3)


def test_log_is_quiet_where_class_lists_are_equal(loss_of, caplog):
    with caplog.at_level(logging.INFO):
        loss_of("kl")
    assert not caplog.text
