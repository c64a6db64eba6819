from __future__ import annotations

import math

import pytest
import torch

from distill.features.batch_similarity import BatchSimilarity
from utils.errors import UserError


def similarities(x, kind):
    """By loops, (B, B)."""
    images = [image.flatten().tolist() for image in x]
    matrix = [[sum(u * v for u, v in zip(a, b, strict=True)) for b in images] for a in images]
    if kind == "cosine":
        return [[matrix[i][j] / math.sqrt(matrix[i][i] * matrix[j][j]) for j in range(len(x))] for i in range(len(x))]
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in matrix]


@pytest.mark.parametrize(("kind", "pairs"), [("rows", 4), ("cosine", 16)])
def test_it_is_the_squared_difference_of_similarities_between_images(kind, pairs):
    student, teacher = torch.randn(4, 3, 5, 4), torch.randn(4, 6, 5, 4) + 0.3
    own, shown = (similarities(x, kind) for x in (student, teacher))
    total = sum((own[i][j] - shown[i][j]) ** 2 for i in range(4) for j in range(4))
    value = BatchSimilarity(kind)(student, teacher, None)
    assert value.item() == pytest.approx(total / pairs, rel=1e-4)


@pytest.mark.parametrize("kind", ["rows", "cosine"])
def test_size_does_not_depend_on_how_often_a_batch_has_its_images(kind):
    student, teacher, loss = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), BatchSimilarity(kind)
    twice = loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), None)
    torch.testing.assert_close(twice, loss(student, teacher, None))


@pytest.mark.parametrize("kind", ["rows", "cosine"])
def test_one_image_has_no_relations_and_the_value_stays_in_the_graph(kind):
    student = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = BatchSimilarity(kind)(student, torch.randn(1, 5, 4, 4), None)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-6


def test_cosines_do_not_feel_how_loud_an_image_is_and_rows_do():
    student, teacher, louder = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4), torch.tensor([1.0, 5, 0.2])
    louder = louder[:, None, None, None]
    cosine, published = BatchSimilarity("cosine"), BatchSimilarity()
    torch.testing.assert_close(cosine(louder * student, teacher, None), cosine(student, teacher, None))
    assert published(louder * student, teacher, None) > 2 * published(student, teacher, None)


def test_a_misspelt_kind_is_answered():
    with pytest.raises(UserError, match="kind: got 'cosin'; did you mean 'cosine'"):
        BatchSimilarity("cosin")
