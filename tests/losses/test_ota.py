"""The v7 loss, against the recorded cases and against a loop over images, targets and candidates."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from losses import ota
from losses.anchor import AnchorLoss, Gains
from losses.matching import Matches
from losses.ota import OtaLoss
from utils.family import ANCHORS, box_gain
from utils.hyp import Hyp
from utils.types import Prediction

RECORDED = {
    "v7-plain": AnchorLoss,
    "v7-ota": OtaLoss,
    "v7-ota-crowded": OtaLoss,
    "v7-ota-one-image": OtaLoss,
    "v7-aux-ota": OtaLoss,
}


@pytest.fixture
def criterion(head_with) -> Callable[..., OtaLoss]:
    def make(num_classes: int = 3, size: tuple[int, int] = (64, 96), **hyp) -> OtaLoss:
        recipe = Hyp(loss_ota=1, **hyp)
        return OtaLoss(head_with(num_classes), recipe, size, Gains(box_gain(recipe, ANCHORS), recipe.obj, recipe.cls))

    return make


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(terms.values())


def answers(matches: list[Matches]) -> list[list[tuple[int, ...]]]:
    """Image, anchor, row, column and target, a list a level, image after image."""
    rows = [zip(*(part.tolist() for part in own[:5]), strict=True) for own in matches]
    return [sorted(own, key=lambda answer: answer[0]) for own in rows]


# -- the recorded cases ------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(root, cases_in) -> dict:
    return cases_in(root / "tests/assets/losses-v7.json")


def test_every_recorded_case_is_tested(recorded):
    assert sorted(recorded) == sorted(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_loss_and_gradients_equal_the_recorded_ones(recorded, replay, name):
    case = recorded[name]
    expected = case | {"items": case["items"][:3]}
    assert case["items"][3] == pytest.approx(sum(expected["items"]), rel=1e-6)
    for field, value in replay(case, RECORDED[name])._asdict().items():
        assert value == pytest.approx(expected[field], rel=1e-6), field


def test_the_whole_reference_is_recorded_here(shared, recorded):
    cases = json.loads(gzip.decompress((shared / "reference/parity/losses-v7.json.gz").read_bytes()))
    assert len(cases) == len(recorded)
    for case in cases:
        ours = recorded[case["name"]]
        assert [list(map(float, row)) for row in ours["targets"]] == case["targets"]
        assert all(case["hyp"][key] == value for key, value in ours["hyp"].items())
        assert all(case[key] == ours[key] for key in ours if key not in ("targets", "hyp"))


# -- a loop over images, targets and candidates ------------------------------------------------------------------------


def slow_choice(levels, matches, targets: Tensor, head, top: int = 10) -> list[list[tuple[int, ...]]]:
    """Of a list of matches a level those that answer for a target, and for which, one by one."""
    chosen = [[] for _ in levels]
    for image in range(len(levels[0])):
        pool = [(number, match) for number, own in enumerate(matches) for match in own if match[0] == image]
        asking = [target for target, row in enumerate(targets.tolist()) if row[0] == image]
        if not pool or not asking:
            continue
        costs, overlaps = slow_costs(levels, pool, targets[asking], head)
        takers: list[list[int]] = [[] for _ in pool]
        for place in range(len(asking)):
            count = max(1, int(sum(sorted(overlaps[place], reverse=True)[:top])))
            # of equals, those first that are matched with a later target
            ranked = sorted(range(len(pool)), key=lambda m: (costs[place][m], -pool[m][1][4], m))
            for candidate in ranked[:count]:
                takers[candidate].append(place)
        for candidate, (number, match) in enumerate(pool):
            taker = takers[candidate]
            if len(taker) > 1:
                taker = [min(range(len(asking)), key=lambda place: costs[place][candidate])]
            if taker:
                chosen[number].append((*match[:4], asking[taker[0]]))
    return chosen


def slow_costs(levels, pool, targets: Tensor, head) -> tuple[list[list[float]], list[list[float]]]:
    """What each target pays for each candidate, and their overlap."""
    boxes, roots = [], []
    for number, (image, a, row, column, _) in pool:
        raw, stride = levels[number][image, a, row, column].detach(), head.strides[number]
        centre = (raw[:2].sigmoid() * 2 - 0.5 + torch.tensor([column, row])) * stride
        half = (raw[2:4].sigmoid() * 2) ** 2 * head.anchors[number, a] * stride / 2
        boxes.append(torch.cat((centre - half, centre + half)))
        roots.append((raw[4].sigmoid() * raw[5:].sigmoid()).sqrt())
    height, width = (side * float(head.strides[0]) for side in levels[0].shape[2:4])
    costs, overlaps = [], []
    for _, label, x, y, w, h in targets.tolist():
        aim = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        overlaps.append(box_iou(torch.tensor([aim]), torch.stack(boxes))[0].tolist())
        costs.append([])
        for overlap, root in zip(overlaps[-1], roots, strict=True):
            right = torch.zeros_like(root)
            right[int(label)] = 1
            entropy = -(right * root.log() + (1 - right) * (1 - root).log()).sum()
            costs[-1].append(float(entropy) - 3 * float(torch.tensor(overlap + 1e-8).log()))
    return costs, overlaps


@pytest.fixture
def crowded(some_targets) -> Tensor:
    """Targets on top of each other, some of which no anchor fits."""
    targets = some_targets(30)
    targets[:15, 2:4] = 0.4 + 0.1 * targets[:15, 2:4]
    targets[5] = torch.tensor([0, 1, 0.45, 0.45, 0.9, 0.02])
    return targets


@pytest.mark.parametrize("pairs", [1, 700, 2**18])
def test_answers_and_terms_equal_a_loop(
    pairs, criterion, head_with, levels_of, batch_of, crowded, slow_ratio_matches, slow_terms, monkeypatch
):
    monkeypatch.setattr(ota, "PAIRS", pairs)
    levels, head, loss = levels_of(), head_with(3), criterion()
    expected = slow_choice(levels, slow_ratio_matches(levels, crowded, head), crowded, head)
    assert answers(loss.assign(Prediction(levels), batch_of(crowded))[0]) == expected

    terms = list(loss(Prediction(levels), batch_of(crowded)).values())
    slow = slow_terms(levels, expected, crowded, head, Hyp())
    assert torch.allclose(torch.stack(terms), torch.stack(slow), rtol=1e-5)
    ours, theirs = torch.autograd.grad(sum(terms), levels), torch.autograd.grad(sum(slow), levels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_auxiliary_levels_equal_a_loop(
    criterion, head_with, levels_of, batch_of, crowded, slow_ratio_matches, slow_terms
):
    levels, beside, head = levels_of(), levels_of(), head_with(3)
    lead = slow_choice(levels, slow_ratio_matches(levels, crowded, head), crowded, head, 20)
    wide = slow_choice(levels, slow_ratio_matches(levels, crowded, head, reach=1.0), crowded, head, 20)
    terms = list(criterion()(Prediction(levels, beside), batch_of(crowded)).values())
    judged = slow_terms(levels, lead, crowded, head, Hyp()), slow_terms(beside, wide, crowded, head, Hyp())
    slow = [first + 0.25 * second for first, second in zip(*judged, strict=True)]
    assert torch.allclose(torch.stack(terms), torch.stack(slow), rtol=1e-5)
    ours = torch.autograd.grad(sum(terms), (*levels, *beside))
    theirs = torch.autograd.grad(sum(slow), (*levels, *beside))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


# -- what the choice does ----------------------------------------------------------------------------------------------


@pytest.fixture
def one_cell(head_with, batch_of) -> Callable[..., list[tuple[int, ...]]]:
    """Answers among two images, one level of 2 × 2 cells and three anchors of 32 px, for targets in the first cell."""

    def choose(rows: Tensor, targets: list[list[float]]) -> list[tuple[int, ...]]:
        level = torch.zeros(2, 3, 2, 2, 8)
        level[:, :, 0, 0] = rows
        loss = OtaLoss(head_with(3, [[(32, 32)] * 3], [32]), Hyp(loss_ota=1), (64, 64))
        (matches,), _ = loss.assign(Prediction((level,)), batch_of(torch.tensor(targets)))
        return answers([matches])[0]

    return choose


@pytest.mark.parametrize("right", [0, 1])
def test_a_candidate_that_two_targets_take_answers_for_the_one_it_costs_less(right, one_cell):
    rows = torch.zeros(3, 8)
    rows[1, 5 + 2 * right] = rows[1, 4] = 3.0  # the second anchor is sure of class 0 or 2, and so cheapest for both
    both = [[0, 0, 0.25, 0.25, 0.2, 0.2], [0, 2, 0.25, 0.25, 0.2, 0.2]]
    rows[:, 5 + 1] = -9.0
    assert [answer for answer in one_cell(rows, both) if answer[1] == 1] == [(0, 1, 0, 0, right)]


@pytest.mark.parametrize(("side", "count"), [(0.5, 3), (0.45, 2), (0.3, 1), (0.15, 1)])
def test_as_many_answer_as_the_overlaps_sum_up_to(side, count, one_cell):
    # zeros decode to 32 px, half the image: the overlaps are 3 * (2 * side)^2
    assert len(one_cell(torch.zeros(3, 8), [[0, 1, 0.25, 0.25, side, side]])) == count


def test_what_no_anchor_fits_may_be_answered_for_by_candidates_of_others(one_cell):
    rows = torch.zeros(3, 8)
    rows[:, 5:] = -5.0
    rows[1, 5 + 0] = rows[1, 4] = rows[2, 5 + 2] = rows[2, 4] = 3.0
    fitting, small = [0, 0, 0.25, 0.25, 0.25, 0.25], [0, 2, 0.25, 0.25, 0.1, 0.1]
    assert one_cell(rows, [small]) == []
    assert one_cell(rows, [fitting, small]) == [(0, 1, 0, 0, 0), (0, 2, 0, 0, 1)]


def test_candidates_answer_for_targets_of_their_own_image(criterion, levels_of, batch_of, some_targets):
    levels, targets = levels_of(images=4), some_targets(60, images=4)
    loss, batch = criterion(), batch_of(targets, images=4)
    found, _ = loss.assign(Prediction(levels), batch)
    pool = loss.match.on_levels([level.shape for level in levels], loss.anchors, batch)
    for own, candidates in zip(answers(found), answers(pool), strict=True):
        assert {answer[:4] for answer in own} <= {candidate[:4] for candidate in candidates}
    assert {answer[0] for own in answers(found) for answer in own} == {0, 1, 2, 3}


def test_an_image_without_candidates_borrows_none(one_cell):
    rows = torch.zeros(3, 8)
    rows[1, 4:] = torch.tensor([3.0, -5.0, 3.0, -5.0])  # so that the first is left over
    fitting, small = [0, 1, 0.25, 0.25, 0.25, 0.25], [1, 1, 0.25, 0.25, 0.1, 0.1]
    assert one_cell(rows, [fitting, small]) == [(0, 1, 0, 0, 0)]


def test_auxiliary_levels_are_guided_by_the_lead(criterion, levels_of, batch_of, some_targets):
    loss, batch, lead, beside = criterion(), batch_of(some_targets(30)), levels_of(), levels_of()
    guided = answers(loss.assign(Prediction(lead, beside), batch)[1])
    assert guided == answers(loss.assign(Prediction(lead, levels_of()), batch)[1])
    assert guided != answers(loss.assign(Prediction(levels_of(), beside), batch)[1])


def test_the_choice_has_no_gradient(criterion, levels_of, batch_of, some_targets):
    levels = levels_of()
    lead, auxiliary = criterion().assign(Prediction(levels, levels_of()), batch_of(some_targets()))
    assert not any(own.boxes.requires_grad for own in (*lead, *auxiliary))


# -- edges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets", [torch.zeros(0, 6), torch.tensor([[0, 1, 0.5, 0.5, 0.9, 0.0001], [1, 1, 0.5, 0.5, 0.0, 0.0]])]
)
@pytest.mark.parametrize("with_auxiliary", [False, True])
def test_nothing_to_find_leaves_objectness_alone_with_a_gradient(
    targets, with_auxiliary, criterion, levels_of, batch_of
):
    levels, beside = levels_of(), levels_of() if with_auxiliary else ()
    terms = criterion()(Prediction(levels, beside), batch_of(targets))
    total(terms).backward()
    assert terms["box"] == 0 and terms["cls"] == 0 and terms["obj"] > 0
    assert all(level.grad.isfinite().all() and level.grad[..., 4].abs().min() > 0 for level in (*levels, *beside))


def test_a_single_class_has_no_class_term(criterion, levels_of, batch_of, some_targets):
    levels = levels_of(num_classes=1)
    terms = criterion(num_classes=1)(Prediction(levels), batch_of(some_targets(num_classes=1)))
    total(terms).backward()
    assert terms["cls"] == 0 and terms["box"] > 0
    assert all(level.grad[..., 5:].abs().max() == 0 for level in levels)


def test_unlabelled_images_have_no_part_in_any_term(criterion, levels_of, batch_of, some_targets):
    levels, beside, targets = levels_of(images=3), levels_of(images=3), some_targets(30, images=3)
    loss = criterion()
    masked = loss(Prediction(levels, beside), batch_of(targets, 3, [True, False, True]))
    total(masked).backward()
    kept = [0, 2]
    alone = targets[targets[:, 0] != 1]
    alone[:, 0] = alone[:, 0] / 2  # images 0 and 2 become 0 and 1
    pair = (tuple(level[kept] for level in part) for part in (levels, beside))
    expected = loss(Prediction(*pair), batch_of(alone))
    for name, value in masked.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5)
    assert all(level.grad[1].abs().max() == 0 for level in (*levels, *beside))


def test_without_labelled_images_all_terms_are_zero_and_in_the_graph(criterion, levels_of, batch_of, some_targets):
    levels = levels_of()
    terms = criterion()(Prediction(levels), batch_of(some_targets(), labelled=[False, False]))
    total(terms).backward()
    assert all(value == 0 for value in terms.values())
    assert all(level.grad.abs().max() == 0 for level in levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_levels_are_judged_in_float32(dtype, criterion, levels_of, batch_of, some_targets):
    levels, beside = (tuple(x.detach().to(dtype).requires_grad_() for x in levels_of()) for _ in range(2))
    targets = some_targets()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = criterion()(Prediction(levels, beside), batch_of(targets))
    total(terms).backward()
    exact = Prediction(*(tuple(x.detach().float() for x in part) for part in (levels, beside)))
    expected = criterion()(exact, batch_of(targets))
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert all(terms[name] == expected[name] for name in terms)
    assert all(level.grad.dtype == dtype and level.grad.isfinite().all() for level in (*levels, *beside))


@pytest.mark.parametrize("extreme", [-1e4, -30.0, 30.0, 1e4])
def test_saturated_predictions_have_finite_gradients(extreme, criterion, levels_of, batch_of, some_targets):
    levels = tuple(torch.full_like(level, extreme).requires_grad_() for level in levels_of())
    terms = criterion()(Prediction(levels), batch_of(some_targets()))
    total(terms).backward()
    assert terms["box"] > 0
    assert all(value.isfinite() for value in terms.values())
    assert all(level.grad.isfinite().all() for level in levels)


def test_predictions_that_are_not_numbers_are_an_answer_to_nothing(criterion, levels_of, batch_of, some_targets):
    """The trainer says so; nothing falls over before."""
    levels = tuple(torch.full_like(level, torch.nan) for level in levels_of())
    assert criterion()(Prediction(levels), batch_of(some_targets()))["obj"].isnan()


def test_crowded_cells_give_the_same_bits_each_time(criterion, levels_of, batch_of, some_targets):
    levels, targets = levels_of(), some_targets(300)
    targets[:, 2:4] = 0.5 + targets[:, 2:4] * 0.02
    results = [criterion()(Prediction(levels), batch_of(targets)) for _ in range(3)]
    assert all(result == results[0] for result in results)


def test_a_crowd_is_compared_in_bounded_memory(criterion, levels_of, batch_of, some_targets, largest_tensor):
    levels, targets = levels_of(size=(320, 320)), some_targets(1020)
    targets[:1000, 0] = 1
    targets[:1000, 4:] *= 0.2
    batch = batch_of(targets)
    loss = criterion(size=(320, 320))
    pool = sum(len(own.image) for own in loss.match.on_levels([x.shape for x in levels], loss.anchors, batch))
    with largest_tensor() as largest:
        found, _ = loss.assign(Prediction(levels), batch)
    assert sum(len(own.image) for own in found) > 500
    assert largest.bytes <= 4 * 4 * ota.PAIRS  # four sides of a box for each pair
    assert largest.bytes < 4 * 4 * 1000 * pool / 10  # instead of all pairs at once
