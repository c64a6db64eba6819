"""The v3 and v5 loss, against the recorded cases and against a loop over targets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from losses.anchor import AUXILIARY, AnchorLoss, Gains, rescaled_gains
from utils.family import ANCHORS, box_gain
from utils.hyp import Hyp
from utils.types import Prediction


@pytest.fixture
def criterion(head_with) -> Callable[..., AnchorLoss]:
    def make(num_classes: int = 3, size: tuple[int, int] = (64, 96), **hyp) -> AnchorLoss:
        recipe = Hyp(**hyp)
        return AnchorLoss(
            head_with(num_classes), recipe, size, Gains(box_gain(recipe, ANCHORS), recipe.obj, recipe.cls)
        )

    return make


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(terms.values())


# -- the recorded cases ------------------------------------------------------------------------------------------------


def recorded_names() -> list[str]:
    weights = ("low", "smoothing", "focal", "posweights", "p6")
    return [f"v5-{name}{end}" for name in weights for end in ("", "-no-targets")] + ["v5-one-class"]


@pytest.fixture
def recorded(root, cases_in) -> dict:
    return cases_in(root / "tests/assets/losses-v5.json")


def test_every_recorded_case_is_tested(recorded):
    assert sorted(recorded) == sorted(recorded_names())


@pytest.mark.parametrize("name", recorded_names())
def test_loss_and_gradients_equal_the_recorded_ones(recorded, replay, name):
    for field, value in replay(recorded[name], AnchorLoss)._asdict().items():
        assert value == pytest.approx(recorded[name][field], rel=1e-6), field


# -- a loop over offsets, anchors and targets --------------------------------------------------------------------------


@pytest.fixture
def expected_terms(slow_terms, slow_ratio_matches, head_with) -> Callable[..., list[Tensor]]:
    def make(levels: tuple[Tensor, ...], targets: Tensor, **hyp) -> list[Tensor]:
        head = head_with(levels[0].shape[-1] - 5)
        return slow_terms(levels, slow_ratio_matches(levels, targets, head), targets, head, Hyp(**hyp))

    return make


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_equals_a_loop_over_targets(smoothing, criterion, expected_terms, levels_of, batch_of, some_targets):
    levels, targets = levels_of(), some_targets(20)
    loss = criterion(label_smoothing=smoothing)
    terms = list(loss(Prediction(levels), batch_of(targets)).values())
    expected = expected_terms(levels, targets, label_smoothing=smoothing)
    assert torch.allclose(torch.stack(terms), torch.stack(expected), rtol=1e-4)
    ours = torch.autograd.grad(sum(terms), levels)
    theirs = torch.autograd.grad(sum(expected), levels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_targets_at_borders_stay_in_the_map(x, y, criterion, expected_terms, levels_of, batch_of):
    levels, targets = levels_of(), torch.tensor([[1, 2, x, y, 0.3, 0.3]])
    terms = list(criterion()(Prediction(levels), batch_of(targets)).values())
    expected = expected_terms(levels, targets)
    assert torch.allclose(torch.stack(terms), torch.stack(expected), rtol=1e-4)


# -- edges -------------------------------------------------------------------------------------------------------------


def test_no_targets_leave_objectness_alone_with_a_gradient(criterion, levels_of, batch_of):
    levels = levels_of()
    terms = criterion()(Prediction(levels), batch_of(torch.zeros(0, 6)))
    total(terms).backward()
    assert terms["box"] == 0 and terms["cls"] == 0 and terms["obj"] > 0
    assert all(level.grad.isfinite().all() and level.grad[..., 4].abs().min() > 0 for level in levels)


def test_targets_that_no_anchor_fits_are_background(criterion, levels_of, batch_of):
    levels = levels_of()
    sliver = torch.tensor([[0, 1, 0.5, 0.5, 0.9, 0.0001], [1, 1, 0.5, 0.5, 0.0, 0.0]])
    terms = criterion()(Prediction(levels), batch_of(sliver))
    nothing = criterion()(Prediction(levels), batch_of(torch.zeros(0, 6)))
    assert terms == nothing


def test_a_single_class_has_no_class_term(criterion, levels_of, batch_of, some_targets):
    levels = levels_of(num_classes=1)
    terms = criterion(num_classes=1)(Prediction(levels), batch_of(some_targets(num_classes=1)))
    total(terms).backward()
    assert terms["cls"] == 0 and terms["box"] > 0
    assert all(level.grad[..., 5:].abs().max() == 0 for level in levels)


def test_unlabelled_images_have_no_part_in_any_term(criterion, levels_of, batch_of, some_targets):
    levels, targets = levels_of(images=3), some_targets(30, images=3)
    loss = criterion()
    masked = loss(Prediction(levels), batch_of(targets, 3, [True, False, True]))
    total(masked).backward()
    kept = [0, 2]
    alone = targets[targets[:, 0] != 1]
    alone[:, 0] = alone[:, 0] / 2  # images 0 and 2 become 0 and 1
    expected = loss(Prediction(tuple(level[kept] for level in levels)), batch_of(alone))
    for name, value in masked.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5)
    assert all(level.grad[1].abs().max() == 0 for level in levels)


def test_without_labelled_images_all_terms_are_zero_and_in_the_graph(criterion, levels_of, batch_of, some_targets):
    levels = levels_of()
    terms = criterion()(Prediction(levels), batch_of(some_targets(), labelled=[False, False]))
    total(terms).backward()
    assert all(value == 0 for value in terms.values())
    assert all(level.grad.abs().max() == 0 for level in levels)


def test_the_last_match_of_a_cell_gives_its_objectness(criterion, expected_terms, levels_of, batch_of):
    # the same cell and anchor twice; the boxes differ, so their overlaps do
    first, second = [0, 0, 0.52, 0.52, 0.3, 0.3], [0, 1, 0.52, 0.52, 0.5, 0.5]
    levels = levels_of()
    terms = {}
    for name, rows in (("first", [first]), ("second", [second]), ("both", [first, second])):
        terms[name] = criterion()(Prediction(levels), batch_of(torch.tensor(rows)))["obj"]
    for rows in ([first, second], [second, first]):
        expected = expected_terms(levels, torch.tensor(rows))[1]
        obtained = criterion()(Prediction(levels), batch_of(torch.tensor(rows)))["obj"]
        assert obtained.item() == pytest.approx(expected.item(), rel=1e-5)
    swapped = criterion()(Prediction(levels), batch_of(torch.tensor([second, first])))["obj"]
    assert terms["both"] != swapped


def test_crowded_cells_give_the_same_bits_each_time(criterion, levels_of, batch_of, some_targets):
    levels = levels_of()
    targets = some_targets(300)
    targets[:, 2:4] = 0.5 + targets[:, 2:4] * 0.02
    results = [criterion()(Prediction(levels), batch_of(targets)) for _ in range(5)]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_levels_are_judged_in_float32(dtype, criterion, levels_of, batch_of, some_targets):
    levels = tuple(level.detach().to(dtype).requires_grad_() for level in levels_of())
    targets = some_targets()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = criterion()(Prediction(levels), batch_of(targets))
    total(terms).backward()
    expected = criterion()(Prediction(tuple(level.detach().float() for level in levels)), batch_of(targets))
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert all(terms[name] == expected[name] for name in terms)
    assert all(level.grad.dtype == dtype and level.grad.isfinite().all() for level in levels)


@pytest.mark.parametrize("extreme", [-1e4, -30.0, 30.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5])
def test_saturated_predictions_have_finite_gradients(extreme, gamma, criterion, levels_of, batch_of, some_targets):
    levels = tuple(torch.full_like(level, extreme).requires_grad_() for level in levels_of())
    terms = criterion(fl_gamma=gamma)(Prediction(levels), batch_of(some_targets()))
    total(terms).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(level.grad.isfinite().all() for level in levels)


def test_duplicate_rows_of_objects_of_one_image_do_not_touch_another(criterion, levels_of, batch_of, some_targets):
    levels, targets = levels_of(), some_targets(20)
    targets[:, 0] = 1
    terms = criterion()(Prediction(levels), batch_of(targets))
    (terms["box"] + terms["cls"]).backward()
    assert all(level.grad[0].abs().max() == 0 for level in levels)


# -- matched by the overlap of shapes ----------------------------------------------------------------------------------


def test_assigned_by_iou_the_loss_equals_a_loop(
    criterion, head_with, levels_of, batch_of, some_targets, slow_terms, slow_iou_matches, slow_overlapping
):
    levels, targets, head = levels_of(), some_targets(20), head_with(3)
    terms = list(criterion(assign="iou", ignore_iou=0.4)(Prediction(levels), batch_of(targets)).values())

    matches = slow_iou_matches(levels, targets, head)
    answers = {(number, *answer[:4]) for number, own in enumerate(matches) for answer in own}
    above = slow_overlapping(levels, targets, head, 0.4)
    ignored = above - answers
    expected = slow_terms(levels, matches, targets, head, Hyp(), ignored)
    assert ignored and ignored != above
    assert torch.allclose(torch.stack(terms), torch.stack(expected), rtol=1e-4)
    ours = torch.autograd.grad(sum(terms), levels)
    theirs = torch.autograd.grad(sum(expected), levels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_ignored_predictions_have_no_objectness_gradient_and_others_keep_theirs(
    criterion, head_with, levels_of, batch_of, some_targets, slow_iou_matches, slow_overlapping
):
    levels, targets, head = levels_of(), some_targets(20), head_with(3)
    gradients = []
    for highest in (0.4, 1.0):
        terms = criterion(assign="iou", ignore_iou=highest)(Prediction(levels), batch_of(targets))
        gradients.append([x[..., 4] for x in torch.autograd.grad(terms["obj"], levels)])
    answers = slow_iou_matches(levels, targets, head)
    ignored = slow_overlapping(levels, targets, head, 0.4) - {(n, *a[:4]) for n, own in enumerate(answers) for a in own}
    for number, (some, every) in enumerate(zip(*gradients, strict=True)):
        felt = torch.ones_like(every, dtype=torch.bool)
        for place in ignored:
            if place[0] == number:
                felt[place[1:]] = False
        assert every.abs().min() > 0
        assert torch.equal(some, every * felt)


def test_assigned_by_iou_nothing_to_find_is_background(criterion, levels_of, batch_of):
    levels = levels_of()
    for targets in (torch.zeros(0, 6), torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.0]])):
        terms = criterion(assign="iou")(Prediction(levels), batch_of(targets))
        plain = criterion()(Prediction(levels), batch_of(torch.zeros(0, 6)))
        assert terms == plain
        total(terms).backward()


def test_assigned_by_iou_unlabelled_images_have_no_part(criterion, levels_of, batch_of, some_targets):
    levels, targets = levels_of(), some_targets(20)
    terms = criterion(assign="iou", ignore_iou=0.3)(Prediction(levels), batch_of(targets, labelled=[True, False]))
    total(terms).backward()
    alone = tuple(level[:1] for level in levels)
    own = targets[targets[:, 0] == 0]
    expected = criterion(assign="iou", ignore_iou=0.3)(Prediction(alone), batch_of(own, images=1))
    assert all(terms[name].item() == pytest.approx(expected[name].item(), rel=1e-6) for name in terms)
    assert all(level.grad[1].abs().max() == 0 for level in levels)


# -- its surroundings --------------------------------------------------------------------------------------------------


def test_gains_are_rescaled_by_levels_classes_and_size():
    recipe = Hyp(box=0.05, obj=1.0, cls=0.5)
    assert rescaled_gains(recipe, 3, 80, (640, 640)) == pytest.approx((0.05, 1.0, 0.5))
    assert rescaled_gains(recipe, 4, 20, (320, 640)) == pytest.approx((0.0375, 0.375, 0.09375))


def test_gains_of_the_recipe_are_rescaled_unless_given(head_with):
    loss = AnchorLoss(head_with(3), Hyp(), (64, 96))
    assert loss.gains == rescaled_gains(Hyp(), 3, 3, (64, 96))


def test_the_head_is_neither_owned_nor_copied(head_with, levels_of, batch_of, some_targets):
    module = torch.nn.Conv2d(1, 1, 1)
    module.num_classes = 3
    module.anchors = head_with(3).anchors
    loss = AnchorLoss(module, Hyp(), (64, 96))
    assert not list(loss.parameters()) and not loss.state_dict()

    levels, batch = levels_of(), batch_of(some_targets())
    before = loss(Prediction(levels), batch)["box"]
    module.anchors = module.anchors * 1.5  # fitted to the data after the loss was built
    assert loss(Prediction(levels), batch)["box"] != before


def test_auxiliary_levels_are_judged_alike_and_count_a_quarter(criterion, levels_of, batch_of, some_targets):
    levels, beside, batch = levels_of(), levels_of(), batch_of(some_targets())
    both = criterion()(Prediction(levels, beside), batch)
    lead, auxiliary = criterion()(Prediction(levels), batch), criterion()(Prediction(beside), batch)
    assert AUXILIARY == 0.25
    for name, value in both.items():
        assert value.item() == pytest.approx(lead[name].item() + 0.25 * auxiliary[name].item(), rel=1e-6)


def test_the_whole_reference_is_recorded_here(shared, recorded):
    cases = json.loads(gzip.decompress((shared / "reference/parity/losses-v5.json.gz").read_bytes()))
    for case in cases:
        ours = recorded[case["name"]]
        assert [list(map(float, row)) for row in ours["targets"]] == case["targets"]
        assert all(case["hyp"][key] == value for key, value in ours["hyp"].items())
        assert all(case[key] == ours[key] for key in ours if key not in ("targets", "hyp"))
