from __future__ import annotations

import math

import pytest
import torch

from distill.features.score_weighted import BACKGROUND, ScoreWeighted
from distill.pairs import Lesson
from utils.types import Prediction


@pytest.fixture
def lesson_with(draw_batch, detector):
    """A lesson whose level of stride 8 is this one, (2, 2, 8, 8, 8)."""

    def make(level):
        return Lesson(draw_batch(), 8, Prediction((level, level, level)), detector().head, (8, 16, 32))

    return make


def level_of(objectness, classes=20.0):
    level = torch.zeros(2, 2, 8, 8, 8)
    level[..., 4], level[..., 5:] = objectness, classes
    return level


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_it_is_a_mean_of_squared_differences_weighted_by_the_best_score(lesson_with):
    student, teacher, level = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), 3 * torch.randn(2, 2, 8, 8, 8)
    total = weights = 0.0
    for image in range(2):
        for row in range(8):
            for column in range(8):
                boxes = level[image, :, row, column].tolist()
                score = max(sigmoid(box[4]) * sigmoid(max(box[5:])) for box in boxes)
                score = score if score > BACKGROUND else 0.0
                pairs = zip(*(x[image, :, row, column].tolist() for x in (student, teacher)), strict=True)
                total += score * sum((a - b) ** 2 for a, b in pairs) / 4
                weights += score
    value = ScoreWeighted()(student, teacher, lesson_with(level))
    assert weights > 1
    assert value.item() == pytest.approx(total / weights, rel=1e-4)


def test_where_the_teacher_sees_nothing_it_teaches_nothing(lesson_with):
    student = torch.randn(2, 4, 8, 8).requires_grad_()
    value = ScoreWeighted()(student, torch.randn(2, 4, 8, 8), lesson_with(level_of(-6.0)))
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()


def test_a_single_faint_guess_is_not_inflated(lesson_with):
    student, teacher, level = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8), level_of(-20.0)
    level[0, 1, 3, 4, 4] = -3
    assert ScoreWeighted()(student, teacher, lesson_with(level)).item() == pytest.approx(sigmoid(-3), rel=1e-4)


def test_labels_are_not_looked_at(lesson_with):
    student, teacher, lesson = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), lesson_with(level_of(0.0))
    bare = lesson._replace(batch=lesson.batch._replace(targets=lesson.batch.targets[:0]))
    assert torch.equal(ScoreWeighted()(student, teacher, lesson), ScoreWeighted()(student, teacher, bare))
