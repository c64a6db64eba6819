from __future__ import annotations

import math

import pytest
import torch

from distill.classes import ClassMap, match_classes
from distill.pseudo import frame_size, pseudo_labels
from models.heads.anchor import Detect
from models.heads.anchor_free import AnchorFreeDetect
from utils.types import Batch, Prediction

ANCHORS = [[10, 13, 16, 30], [30, 40, 40, 25]]
STRIDES = (8, 16)
SAME = ClassMap((0, 1, 2), (0, 1, 2), 3, 3)


def draw_head(num_classes=3):
    return Detect(num_classes, ANCHORS, (4, 4), STRIDES)


def draw_levels(images=4, num_classes=3, size=(64, 96)):
    """Objectness is low but in a few cells, as a trained head's is."""
    levels = []
    for stride in STRIDES:
        level = 2 * torch.randn(images, 2, size[0] // stride, size[1] // stride, 5 + num_classes)
        level[..., 4] -= 2.0
        levels.append(level)
    return Prediction(tuple(levels))


def draw_batch(labelled, size=(64, 96)):
    """Labelled images have two boxes each, the last of them first."""
    flags = reversed(list(enumerate(labelled)))
    rows = [[i, i % 3, 0.2 + 0.1 * k, 0.5, 0.1, 0.2] for i, flag in flags for k in range(2) if flag]
    return Batch(
        images=torch.rand(len(labelled), 3, *size),
        targets=torch.tensor(rows).reshape(-1, 6),
        labelled=torch.tensor(labelled),
        paths=tuple(map(str, range(len(labelled)))),
    )


def silent():
    """A teacher that is sure of nothing."""
    prediction = draw_levels()
    for level in prediction.levels:
        level[..., 4] = -9.0
    return prediction


def put(prediction, image, row, column, scores, x=0.0, y=0.0, level=0, anchor=0):
    """A box in this cell whose centre is the cell's and whose sides are the anchor's; scores of the classes."""
    cell = prediction.levels[level][image, anchor, row, column]
    cell[:] = torch.tensor([x, y, 0.0, 0.0, 20.0, *(math.log(s / (1 - s)) for s in scores)])


def of_image(batch, image):
    return batch.targets[batch.targets[:, 0] == image, 1:]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slowly(prediction, image, to_student, confidence, iou, size):
    """Class, x, y, w, h in [0, 1] of each pseudo-label, the most confident first; in plain Python."""
    height, width = size
    found = []
    for level, stride, sides in zip(prediction.levels, STRIDES, ANCHORS, strict=True):
        for anchor in range(2):
            for row in range(level.shape[2]):
                for column in range(level.shape[3]):
                    x, y, w, h, objectness, *classes = map(sigmoid, level[image, anchor, row, column].tolist())
                    best = max(range(len(classes)), key=classes.__getitem__)
                    score = objectness * classes[best]
                    if score <= confidence or best not in to_student:
                        continue
                    cx, cy = (2 * x - 0.5 + column) * stride, (2 * y - 0.5 + row) * stride
                    w, h = (2 * w) ** 2 * sides[2 * anchor], (2 * h) ** 2 * sides[2 * anchor + 1]
                    found.append((score, to_student[best], (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)))
    kept = []
    for candidate in sorted(found, key=lambda one: -one[0]):
        if all(candidate[1] != other[1] or overlap(candidate[2], other[2]) <= iou for other in kept):
            kept.append(candidate)
    rows = []
    for _, label, (left, top, right, bottom) in kept:
        left, right = (min(max(v, 0), width) for v in (left, right))
        top, bottom = (min(max(v, 0), height) for v in (top, bottom))
        if right - left >= 1 and bottom - top >= 1:
            rows.append([
                label, (left + right) / 2 / width, (top + bottom) / 2 / height,
                (right - left) / width, (bottom - top) / height,
            ])  # fmt: skip
    return rows


def overlap(one, other):
    w = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    h = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return w * h / (sum(areas) - w * h)


@pytest.mark.parametrize(
    ("classes", "to_student"),
    [
        (SAME, {0: 0, 1: 1, 2: 2}),
        (ClassMap((1, 0), (0, 2), 4, 3), {0: 1, 2: 0}),  # another order, class 1 of the teacher is foreign
    ],
)
def test_pseudo_labels_equal_a_slow_loop(classes, to_student):
    labelled = [False, True, False, False]
    batch, prediction, head = draw_batch(labelled), draw_levels(), draw_head()
    taught = pseudo_labels(batch, prediction, head, classes, confidence=0.3, iou=0.5, max_boxes=1000)
    for image, flag in enumerate(labelled):
        if flag:
            assert torch.equal(of_image(taught, image), of_image(batch, image))
            continue
        expected = slowly(prediction, image, to_student, 0.3, 0.5, (64, 96))
        assert len(expected) > 3
        torch.testing.assert_close(of_image(taught, image), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert taught.labelled.all()
    assert taught.images is batch.images
    assert taught.paths == batch.paths


def test_targets_come_in_the_order_of_their_images():
    taught = pseudo_labels(draw_batch([False, True, False, True]), draw_levels(), draw_head(), SAME, 0.3)
    assert taught.targets[:, 0].unique().tolist() == [0, 1, 2, 3]
    assert (taught.targets[:, 0].diff() >= 0).all()


def test_a_batch_of_labelled_images_stays_as_it_is():
    batch = draw_batch([True, True])
    assert pseudo_labels(batch, draw_levels(2), draw_head(), SAME, 0.1) is batch


def test_an_image_of_which_the_teacher_is_unsure_stays_unlabelled():
    prediction, batch = silent(), draw_batch([False, True, False, False])
    put(prediction, 2, 3, 4, (0.1, 0.9, 0.1))
    put(prediction, 3, 3, 4, (0.1, 0.7, 0.1))
    taught = pseudo_labels(batch, prediction, draw_head(), SAME, confidence=0.8)
    assert taught.labelled.tolist() == [False, True, True, False]
    assert batch.labelled.tolist() == [False, True, False, False]
    # the centre of cell (3, 4), in a frame of 64 x 96, with the sides of the anchor
    expected = torch.tensor([[1, 36 / 96, 28 / 64, 10 / 96, 13 / 64]])
    torch.testing.assert_close(of_image(taught, 2), expected)
    assert not len(of_image(taught, 0))
    assert not len(of_image(taught, 3))


def test_a_teacher_that_is_sure_of_nothing_changes_nothing():
    batch = draw_batch([False, False, False, False])
    taught = pseudo_labels(batch, silent(), draw_head(), SAME, 0.5)
    assert taught.targets.shape == (0, 6)
    assert not taught.labelled.any()


def test_boxes_of_foreign_classes_are_dropped_and_not_renamed():
    """Class 1 of the teacher is foreign, and the second likeliest of a box that is of it."""
    prediction = silent()
    put(prediction, 0, 1, 1, (0.8, 0.95, 0.01))  # foreign, with a confident second choice
    put(prediction, 1, 1, 1, (0.95, 0.8, 0.01))
    classes = match_classes(["a", "b"], ["b", "foreign", "a"], 2, 3)
    taught = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), classes, 0.5)
    assert taught.labelled.tolist() == [False, True, False, False]
    assert taught.targets[:, :2].tolist() == [[1, 1]]


