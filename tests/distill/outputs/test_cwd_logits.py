"""Spatial distributions of class logits."""

from __future__ import annotations

import math

import pytest
import torch

from distill.features.cwd import ChannelWiseDistillation
from tests.distill.heads import make_levels
from utils.errors import UserError
from utils.types import Progress


def softmax(logits):
    shares = [math.exp(x - max(logits)) for x in logits]
    return [share / sum(shares) for share in shares]


def divergence(own, other, temperature):
    q, p = (softmax([x / temperature for x in logits]) for logits in (own, other))
    return temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))


def class_maps(level):
    """(B, 4 * 8 + 3, H, W) -> for each image and class, the logits of all positions."""
    return [maps.flatten().tolist() for image in level.double() for maps in image[-3:]]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_divergence_of_each_class(temperature, loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("dfl")
    expected = 0.0
    for own, other in zip(student.levels, taught.levels, strict=True):
        pairs = list(zip(class_maps(own), class_maps(other), strict=True))
        expected += sum(divergence(*pair, temperature) for pair in pairs) / len(pairs)
    value = loss_between("cwd_logits", temperature=temperature)(student, taught, draw_batch())
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_it_is_the_feature_loss_of_the_class_maps(loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("direct")
    feature = ChannelWiseDistillation()
    pairs = zip(student.levels, taught.levels, strict=True)
    expected = sum(feature(own[:, -3:], other[:, -3:], None) for own, other in pairs)
    value = loss_between("cwd_logits", teacher="direct")(student, taught, draw_batch())
    torch.testing.assert_close(value, expected)


def test_boxes_have_no_part_in_it(loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("dfl")
    for level in student.levels:
        level.requires_grad_()
    loss_between("cwd_logits")(student, taught, draw_batch()).backward()
    for level in student.levels:
        assert level.grad[:, :-3].abs().sum() == 0
        assert level.grad[:, -3:].abs().sum() > 0


def test_the_strongest_of_a_cells_anchors_speaks(loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("anchors")
    expected = 0.0
    for own, other in zip(student.levels, taught.levels, strict=True):
        rows = other.double().sigmoid()
        scores = rows[..., 4:5] * rows[..., 5:]  # (B, A, H, W, 3)
        best = scores.amax(-1).argmax(1)[:, None, ..., None].expand(-1, 1, -1, -1, 3)
        said = scores.gather(1, best)[:, 0].logit().permute(0, 3, 1, 2)
        maps = [x.flatten().tolist() for image in said for x in image]
        pairs = list(zip(class_maps(own), maps, strict=True))
        expected += sum(divergence(*pair, 1.0) for pair in pairs) / len(pairs)
    value = loss_between("cwd_logits", teacher="anchors")(student, taught, draw_batch())
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_positions_of_a_foreign_class_are_left_out_of_the_softmax(loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("dfl", num_classes=4)
    expected = 0.0
    for own, other in zip(student.levels, taught.levels, strict=True):
        classes = other[:, -4:]
        heard = (classes.argmax(1) != 3) | (classes.amax(1).sigmoid() <= 0.01)
        pairs = [
            (own[image, -3 + k][heard[image]].tolist(), other[image, -4 + k][heard[image]].tolist())
            for image in range(2)
            for k in range(3)
        ]
        expected += sum(divergence(*pair, 1.0) for pair in pairs if pair[0]) / len(pairs)
    loss = loss_between("cwd_logits", other=("cat", "dog", "bird", "car"))
    assert loss(student, taught, draw_batch()).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("own", [("cat", "dog", "bird"), ("cat",)])  # unknown to the teacher; foreign to the student
def test_an_image_of_which_nothing_can_be_compared_teaches_nothing(own, loss_between, draw_batch):
    other = ("cat",) if len(own) == 3 else ("cat", "dog", "bird")
    student, taught = make_levels("dfl", len(own)), make_levels("dfl", len(other))
    for mine, theirs in zip(student.levels, taught.levels, strict=True):
        mine.requires_grad_()
        theirs[1, -len(other) :] = -12.0  # it sees nothing, or something foreign everywhere
        if len(own) == 1:
            theirs[1, -1] = 3.0
    value = loss_between("cwd_logits", own=own, other=other)(student, taught, draw_batch())
    value.backward()
    assert value.isfinite() and value > 0
    for level in student.levels:
        assert level.grad[0].abs().sum() > 0 and level.grad[1].abs().sum() == 0


def test_it_cools_as_its_schedule_says(loss_between, draw_batch):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), draw_batch()
    loss = loss_between("cwd_logits", temperature={"start": 3, "drop": 1, "every": 2, "least": 1})
    loss.temperature.at(Progress(3, 0, 10, 10))
    assert loss(student, taught, batch) == loss_between("cwd_logits", temperature=2.0)(student, taught, batch)


def test_a_temperature_is_a_positive_number(loss_between):
    with pytest.raises(UserError, match="'cwd_logits': temperature: got 0, expected a number above 0"):
        loss_between("cwd_logits", temperature=0)
