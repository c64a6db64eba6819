from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.features.fgd import FocalGlobal
from distill.pairs import Lesson
from utils.errors import UserError
from utils.types import Batch

NOTHING = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "context": 0.0}


def lesson_of(rows, images=2, labelled=None):
    """Rows of image, class, x, y, w, h."""
    batch = Batch(
        images=torch.zeros(images, 3, 64, 64),
        targets=torch.tensor(rows, dtype=torch.float32).reshape(-1, 6),
        labelled=torch.tensor(labelled) if labelled else torch.ones(images, dtype=torch.bool),
    )
    return Lesson(batch, 8, None, nn.Identity())


def loss_of(channels=4, **factors):
    loss = FocalGlobal(channels, **{**NOTHING, **factors})
    for parameter in loss.parameters():
        nn.init.normal_(parameter, std=0.5)
    return loss


def softmax(values):
    weights = [math.exp(v) for v in values]
    return [w / sum(weights) for w in weights]


def attention(x, temperature):
    """One image, (C, HW) lists -> over positions, over channels."""
    places = range(len(x[0]))
    positions = softmax([sum(abs(c[p]) for c in x) / len(x) / temperature for p in places])
    channels = softmax([sum(abs(v) for v in c) / len(c) / temperature for c in x])
    return [v * len(places) for v in positions], [v * len(x) for v in channels]


def with_context(x, block):
    """One image, (C, HW) lists -> the same with what the block adds."""
    scores = block.score.weight[0].tolist()
    weights = softmax([sum(s * c[p] for s, c in zip(scores, x, strict=True)) for p in range(len(x[0]))])
    summary = [sum(w * v for w, v in zip(weights, c, strict=True)) for c in x]

    def layer(linear, values):
        return [
            b + sum(w * v for w, v in zip(row, values, strict=True))
            for row, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        ]

    middle = layer(block.first, summary)
    mean = sum(middle) / len(middle)
    spread = math.sqrt(sum((v - mean) ** 2 for v in middle) / len(middle) + 1e-5)
    scaled = zip(middle, block.norm.weight.tolist(), block.norm.bias.tolist(), strict=True)
    added = layer(block.last, [max(0.0, (v - mean) / spread * w + b) for v, w, b in scaled])
    return [[v + a for v in c] for c, a in zip(x, added, strict=True)]


# columns and rows of 8 that each box covers, written by hand: first, end
BOXES = [
    ([0, 1, 0.5, 0.5, 0.5, 0.5], (2, 6), (2, 6)),
    ([0, 2, 0.3125, 0.375, 0.125, 0.25], (2, 3), (2, 4)),  # over a corner of the first
    ([1, 0, 0.9375, 0.0625, 0.125, 0.125], (7, 8), (0, 1)),
    ([2, 0, 0.5, 0.5, 1, 1], (0, 8), (0, 8)),  # an image without labels
]
LABELLED = [True, True, False]


