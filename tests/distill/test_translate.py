"""The teacher's words in the student's: the same boxes, whatever anchors, grids and image sizes."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from distill.translate import Translator, nearest_anchors
from models.heads.anchor import Detect
from utils.errors import UserError
from utils.types import Prediction

STUDENT = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]]
SHUFFLED = [[36, 26, 12, 14, 15, 28], [65, 110, 33, 70, 58, 48]]  # near the student's, in another order
TWO = [[12, 20, 30, 25], [70, 60, 40, 90]]
STRIDES = (8, 16)


def head_of(anchors, strides=STRIDES):
    return Detect(3, anchors, [4] * len(strides), strides)


def levels_of(head, height, width, images=2, spread=0.8):
    """Raw levels for images of this size; boxes are not far from the anchors."""
    strides = [round(stride) for stride in head.strides.tolist()]
    shapes = [(images, head.num_anchors, height // stride, width // stride, 8) for stride in strides]
    return Prediction(tuple(spread * torch.randn(shape) for shape in shapes))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def boxed(vector, anchor, row, column, stride):
    x, y, w, h = (sigmoid(value) for value in vector[:4])
    return [
        (2 * x - 0.5 + column) * stride,
        (2 * y - 0.5 + row) * stride,
        (2 * w) ** 2 * anchor[0],
        (2 * h) ** 2 * anchor[1],
    ]


def overlap(one, other):
    inner = min(one[0], other[0]) * min(one[1], other[1])
    return inner / (one[0] * one[1] + other[0] * other[1] - inner)


def expressed(box, anchor, row, column, stride):
    """The nearest that a head can say in this cell, and whether it is the box itself."""
    low, high = 2e-4, 2 - 2e-4
    limits = [
        ((low - 0.5 + cell) * stride, (high - 0.5 + cell) * stride) for cell in (column, row)
    ] + [(low**2 * side, high**2 * side) for side in anchor]  # fmt: skip
    nearest = [min(max(value, least), most) for value, (least, most) in zip(box, limits, strict=True)]
    return nearest, nearest == box


def translated_slowly(student_head, teacher_head, index, taught, grid, scale=(1.0, 1.0)):
    """Boxes and scores (B, A, H, W, 8) that the student's head would decode, one cell at a time, and how many of the
    boxes it can say exactly."""
    stride = student_head.strides[index].item()
    own, other = student_head.anchors_px[index].tolist(), teacher_head.anchors_px[index].tolist()
    images, (rows, columns), (height, width) = len(taught), grid, taught.shape[2:4]
    result, exact = torch.zeros(images, len(own), rows, columns, 8), 0
    for a, anchor in enumerate(own):
        seen = [(w / scale[1], h / scale[0]) for w, h in other]
        nearest = max(range(len(seen)), key=lambda k: overlap(anchor, seen[k]))
        for image in range(images):
            for row in range(rows):
                for column in range(columns):
                    covered = [
                        (r, c)
                        for r in range(height)
                        for c in range(width)
                        # the teacher's cell and the student's have an area in common
                        if r * rows < (row + 1) * height and (r + 1) * rows > row * height
                        if c * columns < (column + 1) * width and (c + 1) * columns > column * width
                    ]
                    plane = taught[image, nearest]
                    r, c = max(covered, key=lambda cell: plane[cell][4].item())
                    vector = plane[r, c].tolist()
                    x, y, w, h = boxed(vector, other[nearest], r, c, stride)
                    box = [x * columns / width, y * rows / height, w * columns / width, h * rows / height]
                    nearest_box, same = expressed(box, anchor, row, column, stride)
                    exact += same
                    result[image, a, row, column] = torch.tensor(nearest_box + vector[4:])
    return result, exact / result[..., 0].numel()


def check(student_head, teacher_head, size, seen, least_exact, images=1):
    """Compares every level with the slow loop; `size` and `seen` are the images of the student and the teacher."""
    taught, student = levels_of(teacher_head, *seen, images), levels_of(student_head, *size, images)
    scale = (seen[0] / size[0], seen[1] / size[1])
    translated = Translator(student_head, teacher_head, scale).translate(taught, student)
    for index, level in enumerate(translated.levels):
        assert level.shape == student.levels[index].shape
        grid = tuple(level.shape[2:4])
        expected, exact = translated_slowly(student_head, teacher_head, index, taught.levels[index], grid, scale)
        assert exact >= least_exact
        torch.testing.assert_close(student_head.decode_boxes(index, level), expected[..., :4], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(level[..., 4:], expected[..., 4:], rtol=0, atol=1e-6)


# -- nothing to do ----------------------------------------------------------------------------------------------------


def test_the_same_anchors_and_size_give_the_very_same_tensors():
    student, teacher = head_of(STUDENT), head_of(STUDENT)
    taught = levels_of(teacher, 64, 96)
    translated = Translator(student, teacher).translate(taught, levels_of(student, 64, 96))
    assert all(one is other for one, other in zip(translated.levels, taught.levels, strict=True))


@pytest.mark.parametrize("factor, same", [(1.005, True), (1.03, False)])
def test_anchors_within_a_hundredth_are_the_same(factor, same):
    student, teacher = head_of(STUDENT), head_of(STUDENT)
    teacher.set_anchors_px(teacher.anchors_px * factor)
    taught = levels_of(teacher, 64, 64)
    translated = Translator(student, teacher).translate(taught, levels_of(student, 64, 64))
    assert (translated.levels[0] is taught.levels[0]) is same


def test_levels_that_the_student_does_not_have_stay_as_they_are_in_the_teachers_order():
    student = head_of(STUDENT, (8, 16))
    teacher = Detect(3, [SHUFFLED[1], SHUFFLED[0], TWO[1] + [90, 90]], [4] * 3, [16, 8, 64])
    taught = levels_of(teacher, 64, 64)
    translated = Translator(student, teacher).translate(taught, levels_of(student, 64, 64))
    assert [level.shape for level in translated.levels] == [level.shape for level in taught.levels]
    assert translated.levels[2] is taught.levels[2]
    for level in (0, 1):
        assert not torch.equal(translated.levels[level], taught.levels[level])


def test_without_a_common_stride_nothing_can_be_translated():
    with pytest.raises(UserError, match="no level of one stride"):
        Translator(head_of(STUDENT, (8, 16)), head_of(STUDENT, (32, 64)))


# -- other anchors ----------------------------------------------------------------------------------------------------


def test_nearest_anchors_equal_a_slow_loop():
    for _ in range(20):
        student, teacher = 5 + 200 * torch.rand(4, 2), 5 + 200 * torch.rand(6, 2)
        nearest, iou = nearest_anchors(student, teacher)
        for a, anchor in enumerate(student.tolist()):
            overlaps = [overlap(anchor, other) for other in teacher.tolist()]
            assert nearest[a] == overlaps.index(max(overlaps))
            assert iou[a].item() == pytest.approx(max(overlaps), rel=1e-5)


@pytest.mark.parametrize("anchors", [SHUFFLED, TWO], ids=["shuffled", "fewer"])
def test_the_student_reads_the_boxes_of_the_nearest_anchor(anchors):
    check(head_of(STUDENT), head_of(anchors), (64, 96), (64, 96), least_exact=0.9)


def test_more_anchors_than_the_student_has():
    check(head_of(TWO), head_of(STUDENT), (64, 96), (64, 96), least_exact=0.9)


def test_what_the_student_cannot_say_becomes_the_nearest_that_it_can():
    student, teacher = head_of([[4, 4], [4, 4]]), head_of([[100, 6], [6, 100]])
    taught = levels_of(teacher, 32, 32)
    boxes = student.decode_boxes(0, Translator(student, teacher).translate(taught, taught).levels[0])
    other = teacher.decode_boxes(0, taught.levels[0])
    torch.testing.assert_close(boxes[..., 2], other[..., 2].clamp(max=16), rtol=1e-3, atol=0)  # 4 anchors
    assert (other[..., 2] > 17).float().mean() > 0.8
    torch.testing.assert_close(boxes[..., [0, 1, 3]], other[..., [0, 1, 3]], rtol=1e-3, atol=1e-2)


# -- other image sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [STUDENT, SHUFFLED, TWO], ids=["same", "shuffled", "fewer"])
def test_a_teacher_that_saw_twice_the_size(anchors):
    check(head_of(STUDENT), head_of(anchors), (64, 32), (128, 64), least_exact=0.8)


def test_a_teacher_that_saw_half_the_size():
    # each of its cells is four of the student's, most of which cannot reach the centre
    check(head_of(STUDENT), head_of(STUDENT), (128, 64), (64, 32), least_exact=0.1)


@pytest.mark.parametrize("seen", [(96, 48), (80, 48), (128, 32)], ids=["1.5", "1.25 by 1.5", "2 by 1"])
def test_sizes_whose_cells_overlap(seen):
    check(head_of(STUDENT), head_of(SHUFFLED), (64, 32), seen, least_exact=0.7)


def test_of_the_cells_that_one_covers_the_most_certain_speaks():
    student, teacher = head_of([[20, 20]], (8,)), head_of([[40, 40]], (8,))
    level = torch.full((1, 1, 4, 4, 8), -4.0)
    level[0, 0, 3, 2, 4] = 5.0  # the teacher's cell (3, 2) lies in the student's (1, 1)
    level[0, 0, 3, 2, :4] = 0.0  # its centre, the size of the anchor
    level[0, 0, 3, 2, 6] = 7.0
    translated = Translator(student, teacher, (2.0, 2.0)).translate(
        Prediction((level,)), Prediction((torch.zeros(1, 1, 2, 2, 8),))
    )
    (level,) = translated.levels
    assert level[0, 0, 1, 1, 4:].tolist() == [5, -4, 7, -4]
    assert (level[..., 4] > 0).sum() == 1
    x, y = (2 + 0.5) * 8 / 2, (3 + 0.5) * 8 / 2
    torch.testing.assert_close(student.decode_boxes(0, level)[0, 0, 1, 1], torch.tensor([x, y, 20, 20]))


def test_anchors_are_alike_in_pixels_of_the_students_images():
    student, teacher = head_of([[10, 10, 20, 20]], (8,)), head_of([[10, 10, 40, 40]], (8,))
    level = torch.zeros(1, 2, 4, 4, 8)
    level[:, 0, ..., 4], level[:, 1, ..., 4] = 1, 2  # so that one sees who speaks
    smaller = Prediction((torch.zeros(1, 2, 2, 2, 8),))
    at_twice = Translator(student, teacher, (2.0, 2.0)).translate(Prediction((level,)), smaller)
    assert at_twice.levels[0][0, :, 0, 0, 4].tolist() == [1, 2]  # 5 and 20 for 10 and 20
    level_of_same_size = Prediction((level,))
    alike = Translator(student, teacher).translate(level_of_same_size, level_of_same_size)
    assert alike.levels[0][0, :, 0, 0, 4].tolist() == [1, 1]  # 10 and 40: 20 is as near to 10 as to 40, the first wins


# -- manners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_teachers_number_format_is_kept_and_arithmetic_is_float32(dtype):
    student, teacher = head_of(STUDENT), head_of(SHUFFLED)
    half = Prediction(tuple(level.to(dtype) for level in levels_of(teacher, 128, 128).levels))
    whole = Prediction(tuple(level.float() for level in half.levels))
    translator, grid = Translator(student, teacher, (2.0, 2.0)), levels_of(student, 64, 64)
    pairs = zip(translator.translate(half, grid).levels, translator.translate(whole, grid).levels, strict=True)
    for one, other in pairs:
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype))


def test_no_gradient_and_no_heads_are_carried_along():
    class Holder(nn.Module):
        def __init__(self, translator):
            super().__init__()
            self.translator = translator

    student, teacher = head_of(STUDENT), head_of(SHUFFLED)
    holder = Holder(Translator(student, teacher))
    assert not holder.state_dict() and not list(holder.parameters())
    taught = Prediction(tuple(level.requires_grad_() for level in levels_of(teacher, 64, 64).levels))
    translated = holder.translator.translate(taught, levels_of(student, 64, 64))
    assert not any(level.requires_grad for level in translated.levels)


def test_saturated_logits_stay_finite():
    student, teacher = head_of(STUDENT), head_of(SHUFFLED)
    for value in (-1e4, 1e4):
        taught = Prediction(tuple(torch.full_like(level, value) for level in levels_of(teacher, 128, 128).levels))
        translated = Translator(student, teacher, (2.0, 2.0)).translate(taught, levels_of(student, 64, 64))
        assert all(level.isfinite().all() and level[..., :4].abs().max() < 9.3 for level in translated.levels)


def test_the_mapping_is_said_once_and_only_where_there_is_one(caplog):
    student = head_of(STUDENT)
    with caplog.at_level(logging.INFO):
        Translator(student, head_of(STUDENT))
    assert not caplog.messages
    with caplog.at_level(logging.INFO):
        translator = Translator(student, head_of(SHUFFLED))
        translator.translate(levels_of(student, 64, 64), levels_of(student, 64, 64))
    assert len(caplog.messages) == 2
    iou = overlap((10, 13), (12, 14))
    assert caplog.messages[0].startswith(
        f"stride 8: student anchors take the teacher's nearest: 10,13 <- 12,14 (IoU {iou:.2f})  16,30 <- 15,28"
    )


def test_another_size_is_said_too(caplog):
    with caplog.at_level(logging.INFO):
        Translator(head_of([[10, 10]], (8,)), head_of([[10, 10]], (8,)), (2.0, 2.0))
    assert caplog.messages == [
        "stride 8: student anchors take the teacher's nearest (in pixels of the student's images): "
        "10,10 <- 5,5 (IoU 0.25)"
    ]
