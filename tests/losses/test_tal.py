"""The loss of heads without anchors, against the recorded cases and against a loop over positive cells."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from losses.tal import TaskAlignedLoss
from utils.hyp import Hyp
from utils.types import Prediction, Progress

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


@pytest.fixture
def criterion(free_head_with) -> Callable[..., TaskAlignedLoss]:
    def make(
        num_classes: int = 3, reg_max: int = 16, two_branches: bool = False, nms_free: bool | None = None, **hyp
    ) -> TaskAlignedLoss:
        free = two_branches if nms_free is None else nms_free
        return TaskAlignedLoss(free_head_with(num_classes, reg_max, two_branches, free), Hyp(**(GAINS | hyp)), (64, 96))

    return make


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(terms.values())


def progress(epoch: int, epochs: int, step: int = 0) -> Progress:
    return Progress(epoch, step, epochs, 10)


# -- the recorded cases ------------------------------------------------------------------------------------------------


NAMES = ("v8", "v8-crowded", "v8-no-targets", "v10", "26-start")


@pytest.fixture
def recorded(root, cases_in) -> dict:
    return cases_in(root / "tests/assets/losses-anchor-free.json")


def drawn(case: dict) -> list[list[Tensor]]:
    """Boxes and scores over all positions, of each branch, by the rule that goes with the recorded numbers."""
    rng = np.random.default_rng(case["seed"])
    height, width = case["image_height_width"]
    positions = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    branches = []
    for _ in range(1 if case["kind"] == "plain" else 2):
        shape = (case["batch"], 4 * case["reg_max"], positions)
        boxes = abs(rng.normal(2, 1, shape)) if case["reg_max"] == 1 else rng.normal(0, 1, shape)
        both = boxes, rng.normal(-3, 1, (case["batch"], 80, positions))
        branches.append([torch.tensor(x.astype(np.float32), requires_grad=True) for x in both])
    return branches


def levels_in(branch: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    shapes = [(size[0] // stride, size[1] // stride) for stride in (8, 16, 32)]
    parts = torch.cat(branch, dim=1).split([height * width for height, width in shapes], dim=2)
    return tuple(part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True))


def test_every_recorded_case_is_tested(recorded):
    assert sorted(recorded) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_equal_the_recorded_ones(name, recorded, criterion, batch_of):
    case = recorded[name]
    branches, images = drawn(case), case["batch"]
    batch = batch_of(torch.tensor(case["targets"], dtype=torch.float32).reshape(-1, 6), images)
    levels = [levels_in(branch, case["image_height_width"]) for branch in branches]
    loss = criterion(80, case["reg_max"], len(branches) == 2, **case["gains"])

    terms = loss(Prediction(levels[-1], levels[0] if len(levels) == 2 else ()), batch)
    (total(terms) * images).backward()
    assert list(terms) == ["box", "cls", "dfl"]
    assert [term.item() * images for term in terms.values()] == pytest.approx(case["total"], rel=1e-5)
    for branch, norms in zip(branches, case["gradient_norms"], strict=True):
        assert [float(part.grad.norm()) for part in branch] == pytest.approx(norms, rel=1e-5)

    # of YOLO26 those of the one-to-one branch are recorded, which evaluation puts out alone
    if case["kind"] == "26":
        terms = loss(Prediction(levels[-1]), batch)
    assert [term.item() for term in terms.values()] == pytest.approx(list(case["items"].values()), rel=1e-5)


def test_the_whole_reference_is_recorded_here(shared, recorded):
    cases = json.loads(gzip.decompress((shared / "reference/parity/losses-anchor-free.json.gz").read_bytes()))
    for case in cases:
        ours = recorded[case["name"]]
        assert [list(map(float, row)) for row in ours["targets"]] == case["targets"]
        assert all(case[key] == ours[key] for key in case if key != "targets")


# -- a loop over positive cells ----------------------------------------------------------------------------------------


def slowly(loss: TaskAlignedLoss, levels: tuple[Tensor, ...], targets: Tensor, batch) -> list[Tensor]:
    """Box, class and distance terms of the one-to-many branch, given who answers for what."""
    head = loss._head[0]
    assignment = loss.one_to_many.on_levels(levels, head.strides, head.num_classes, batch).on_levels(levels)
    box_term, class_term, far_term, worth = [torch.zeros(()) for _ in range(4)]
    size = torch.tensor([96.0, 64, 96, 64])
    for level, own, stride in zip(levels, assignment, (8, 16, 32), strict=True):
        wanted = torch.zeros_like(level[:, -head.num_classes :])
        for image, row, column in own.positive.nonzero().tolist():
            label, x, y, w, h = (targets[own.target[image, row, column], 1:] * torch.tensor([1, *size])).tolist()
            score = own.score[image, row, column]
            aim = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            point = torch.tensor([column + 0.5, row + 0.5])
            raw = level[image, : -head.num_classes, row, column].view(4, head.reg_max)
            sides = raw[:, 0] if head.reg_max == 1 else raw.softmax(1) @ torch.arange(float(head.reg_max))
            box = torch.cat((point - sides[:2], point + sides[2:])) * stride
            away = torch.cat((point * stride - aim[:2], aim[2:] - point * stride))  # pixels
            if head.reg_max == 1:
                far = ((sides * stride - away) / size).abs().mean()
            else:
                far = torch.zeros(())
                for bins, distance in zip(raw, (away / stride).clamp(0, head.reg_max - 1.01).tolist(), strict=True):
                    above = int(distance) + 1
                    both = F.cross_entropy(bins[None].expand(2, -1), torch.tensor([above - 1, above]), reduction="none")
                    far = far + (both[0] * (above - distance) + both[1] * (distance - above + 1)) / 4
            wanted[image, int(label), row, column] = score
            box_term = box_term + score * complete_box_iou_loss(box, aim)
            far_term, worth = far_term + score * far, worth + score
        entropies = F.binary_cross_entropy_with_logits(level[:, -head.num_classes :], wanted, reduction="none")
        class_term = class_term + entropies[batch.labelled].sum()
    worth = max(worth, 1)
    return [7.5 * box_term / worth, 0.5 * class_term / worth, 1.5 * far_term / worth]


@pytest.mark.parametrize("labelled", [None, [True, False]])
@pytest.mark.parametrize("small_objects", [False, True])
@pytest.mark.parametrize("reg_max", [16, 4, 1])
def test_loss_equals_a_loop_over_cells(
    reg_max, small_objects, labelled, criterion, free_levels_of, batch_of, some_targets
):
    levels, targets = free_levels_of(reg_max=reg_max), some_targets(16)
    targets[:4, 4:] = 0.05  # points may lie outside of them
    loss, batch = criterion(reg_max=reg_max, small_objects=small_objects), batch_of(targets, labelled=labelled)
    terms, expected = list(loss(Prediction(levels), batch).values()), slowly(loss, levels, targets, batch)
    assert torch.allclose(torch.stack(terms), torch.stack(expected), rtol=1e-4)
    assert all(term > 0 for term in terms)
    ours, theirs = torch.autograd.grad(sum(terms), levels), torch.autograd.grad(sum(expected), levels)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(ours, theirs, strict=True))


# -- two branches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg_max", [16, 1])
def test_both_branches_learn(reg_max, criterion, free_levels_of, batch_of, some_targets):
    one, many = free_levels_of(reg_max=reg_max), free_levels_of(reg_max=reg_max)
    total(criterion(reg_max=reg_max, two_branches=True)(Prediction(one, many), batch_of(some_targets()))).backward()
    for level in (*one, *many):
        assert level.grad.isfinite().all() and level.grad[:, -3:].abs().min() > 0
    for branch in (one, many):
        assert sum(level.grad[:, :-3].abs().sum() for level in branch) > 0


@pytest.mark.parametrize(("reg_max", "epoch", "weights"), [(16, 0, (1, 1)), (16, 9, (1, 1)), (1, 0, (0.8, 0.2))])
@pytest.mark.parametrize("end", [None, 3])
def test_branches_are_weighed_and_each_has_its_own_assignment(
    reg_max, epoch, weights, end, criterion, free_levels_of, batch_of, some_targets
):
    one, many, batch = free_levels_of(reg_max=reg_max), free_levels_of(reg_max=reg_max), batch_of(some_targets())
    loss = criterion(reg_max=reg_max, two_branches=True)
    loss.at(progress(epoch, 10))
    if end and reg_max == 1:
        loss.at(progress(9, 10, step=end))
        weights = (0.1, 0.9)
    both = loss(Prediction(one, many), batch)
    # in evaluation the branch in use is put out alone
    first = criterion(reg_max=reg_max, two_branches=True, nms_free=False)(Prediction(many), batch)
    second = criterion(reg_max=reg_max, two_branches=True, nms_free=True)(Prediction(one), batch)
    for name, value in both.items():
        expected = weights[0] * first[name].item() + weights[1] * second[name].item()
        assert value.item() == pytest.approx(expected, rel=1e-5)
    assert second != criterion(reg_max=reg_max, two_branches=True, nms_free=False)(Prediction(one), batch)


def test_in_training_it_does_not_matter_which_branch_evaluation_uses(criterion, free_levels_of, batch_of, some_targets):
    prediction, batch = Prediction(free_levels_of(), free_levels_of()), batch_of(some_targets())
    first, second = (criterion(two_branches=True, nms_free=free)(prediction, batch) for free in (False, True))
    assert first == second


def test_the_one_to_many_weight_falls_epoch_by_epoch(criterion):
    loss, weights = criterion(reg_max=1, two_branches=True), []
    for epoch in range(8):
        for step in (0, 5, 9):
            loss.at(progress(epoch, 8, step))
            weights.append(loss.weights()[0].item())
    assert weights == pytest.approx([0.8 - 0.1 * epoch for epoch in range(8) for _ in range(3)])
    loss.at(progress(0, 1))
    assert loss.one_to_many_weight.item() == pytest.approx(0.8)
    assert sum(loss.weights()).item() == pytest.approx(1)
    assert not loss.state_dict() and not list(loss.parameters())


def test_each_family_has_its_one_to_one(criterion):
    v10, v26 = (criterion(reg_max=reg_max, two_branches=True, tal_topk=8).one_to_one for reg_max in (16, 1))
    assert (v10.topk, v10.best, v26.topk, v26.best) == (1, None, 7, 1)


# -- edges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg_max", [16, 1])
def test_no_targets_leave_classes_alone_with_a_gradient(reg_max, criterion, free_levels_of, batch_of):
    levels = free_levels_of(reg_max=reg_max)
    terms = criterion(reg_max=reg_max)(Prediction(levels), batch_of(torch.zeros(0, 6)))
    total(terms).backward()
    assert terms["box"] == 0 and terms["dfl"] == 0 and terms["cls"] > 0
    assert terms["box"].requires_grad and terms["dfl"].requires_grad
    for level in levels:
        assert level.grad[:, :-3].abs().max() == 0 and level.grad[:, -3:].min() > 0


def test_unlabelled_images_have_no_part_in_any_term(criterion, free_levels_of, batch_of, some_targets):
    levels, targets = free_levels_of(images=3), some_targets(30, images=3)
    masked = criterion()(Prediction(levels), batch_of(targets, 3, [True, False, True]))
    total(masked).backward()
    alone = targets[targets[:, 0] != 1]
    alone[:, 0] = alone[:, 0] / 2  # images 0 and 2 become 0 and 1
    expected = criterion()(Prediction(tuple(level[[0, 2]] for level in levels)), batch_of(alone))
    for name, value in masked.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5)
    assert all(level.grad[1].abs().max() == 0 for level in levels)


def test_without_labelled_images_all_terms_are_zero_and_in_the_graph(criterion, free_levels_of, batch_of, some_targets):
    levels = free_levels_of()
    terms = criterion()(Prediction(levels), batch_of(some_targets(), labelled=[False, False]))
    total(terms).backward()
    assert all(value == 0 for value in terms.values())
    assert all(level.grad.abs().max() == 0 for level in levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reg_max", [16, 1])
def test_half_precision_levels_are_judged_in_float32(reg_max, dtype, criterion, free_levels_of, batch_of, some_targets):
    levels = tuple(level.detach().to(dtype).requires_grad_() for level in free_levels_of(reg_max=reg_max))
    batch, loss = batch_of(some_targets()), criterion(reg_max=reg_max)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(Prediction(levels), batch)
    total(terms).backward()
    expected = loss(Prediction(tuple(level.detach().float() for level in levels)), batch)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert all(terms[name].item() == pytest.approx(expected[name].item(), rel=1e-6) for name in terms)
    assert all(level.grad.dtype == dtype and level.grad.isfinite().all() for level in levels)


def test_the_memory_format_of_levels_changes_nothing(criterion, free_levels_of, batch_of, some_targets):
    levels, batch = free_levels_of(), batch_of(some_targets())
    other = tuple(level.detach().to(memory_format=torch.channels_last).requires_grad_() for level in levels)
    results = []
    for own in (levels, other):
        terms = criterion()(Prediction(own), batch)
        results.append((torch.stack(list(terms.values())), torch.autograd.grad(total(terms), own)))
    assert torch.allclose(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("extreme", [-1e4, -30.0, 30.0, 1e4])
@pytest.mark.parametrize("reg_max", [16, 1])
def test_saturated_predictions_have_finite_gradients(
    reg_max, extreme, criterion, free_levels_of, batch_of, some_targets
):
    levels = tuple(torch.full_like(level, extreme).requires_grad_() for level in free_levels_of(reg_max=reg_max))
    terms = criterion(reg_max=reg_max)(Prediction(levels), batch_of(some_targets()))
    total(terms).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(level.grad.isfinite().all() for level in levels)


def test_a_crowd_gives_the_same_bits_each_time(criterion, free_levels_of, batch_of, some_targets):
    levels, targets = free_levels_of(), some_targets(300)
    results = [criterion()(Prediction(levels), batch_of(targets)) for _ in range(5)]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("reg_max", [16, 1])
def test_the_loss_falls_when_trained(reg_max, criterion, free_levels_of, batch_of, some_targets):
    levels, batch = free_levels_of(reg_max=reg_max), batch_of(some_targets(6))
    loss, optimizer, values = criterion(reg_max=reg_max), torch.optim.Adam(levels, lr=0.1), []
    for _ in range(120):
        optimizer.zero_grad()
        terms = loss(Prediction(levels), batch)
        total(terms).backward()
        optimizer.step()
        values.append({name: term.item() for name, term in terms.items()})
    assert values[-1]["box"] < 0.1 * values[0]["box"]
    assert values[-1]["cls"] < 0.15 * values[0]["cls"]


# -- its surroundings --------------------------------------------------------------------------------------------------


def test_gains_are_those_of_the_recipe_whatever_the_head(criterion):
    assert criterion(num_classes=1, box=2.0, cls=3.0, dfl=4.0).gains == (2, 3, 4)
    assert criterion(box=None).gains == (7.5, 0.5, 1.5)


def test_the_recipe_sets_the_assignment(criterion):
    loss = criterion(tal_topk=13, tal_alpha=1.0, tal_beta=2.0, small_objects=True)
    for assigner in (loss.one_to_many, loss.one_to_one):
        assert (assigner.alpha, assigner.beta, assigner.small_objects) == (1, 2, True)
    assert (loss.one_to_many.topk, loss.one_to_many.best) == (13, None)


def test_the_head_is_neither_owned_nor_copied(free_head_with):
    module = torch.nn.Conv2d(1, 1, 1)
    for name, value in vars(free_head_with()).items():
        setattr(module, name, value)
    loss = TaskAlignedLoss(module, Hyp(), (64, 96))
    assert not list(loss.parameters()) and not loss.state_dict()
