from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.features.pairwise import PairwiseSimilarity
from distill.features.position_similarity import PositionSimilarity


def ranking(x, image, position, temperature):
    """By loops: a softmax over cosine similarities to all other positions."""
    features = x[image].flatten(1).T.tolist()
    lengths = [math.sqrt(sum(v * v for v in feature)) for feature in features]
    heights = []
    for other in range(len(features)):
        if other != position:
            product = sum(u * v for u, v in zip(features[position], features[other], strict=True))
            heights.append(math.exp(product / (lengths[position] * lengths[other]) / temperature))
    return [height / sum(heights) for height in heights]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_divergence_of_what_each_position_resembles(temperature):
    student, teacher = torch.randn(2, 3, 3, 4), torch.randn(2, 5, 3, 4)
    total = 0.0
    for image in range(2):
        for position in range(12):
            q, p = (ranking(x, image, position, temperature) for x in (student, teacher))
            total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    value = PositionSimilarity(temperature)(student, teacher, None)
    assert value.item() == pytest.approx(total / (2 * 12), rel=1e-4)


@pytest.mark.parametrize(
    ("size", "positions", "grid"), [((8, 8), 16, (4, 4)), ((6, 9), 24, (4, 6)), ((2, 50), 10, (1, 10))]
)
def test_big_maps_are_averaged_to_fewer_positions(size, positions, grid):
    student, teacher = torch.randn(2, 3, *size), torch.randn(2, 5, *size)
    small = [F.adaptive_avg_pool2d(x, grid) for x in (student, teacher)]
    expected = PositionSimilarity()(*small, None)
    torch.testing.assert_close(PositionSimilarity(positions=positions)(student, teacher, None), expected)


def test_a_map_of_one_position_says_nothing():
    student = torch.randn(2, 3, 1, 1, requires_grad=True)
    value = PositionSimilarity()(student, torch.randn(2, 5, 1, 1), None)
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().sum() == 0


def test_unlike_pairwise_it_does_not_feel_what_all_similarities_have_in_common():
    """Features with a common part of their own, orthogonal to all else, have cosines closer together by a factor."""
    teacher = F.normalize(torch.randn(1, 4, 4, 4), dim=1)
    student = torch.cat((teacher, torch.ones(1, 1, 4, 4)), 1)  # cosines (c + 1) / 2
    loss = PositionSimilarity(temperature=1.0)
    halved = PositionSimilarity(temperature=0.5)
    own, shown = halved._ranking(student), loss._ranking(teacher)
    torch.testing.assert_close(own, shown)
    assert PairwiseSimilarity()(student, teacher, None).item() > 1e-2