def slow_terms(student, teacher, loss, temperature):
    """The four terms, one number at a time."""
    channels, places = student.shape[1], 64
    objects = background = spots = relations = 0.0
    visible = 0.0
    attention_positions = attention_channels = 0.0
    for image in range(3):
        own, other = student[image].flatten(1).tolist(), teacher[image].flatten(1).tolist()
        over_places, over_channels = attention(other, temperature)
        mine = attention(own, temperature)
        attention_positions += sum(abs(a - b) for a, b in zip(mine[0], over_places, strict=True)) / places / 3
        attention_channels += sum(abs(a - b) for a, b in zip(mine[1], over_channels, strict=True)) / channels / 3

        sides = with_context(own, loss.student_context), with_context(other, loss.teacher_context)
        flat = [[v for c in side for v in c] for side in sides]
        relations += sum((a - b) ** 2 for a, b in zip(*flat, strict=True)) / (channels * places) / 3
        if not LABELLED[image]:
            continue
        error = [
            over_places[p] * sum(over_channels[c] * (own[c][p] - other[c][p]) ** 2 for c in range(channels)) / channels
            for p in range(places)
        ]
        empty = []
        for p in range(places):
            row, column = divmod(p, 8)
            sizes = [
                (right - left) * (bottom - top)
                for target, (left, right), (top, bottom) in BOXES
                if target[0] == image and left <= column < right and top <= row < bottom
            ]
            if sizes:
                objects += error[p] / min(sizes)
                visible += 1 / min(sizes)
            else:
                empty.append(p)
        background += sum(error[p] for p in empty) / len(empty) / sum(LABELLED)
        spots += len(empty)
    assert visible == pytest.approx(14 / 16 + 1 + 1)
    assert spots == 64 - 16 + 63
    return {
        "alpha": objects / visible,
        "beta": background,
        "gamma": attention_positions + attention_channels,
        "context": relations,
    }


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("term", ["alpha", "beta", "gamma", "context"])
def test_each_term_is_what_a_slow_loop_makes_of_it(term, temperature):
    student, teacher = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    loss = loss_of(**{term: 2.0}, temperature=temperature)
    value = loss(student, teacher, lesson_of([row for row, _, _ in BOXES], 3, LABELLED))
    expected = 2 * slow_terms(student, teacher, loss, temperature)[term]
    assert expected > 0.01
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_terms_add_up():
    student, teacher, lesson = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), lesson_of([BOXES[0][0]])
    together = FocalGlobal(4)
    parts = {"alpha": 14.0, "beta": 1.0, "gamma": 4.0, "context": 16.0}
    values = [FocalGlobal(4, **{**NOTHING, name: factor})(student, teacher, lesson) for name, factor in parts.items()]
    torch.testing.assert_close(together(student, teacher, lesson), sum(values))


def test_a_big_object_counts_as_much_as_a_small_one():
    big, small = [0, 0, 0.25, 0.25, 0.5, 0.5], [0, 0, 0.9375, 0.9375, 0.125, 0.125]
    values = []
    for rows, columns in ((slice(0, 4), slice(0, 4)), (slice(7, 8), slice(7, 8))):
        student = torch.zeros(1, 4, 8, 8)
        student[:, :, rows, columns] = 1
        values.append(loss_of(alpha=1.0)(student, torch.zeros(1, 4, 8, 8), lesson_of([big, small], 1)).item())
    assert values == pytest.approx([0.5, 0.5])


def test_an_image_without_objects_is_all_background():
    student = torch.ones(2, 4, 8, 8)
    lesson = lesson_of([])
    assert loss_of(beta=1.0)(student, torch.zeros(2, 4, 8, 8), lesson).item() == pytest.approx(1)
    assert loss_of(alpha=1.0)(student, torch.zeros(2, 4, 8, 8), lesson).item() == 0


def test_an_image_without_labels_knows_neither_objects_nor_background():
    student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    lesson = lesson_of([BOXES[0][0]], labelled=[False, False])
    assert loss_of(alpha=1.0, beta=1.0)(student, teacher, lesson).item() == 0
    assert loss_of(gamma=1.0)(student, teacher, lesson).item() > 0
    assert loss_of(context=1.0)(student, teacher, lesson).item() > 0


def test_training_the_context_blocks_alone_cannot_make_their_term_vanish():
    torch.manual_seed(0)
    student, teacher, loss = torch.randn(2, 4, 8, 8) + 2, torch.randn(2, 4, 8, 8), loss_of(context=1.0)
    least = (student - teacher).flatten(2).var(2, unbiased=False).mean().item()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(student, teacher, lesson_of([]))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] > 2 * least  # what can be learned is learned: the means of the difference
    assert least < min(values) < 1.1 * least


def test_context_blocks_start_by_adding_nothing():
    student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    value = FocalGlobal(4, **{**NOTHING, "context": 1.0})(student, teacher, lesson_of([]))
    assert value.item() == pytest.approx((student - teacher).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "context"])
def test_a_factor_is_not_negative(name):
    with pytest.raises(UserError, match=f"feature loss 'fgd': {name}: got -1"):
        FocalGlobal(4, **{name: -1})


def test_something_must_be_compared():
    with pytest.raises(UserError, match="all 0, which leaves nothing"):
        FocalGlobal(4, **NOTHING)
