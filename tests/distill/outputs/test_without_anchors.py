"""Values of output losses where a head has no anchors, against loops over cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torchvision.ops import complete_box_iou, generalized_box_iou

from distill.classes import match_classes
from distill.outputs import OUTPUTS
from distill.outputs.base import Sides
from losses.assignment import TaskAlignedAssigner
from losses.matching import Matcher
from tests.distill.heads import KINDS, Gains, make_head, make_levels, three_levels

NAMES = ("cat", "dog", "bird")
PAIRS = [("dfl", "dfl"), ("dfl", "more bins"), ("direct", "dfl"), ("dfl", "anchors"), ("anchors", "direct")]
GAINS = three_levels(Gains())


class Side(NamedTuple):
    scores: list[float]  # probabilities
    box: tuple[float, float, float, float]  # left, top, right, bottom in cells


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def logit(p):
    return math.log(p / (1 - p))


def entropy(q, p):
    return -p * math.log(q) - (1 - p) * math.log(1 - q)


def expected(bins):
    heights = [math.exp(value) for value in bins]
    return sum(index * height for index, height in enumerate(heights)) / sum(heights)


def read(kind, level, anchors, image, row, column) -> Side:
    """What a head says in a cell: with anchors, the strongest of them."""
    if kind != "anchors":
        numbers, bins = level[image, :, row, column].tolist(), KINDS[kind]["reg_max"]
        sides = [numbers[i * bins] if bins == 1 else expected(numbers[i * bins : (i + 1) * bins]) for i in range(4)]
        left, top, right, bottom = sides
        box = column + 0.5 - left, row + 0.5 - top, column + 0.5 + right, row + 0.5 + bottom
        return Side([sigmoid(x) for x in numbers[4 * bins :]], box)
    found = []
    for (wide, high), numbers in zip(anchors.tolist(), level[image, :, row, column].tolist(), strict=True):
        x, y = (2 * sigmoid(v) - 0.5 + at for v, at in zip(numbers[:2], (column, row), strict=True))
        w, h = ((2 * sigmoid(v)) ** 2 * side for v, side in zip(numbers[2:4], (wide, high), strict=True))
        scores = [sigmoid(numbers[4]) * sigmoid(v) for v in numbers[5:]]
        found.append(Side(scores, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    return max(found, key=lambda side: max(side.scores))


class Pair:
    """Two heads with levels of theirs, and all cells of both."""

    def __init__(self, student, teacher):
        self.heads = make_head(student), make_head(teacher)
        self.sides = Sides(*self.heads, match_classes(NAMES, NAMES, 3, 3), GAINS)
        self.student, self.taught = make_levels(student), make_levels(teacher)
        for kind, side in ((student, self.student), (teacher, self.taught)):
            for level in side.levels:  # the right third is background
                columns = slice(level.shape[3] * 2 // 3, None)
                (level[..., columns, 4] if kind == "anchors" else level[:, -3:, :, columns]).sub_(14)
        self.cells = {}  # place -> (student, teacher)
        for number, (own, other) in enumerate(zip(self.student.levels, self.taught.levels, strict=True)):
            size = 8 // 2**number
            for place in ((b, y, x) for b in range(2) for y in range(size) for x in range(size)):
                self.cells[(number, *place)] = tuple(
                    read(kind, level, getattr(head, "anchors", [None] * 3)[number], *place)
                    for kind, level, head in zip((student, teacher), (own, other), self.heads, strict=True)
                )

    @property
    def seen(self):
        """Where either side gives a score above 0.01."""
        return {at: pair for at, pair in self.cells.items() if max(*pair[0].scores, *pair[1].scores) > 0.01}

    @property
    def belief(self):
        return sum(max(theirs.scores) for _, theirs in self.seen.values())

    def loss(self, name, batch, **options):
        return OUTPUTS[name](self.sides, **options)(self.student, self.taught, batch).item()


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_bckd_is_its_formula(student, teacher, draw_batch):
    pair = Pair(student, teacher)
    assert 0 < len(pair.seen) < len(pair.cells)
    boxes = labels = 0.0
    for mine, theirs in pair.seen.values():
        scores = list(zip(mine.scores, theirs.scores, strict=True))
        overlap = generalized_box_iou(*(torch.tensor([side.box], dtype=torch.float64) for side in (mine, theirs)))
        boxes += max(abs(p - q) for q, p in scores) * (1 - overlap.item())
        labels += sum(abs(p - q) * entropy(q, p) for q, p in scores) / 3
    found = (4 * GAINS.box * boxes + GAINS.cls * labels) / pair.belief
    assert pair.loss("bckd", draw_batch()) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_kl_of_scores_is_its_formula(student, teacher, weighted, temperature, draw_batch):
    pair, total = Pair(student, teacher), 0.0
    for mine, theirs in pair.seen.values():
        soft = [[sigmoid(logit(score) / temperature) for score in side.scores] for side in (mine, theirs)]
        divergence = sum(entropy(q, p) - entropy(p, p) for q, p in zip(*soft, strict=True)) / 3
        total += temperature**2 * divergence * (max(theirs.scores) if weighted else 1)
    found = pair.loss("kl", draw_batch(), temperature=temperature, score_weighted=weighted)
    assert found == pytest.approx(GAINS.cls * total / pair.belief, rel=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_softmax_kl_compares_scores(student, teacher, threshold, draw_batch):
    pair, values = Pair(student, teacher), []
    for mine, theirs in pair.cells.values():
        if max(theirs.scores) < threshold:
            continue
        heights = [[math.exp(logit(score) / 3) for score in side.scores] for side in (mine, theirs)]
        q, p = ([height / sum(side) for height in side] for side in heights)
        values.append(9 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    assert (len(values) < len(pair.cells)) == bool(threshold)
    found = pair.loss("softmax_kl", draw_batch(), threshold=threshold)
    assert found == pytest.approx(sum(values) / len(values), rel=1e-4)


# -- labels -----------------------------------------------------------------------------------------------------------


def wanted(pair, batch):
    """Place -> (score, class), as the detection loss wants it."""
    head, levels = pair.heads[0], pair.student.levels
    found = {}
    if not hasattr(head, "anchors"):
        assignment = TaskAlignedAssigner().on_levels(levels, head.strides, 3, batch).on_levels(levels)
        for number, one in enumerate(assignment):
            for place in one.positive.nonzero().tolist():
                target = one.target[tuple(place)]
                found[(number, *place)] = one.score[tuple(place)].item(), int(batch.targets[target, 1])
        return found
    for number, level in enumerate(levels):
        size = level.shape[2]
        for match in zip(*Matcher(4.0)(level.shape, head.anchors[number], batch), strict=True):
            image, row, column, target = (int(match[i]) for i in (0, 2, 3, 4))
            x, y, w, h = (batch.targets[target, 2:] * size).tolist()
            box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]], dtype=torch.float64)
            mine = torch.tensor([pair.cells[number, image, row, column][0].box], dtype=torch.float64)
            overlap = max(0.0, complete_box_iou(mine, box).item())
            found[number, image, row, column] = overlap, int(batch.targets[target, 1])
    return found


@pytest.mark.parametrize("labelled", [[True, True], [True, False]])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_soft_labels_of_scores_are_their_formula(student, teacher, alpha, labelled, draw_batch):
    batch = draw_batch()._replace(labelled=torch.tensor(labelled))
    pair, total, weight = Pair(student, teacher), 0.0, 0.0
    truth = wanted(pair, batch)
    assert len(truth) >= 3
    for place in {*pair.seen, *(place for place, (score, _) in truth.items() if score)}:
        mine, theirs = pair.cells[place]
        share = alpha if labelled[place[1]] else 1.0
        score, label = truth.get(place, (0.0, -1))
        target = [share * p + (1 - share) * score * (k == label) for k, p in enumerate(theirs.scores)]
        total += sum(entropy(q, p) for q, p in zip(mine.scores, target, strict=True)) / 3
        weight += max(target)
    found = pair.loss("soft_labels", batch, alpha=alpha)
    assert found == pytest.approx(GAINS.cls * total / max(1, weight), rel=1e-4)