def test_two_classes_of_the_teacher_that_are_one_of_the_students_give_one_box():
    prediction = silent()
    put(prediction, 0, 1, 1, (0.9, 0.1, 0.1))
    put(prediction, 0, 1, 2, (0.1, 0.1, 0.95), x=-2.0)  # nearly the same place
    boxes = [pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), classes, 0.5, iou=0.3).targets
             for classes in (SAME, ClassMap((0, 0), (0, 2), 1, 3))]  # fmt: skip
    assert sorted(boxes[0][:, 1].tolist()) == [0, 2]
    assert boxes[1][:, 1].tolist() == [0]


def test_of_two_classes_of_the_student_that_are_one_of_the_teachers_the_first_is_taken():
    prediction = silent()
    put(prediction, 0, 1, 1, (0.9, 0.1, 0.1))
    taught = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), ClassMap((2, 1), (0, 0), 3, 3), 0.5)
    assert taught.targets[:, 1].tolist() == [2]


def test_overlapping_boxes_are_suppressed_and_only_the_most_confident_are_kept():
    prediction = silent()
    for column, score in enumerate((0.7, 0.9, 0.8)):
        put(prediction, 0, 1, 1 + 4 * column, (score, 0.1, 0.1))
        put(prediction, 0, 2, 1 + 4 * column, (score - 0.1, 0.1, 0.1), y=-2.0)
    taught = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), SAME, 0.5, iou=0.3)
    assert (taught.targets[:, 2] * 96).tolist() == pytest.approx([44, 76, 12])  # by confidence
    few = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), SAME, 0.5, iou=0.3, max_boxes=2)
    assert torch.equal(few.targets, taught.targets[:2])


