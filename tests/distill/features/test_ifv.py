from __future__ import annotations

import math

import pytest
import torch

from distill.features.ifv import IntraClassVariation, _groups
from distill.pairs import Lesson
from utils.types import Batch


def lesson_of(targets, images, labelled=None):
    labelled = torch.ones(images, dtype=torch.bool) if labelled is None else torch.tensor(labelled)
    return Lesson(Batch(torch.zeros(images, 3, 64, 64), targets, labelled), 8, None, torch.nn.Identity())


def class_at(targets, image, y, x, height, width):
    """Of the smallest box that covers more than an edge of the position, None for the background."""
    found = None
    for index, label, cx, cy, w, h in targets.tolist():
        inside = (
            cx - w / 2 < (x + 1) / width
            and cx + w / 2 > x / width
            and cy - h / 2 < (y + 1) / height
            and cy + h / 2 > y / height
        )
        if int(index) == image and inside and (found is None or w * h < found[0]):
            found = w * h, int(label)
    return None if found is None else found[1]


def cosine(a, b):
    lengths = [math.sqrt(sum(v * v for v in x)) for x in (a, b)]
    return sum(u * v for u, v in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def slow(student, teacher, targets, labelled):
    """One image, one position at a time."""
    height, width = student.shape[2:]
    values = []
    for image in range(len(student)):
        if not labelled[image]:
            continue
        places = [(y, x) for y in range(height) for x in range(width)]
        classes = {place: class_at(targets, image, *place, height, width) for place in places}
        maps = []
        for source in (student, teacher):
            features = {(y, x): source[image, :, y, x].tolist() for y, x in places}
            similar = []
            for place in places:
                members = [features[other] for other in places if classes[other] == classes[place]]
                prototype = [sum(values) / len(members) for values in zip(*members, strict=True)]
                similar.append(cosine(features[place], prototype))
            maps.append(similar)
        values += [(a - b) ** 2 for a, b in zip(*maps, strict=True)]
    return sum(values) / len(values)


# two boxes of one class in one image, one inside another, the same class in two images, an image without objects
TARGETS = torch.tensor(
    [
        [0, 1, 0.20, 0.30, 0.31, 0.43],
        [2, 1, 0.50, 0.50, 0.77, 0.63],
        [0, 1, 0.80, 0.70, 0.21, 0.33],
        [2, 0, 0.50, 0.40, 0.27, 0.31],
        [0, 4, 0.80, 0.20, 0.17, 0.11],
    ]
)


@pytest.mark.parametrize("labelled", [[True, True, True], [False, True, True]])
def test_it_compares_each_positions_likeness_to_its_class_in_its_image(labelled):
    student, teacher = torch.randn(3, 4, 7, 6), torch.randn(3, 5, 7, 6)
    value = IntraClassVariation()(student, teacher, lesson_of(TARGETS, 3, labelled))
    assert value.item() == pytest.approx(slow(student, teacher, TARGETS, labelled), rel=1e-4)


def test_without_boxes_all_is_background():
    student, teacher = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 5, 5)
    value = IntraClassVariation()(student, teacher, lesson_of(TARGETS[:0], 2))
    assert value.item() == pytest.approx(slow(student, teacher, TARGETS[:0], [True, True]), rel=1e-4)
    assert value > 0


def test_without_labels_it_is_0_and_stays_in_the_graph():
    student = torch.randn(2, 4, 5, 5, requires_grad=True)
    value = IntraClassVariation()(student, torch.randn(2, 3, 5, 5), lesson_of(TARGETS[:1], 2, [False, False]))
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().sum() == 0


def test_the_value_is_the_mean_of_those_of_the_images():
    student, teacher, loss = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6), IntraClassVariation()
    alone = []
    for image in range(3):
        targets = TARGETS[TARGETS[:, 0] == image] * torch.tensor([0, 1, 1, 1, 1, 1])
        alone.append(loss(student[image : image + 1], teacher[image : image + 1], lesson_of(targets, 1)))
    together = loss(student, teacher, lesson_of(TARGETS, 3))
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_boxes_of_one_image_and_class_are_one_group():
    targets = torch.zeros(200, 6)
    targets[:, 0], targets[:, 1] = torch.randint(0, 4, (200,)), torch.randint(0, 90, (200,))
    groups = _groups(targets)
    for i in range(200):
        same = (targets[:, :2] == targets[i, :2]).all(1)
        assert torch.equal(groups == groups[i], same)
    assert groups.min() == 0
    assert groups.max() < 200
    assert _groups(targets[:0]).shape == (0,)
