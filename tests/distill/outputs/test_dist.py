"""Correlations of scores."""

from __future__ import annotations

import pytest
import torch

from losses.assignment import TaskAlignedAssigner
from tests.distill.heads import make_levels
from utils.errors import UserError
from utils.types import Prediction


def rows_of(prediction, classes=3):
    """(N, C) logits of all cells of levels without anchors, image after image within a level."""
    return torch.cat([level[:, -classes:].permute(0, 2, 3, 1).flatten(0, 2) for level in prediction.levels]).double()


@pytest.fixture
def unlabelled(draw_batch):
    """Without labels the cells compared are those where the teacher's score reaches the threshold."""
    batch = draw_batch()
    return batch._replace(labelled=torch.zeros_like(batch.labelled))


def correlation(first, second):
    n = len(first)
    mean, other_mean = sum(first) / n, sum(second) / n
    both = sum((x - mean) * (y - other_mean) for x, y in zip(first, second, strict=True))
    spread = sum((x - mean) ** 2 for x in first) * sum((y - other_mean) ** 2 for y in second)
    return both / spread**0.5


def parts(mine, theirs):
    """1 - correlation between classes, and within a class."""
    between = [1 - correlation(x, y) for x, y in zip(mine.tolist(), theirs.tolist(), strict=True)]
    within = [1 - correlation(x, y) for x, y in zip(mine.T.tolist(), theirs.T.tolist(), strict=True)]
    return sum(between) / len(between), sum(within) / len(within)


@pytest.mark.parametrize("probabilities", ["sigmoid", "softmax"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_is_its_formula(temperature, probabilities, loss_between, unlabelled):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), unlabelled
    seen = rows_of(taught).sigmoid().amax(-1) >= 0.3
    assert 10 < seen.sum() < len(seen)
    soft = torch.sigmoid if probabilities == "sigmoid" else lambda x: x.softmax(-1)
    inter, intra = parts(*(soft(rows_of(side)[seen] / temperature) for side in (student, taught)))
    options = {"temperature": temperature, "probabilities": probabilities, "threshold": 0.3}
    for weights in ((1, 1), (0, 2), (0.5, 0)):
        loss = loss_between("dist", inter=weights[0], intra=weights[1], **options)
        expected = temperature**2 * (weights[0] * inter + weights[1] * intra)
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-3)


def test_a_student_that_is_in_proportion_has_learnt_it_all(loss_between, unlabelled):
    """Between classes: half the scores, shifted, are as good as the teacher's."""
    taught = make_levels("dfl")
    own = []
    for level in taught.levels:
        own.append(torch.cat((level[:, :-3], (0.2 + level[:, -3:].sigmoid() / 2).logit()), dim=1))
    assert loss_between("dist")(Prediction(tuple(own)), taught, unlabelled).item() == pytest.approx(0, abs=1e-5)


def test_without_labels_cells_in_which_the_teacher_sees_nothing_have_no_part(loss_between, unlabelled):
    student, taught = make_levels("dfl"), make_levels("dfl")
    for level in student.levels:
        level.requires_grad_()
    loss_between("dist")(student, taught, unlabelled).backward()
    for own, other in zip(student.levels, taught.levels, strict=True):
        seen = other[:, -3:].sigmoid().amax(1) >= 0.25
        pulled = own.grad[:, -3:].abs().sum(1) > 0
        assert torch.equal(pulled, seen)


def test_with_labels_it_compares_the_cells_that_answer_for_an_object(loss_between, draw_batch):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), draw_batch()
    for level in student.levels:
        level.requires_grad_()
    loss_between("dist")(student, taught, batch).backward()
    strides = torch.tensor([8.0, 16.0, 32.0])
    found = TaskAlignedAssigner().on_levels(student.levels, strides, 3, batch).on_levels(student.levels)
    for level, own in zip(student.levels, found, strict=True):
        assert torch.equal(level.grad[:, -3:].abs().sum(1) > 0, own.positive)
    assert sum(own.positive.sum() for own in found) >= 3


@pytest.mark.parametrize("cells", [0, 1])
def test_without_two_cells_there_is_no_relation_within_a_class(cells, loss_between, unlabelled):
    student, taught = make_levels("dfl"), make_levels("dfl")
    for level in (*taught.levels, *student.levels):
        level[:, -3:] = -20.0
    if cells:
        taught.levels[0][0, -3:, 2, 2] = torch.tensor([3.0, 0.0, 1.0])
        student.levels[0][0, -3:, 2, 2] = torch.tensor([0.0, 2.0, 1.0])
    for level in student.levels:
        level.requires_grad_()
    value = loss_between("dist", inter=0, intra=1)(student, taught, unlabelled)
    value.backward()
    assert value.item() == 0
    assert (loss_between("dist")(student, taught, unlabelled).item() > 0.1) == bool(cells)


def test_a_single_class_has_relations_between_cells_alone(loss_between, unlabelled):
    student, taught = make_levels("dfl", num_classes=1), make_levels("dfl", num_classes=1)
    options = {"own": ("cat",), "other": ("cat",)}
    unlabelled.targets[:, 1] = 0
    assert loss_between("dist", inter=1, intra=0, **options)(student, taught, unlabelled).item() == 0
    assert loss_between("dist", **options)(student, taught, unlabelled).item() > 0.1
    with pytest.raises(UserError, match=r"'dist': probabilities: softmax compares .* only one in common; use sigmoid"):
        loss_between("dist", probabilities="softmax", **options)


def test_options_are_checked(loss_between):
    with pytest.raises(UserError, match="'dist': inter and intra are both 0"):
        loss_between("dist", inter=0, intra=0)
    with pytest.raises(UserError, match="'dist': probabilities: got 'sofmax'; did you mean 'softmax'"):
        loss_between("dist", probabilities="sofmax")
    with pytest.raises(UserError, match="'dist': threshold: got 2, expected a number from 0 to 1"):
        loss_between("dist", threshold=2)
