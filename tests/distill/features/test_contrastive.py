from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.features.contrastive import Contrastive


def embeddings(x):
    """By loops: the features of all positions of all images, with length 1."""
    features = [feature for image in x for feature in image.flatten(1).T.tolist()]
    return [[v / math.sqrt(sum(w * w for w in feature)) for v in feature] for feature in features]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_cross_entropy_of_finding_ones_own_position_among_all(temperature):
    student, teacher = torch.randn(2, 4, 3, 2), torch.randn(2, 4, 3, 2)
    own, shown = embeddings(student), embeddings(teacher)
    total = 0.0
    for place, one in enumerate(own):
        heights = [math.exp(sum(u * v for u, v in zip(one, other, strict=True)) / temperature) for other in shown]
        total -= math.log(heights[place] / sum(heights))
    value = Contrastive(temperature)(student, teacher, None)
    assert value.item() == pytest.approx(total / len(own) / math.log(12), rel=1e-5)


@pytest.mark.parametrize("images", [1, 3, 8])
def test_a_blank_student_pays_1_in_a_batch_of_any_size(images):
    value = Contrastive()(torch.zeros(images, 4, 5, 5), torch.randn(images, 4, 5, 5), None)
    assert value.item() == pytest.approx(1, rel=1e-6)


def test_positives_are_of_the_same_image_and_the_same_position():
    teacher, loss = torch.randn(3, 16, 4, 4), Contrastive()
    same = loss(teacher, teacher, None)
    assert 0 < same < 0.5 * loss(teacher.roll(1, 0), teacher, None)
    assert same < 0.5 * loss(teacher.roll(1, 3), teacher, None)


def test_big_maps_are_averaged_to_fewer_positions():
    student, teacher = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    small = [F.avg_pool2d(x, 2) for x in (student, teacher)]
    torch.testing.assert_close(Contrastive()(student, teacher, None), Contrastive()(*small, None))


def test_a_single_embedding_has_nobody_to_be_mistaken_for():
    student = torch.randn(1, 4, 1, 1, requires_grad=True)
    value = Contrastive()(student, torch.randn(1, 4, 1, 1), None)
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().sum() == 0
