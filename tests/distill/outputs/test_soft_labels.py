"""Labels mixed with the teacher's word."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import complete_box_iou

from utils.errors import UserError
from utils.types import Prediction


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def entropy(x, target):
    q = sigmoid(x)
    return -target * math.log(q) - (1 - target) * math.log(1 - q)


def matched(cells, targets, labelled, largest_ratio, size=64):
    """(cell, target) of every match, target by target and cell by cell."""
    found = []
    for target in targets.tolist():
        for cell in cells:
            _, image, _, row, column = cell.place
            map_size = size // cell.stride
            x, y = target[2] * map_size, target[3] * map_size
            sides = [side * size for side in target[4:]]
            ratios = [side / own for side, own in zip(sides, cell.anchor, strict=True)]
            if image != target[0] or not labelled[image] or max(max(r, 1 / r) for r in ratios) >= largest_ratio:
                continue
            # the nearer one of each pair of neighbours, as long as there is one
            beside = int(x) + (-1 if x % 1 < 0.5 else 1)
            above = int(y) + (-1 if y % 1 < 0.5 else 1)
            if (column, row) in ((int(x), int(y)), (beside, int(y)), (int(x), above)):
                found.append((cell, target))
    return found


def overlap(cell, target, size=64):
    *_, row, column = cell.place
    centre = [(2 * sigmoid(v) - 0.5 + at) * cell.stride for v, at in zip(cell.mine[:2], (column, row), strict=True)]
    half = [(2 * sigmoid(v)) ** 2 * side / 2 for v, side in zip(cell.mine[2:4], cell.anchor, strict=True)]
    boxes = [
        torch.tensor([[x - w, y - h, x + w, y + h]], dtype=torch.float64)
        for (x, y), (w, h) in ((centre, half), ([v * size for v in target[2:4]], [v * size / 2 for v in target[4:]]))
    ]
    return max(0.0, complete_box_iou(*boxes).item())


def slow_parts(cells, targets, labelled, alpha, largest_ratio):
    """Objectness, a mean over cells; classes, a mean over matches and what the teacher sees without labels."""
    matches = matched(cells, targets, labelled, largest_ratio)
    assert len(matches) == len({cell.place for cell, _ in matches})  # else the last one would count
    wanted = {cell.place: overlap(cell, target) for cell, target in matches}
    everywhere = labels = weights = 0.0
    for cell in cells:
        share = alpha if labelled[cell.place[1]] else 1.0
        belief = sigmoid(cell.theirs[4])
        everywhere += entropy(cell.mine[4], share * belief + (1 - share) * wanted.get(cell.place, 0.0))
        if not labelled[cell.place[1]] and belief > 0.01:
            pairs = zip(cell.mine[5:], cell.theirs[5:], strict=True)
            labels += belief * sum(entropy(x, sigmoid(y)) for x, y in pairs) / 3
            weights += belief
    for cell, target in matches:
        for index, (x, y) in enumerate(zip(cell.mine[5:], cell.theirs[5:], strict=True)):
            labels += entropy(x, alpha * sigmoid(y) + (1 - alpha) * (index == target[1])) / 3
        weights += 1
    return everywhere / len(cells), labels / weights, len(matches)


TARGETS = torch.tensor(
    [
        [0, 1, 0.53, 0.54, 0.2, 0.3],
        [0, 2, 0.11, 0.83, 0.9, 0.8],
        [1, 0, 0.21, 0.72, 0.2, 0.15],
        [2, 0, 0.4, 0.6, 0.3, 0.3],
    ]
)


@pytest.mark.parametrize("labelled", [[True, True, True], [True, True, False], [False, False, False]])
@pytest.mark.parametrize(("alpha", "anchor_t"), [(0.5, 4.0), (0.0, 4.0), (0.3, 2.5), (1.0, 4.0)])
def test_soft_labels_are_their_formula(
    alpha, anchor_t, labelled, loss_of, draw_prediction, draw_batch, gains, cells_of
):
    student, taught = draw_prediction(images=3), draw_prediction(images=3)
    batch = draw_batch(images=3)._replace(targets=TARGETS, labelled=torch.tensor(labelled))
    everywhere, labels, count = slow_parts(cells_of(student, taught), TARGETS, labelled, alpha, anchor_t)
    assert (count > 0) == any(labelled)
    loss = loss_of("soft_labels", alpha=alpha, anchor_t=anchor_t)
    expected = 3 * (gains.obj * everywhere + gains.cls * labels)
    assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)
    if alpha == 0.5:
        assert loss_of("soft_labels")(student, taught, batch) == loss(student, taught, batch)


def test_of_the_teacher_alone_it_does_not_pull_where_both_agree(loss_of, draw_prediction, draw_batch):
    taught = draw_prediction()
    student = Prediction(tuple(level.clone().requires_grad_() for level in taught.levels))
    loss_of("soft_labels", alpha=1)(student, taught, draw_batch()).backward()
    assert all(level.grad.abs().max() < 1e-7 for level in student.levels)


def test_boxes_are_left_to_the_detection_loss(loss_of, draw_prediction, draw_batch):
    student = Prediction(tuple(level.requires_grad_() for level in draw_prediction().levels))
    loss_of("soft_labels")(student, draw_prediction(), draw_batch()).backward()
    assert all(level.grad[..., :4].abs().sum() == 0 for level in student.levels)


def test_a_share_is_a_share(loss_of):
    with pytest.raises(UserError, match="'soft_labels': alpha: got 2, expected a number from 0 to 1"):
        loss_of("soft_labels", alpha=2)