def test_boxes_are_cut_at_the_borders_and_slivers_are_no_objects():
    prediction = silent()
    put(prediction, 0, 0, 0, (0.9, 0.1, 0.1), x=-20.0, y=-20.0, level=1, anchor=1)  # its centre outside, at (-8, -8)
    put(prediction, 1, 0, 0, (0.9, 0.1, 0.1), x=-20.0, level=0)  # reaches 1 px into the image: centre -4, width 10
    prediction.levels[0][1, 0, 0, 0, 2] = -0.2  # a bit less
    taught = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), SAME, 0.5)
    expected = torch.tensor([[0, 6 / 96, 2.25 / 64, 12 / 96, 4.5 / 64]])
    torch.testing.assert_close(of_image(taught, 0), expected, rtol=1e-4, atol=1e-5)
    assert taught.labelled.tolist() == [True, False, False, False]


def test_a_teacher_that_saw_a_larger_image_gives_the_same_shares_of_it():
    """The frame is that of the teacher's levels, not of the student's images."""
    prediction = silent()
    put(prediction, 0, 3, 4, (0.9, 0.1, 0.1))
    small = draw_batch([False] * 4, size=(32, 48))
    targets = pseudo_labels(small, prediction, draw_head(), SAME, 0.5).targets
    torch.testing.assert_close(targets[:, 2:], torch.tensor([[36 / 96, 28 / 64, 10 / 96, 13 / 64]]))
    assert frame_size(draw_head(), prediction) == (64, 96)


def test_half_precision_and_autocast_decode_in_float32():
    batch, prediction, head = draw_batch([False] * 4), draw_levels(), draw_head()
    rounded = Prediction(tuple(level.bfloat16() for level in prediction.levels))
    expected = pseudo_labels(batch, Prediction(tuple(level.float() for level in rounded.levels)), head, SAME, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        taught = pseudo_labels(batch, rounded, head, SAME, 0.3)
    assert taught.targets.dtype == torch.float32
    torch.testing.assert_close(taught.targets, expected.targets, rtol=1e-5, atol=1e-6)


def test_nothing_of_it_has_a_gradient():
    prediction = Prediction(tuple(level.requires_grad_() for level in draw_levels().levels))
    taught = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), SAME, 0.3)
    assert len(taught.targets)
    assert not taught.targets.requires_grad


def test_numbers_that_are_not_finite_make_no_labels():
    prediction = silent()
    put(prediction, 0, 1, 1, (0.9, 0.1, 0.1))
    prediction.levels[0][0, 0, 1, 1, 0] = math.nan
    prediction.levels[0][1, 0, 1, 1, 4:] = math.nan
    taught = pseudo_labels(draw_batch([False] * 4), prediction, draw_head(), SAME, 0.3)
    assert not len(taught.targets)
    assert not taught.labelled.any()


def test_a_teacher_without_anchors_labels_what_it_is_sure_of():
    head = AnchorFreeDetect(3, (4, 4), STRIDES, reg_max=1)
    levels = [torch.full((2, 4 + 3, 64 // stride, 96 // stride), -8.0) for stride in STRIDES]
    levels[1][1, :, 2, 3] = torch.tensor([0.5, 1.0, 1.5, 0.25, -8.0, 4.0, -8.0])  # left, top, right, bottom, classes
    found = pseudo_labels(draw_batch([True, False]), Prediction(tuple(levels)), head, SAME, 0.5)
    assert found.labelled.all()
    (row,) = found.targets[found.targets[:, 0] == 1]
    left, top, right, bottom = (3.5 - 0.5) * 16, (2.5 - 1) * 16, (3.5 + 1.5) * 16, (2.5 + 0.25) * 16
    box = [(left + right) / 2 / 96, (top + bottom) / 2 / 64, (right - left) / 96, (bottom - top) / 64]
    assert row.tolist() == pytest.approx([1, 1, *box], rel=1e-5)
