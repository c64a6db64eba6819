"""Distributions of distances, where an object is and around it."""

from __future__ import annotations

import pytest
import torch

from distill.outputs.regions import valuable_region
from tests.distill.heads import make_levels
from tests.distill.outputs.conftest import answering
from utils.errors import UserError
from utils.types import Progress


def rows_of(prediction):
    """(B, N, 4, 8) bins and (B, N, 3) classes, logits."""
    flat = torch.cat([level.flatten(2) for level in prediction.levels], dim=2).transpose(1, 2).double()
    return flat[..., :-3].unflatten(-1, (4, 8)), flat[..., -3:]


def divergence(own, other, temperature):
    p, q = ((x / temperature).softmax(-1) for x in (other, own))
    return temperature**2 * sum(
        a * (a / b).log().item() for a, b in zip(p.flatten().tolist(), q.flatten(), strict=True)
    )


def mean_over(mask, own, other, temperature):
    """Over cells, of divergences that are added up over what a cell has."""
    cells = mask.nonzero().tolist()
    return sum(divergence(own[b, n], other[b, n], temperature) for b, n in cells) / len(cells)


def regions_of(student, taught, batch, gamma=0.25):
    main = answering(student, taught, batch)
    return main, valuable_region([(8, 8), (4, 4), (2, 2)], [8, 16, 32], batch, gamma) & ~main


@pytest.mark.parametrize("temperature", [10.0, 1.0])
@pytest.mark.parametrize("gamma", [0.25, 0.7])
def test_it_is_its_formula(temperature, gamma, loss_between, draw_batch):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), draw_batch()
    main, around = regions_of(student, taught, batch, gamma)
    assert main.any() and around.any() and not (main | around).all()
    (own, mine), (other, theirs) = rows_of(student), rows_of(taught)
    parts = [mean_over(mask, own, other, temperature) / 4 for mask in (main, around)]
    classes = mean_over(main, mine, theirs, 2.0)
    for weights in ((0.25, 0.25, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        options = dict(zip(("main", "valuable", "classes"), weights, strict=True))
        loss = loss_between("localization", temperature=temperature, gamma=gamma, **options)
        expected = weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * classes
        assert loss(student, taught, batch).item() == pytest.approx(expected, rel=1e-4)


def test_images_without_labels_have_a_main_region_and_no_other(loss_between, draw_batch):
    student, taught = make_levels("dfl"), make_levels("dfl")
    batch = draw_batch()._replace(labelled=torch.tensor([False, False]))
    (own, _), (other, _) = rows_of(student), rows_of(taught)
    expected = mean_over(answering(student, taught, batch), own, other, 10.0) / 4
    assert loss_between("localization", valuable=0, main=1)(student, taught, batch).item() == pytest.approx(expected)
    assert loss_between("localization", valuable=1, main=0)(student, taught, batch).item() == 0


def test_only_boxes_in_both_regions_are_pulled(loss_between, draw_batch):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), draw_batch()
    main, around = regions_of(student, taught, batch)
    for level in student.levels:
        level.requires_grad_()
    loss_between("localization")(student, taught, batch).backward()
    pulled = torch.cat([level.grad[:, :-3].abs().sum(1).flatten(1) for level in student.levels], dim=1) > 0
    assert torch.equal(pulled, main | around)
    assert all(level.grad[:, -3:].abs().sum() == 0 for level in student.levels)


def test_it_cools_as_its_schedule_says(loss_between, draw_batch):
    student, taught, batch = make_levels("dfl"), make_levels("dfl"), draw_batch()
    loss = loss_between("localization", temperature={"start": 10, "drop": 2, "every": 1, "least": 1})
    loss.temperature.at(Progress(3, 0, 10, 10))
    assert loss(student, taught, batch) == loss_between("localization", temperature=4.0)(student, taught, batch)


@pytest.mark.parametrize("teacher", ["anchors", "direct", "more bins"])
def test_both_heads_need_equal_bins(teacher, loss_between):
    with pytest.raises(UserError, match=r"^output loss 'localization' needs .*(DFL|bins)"):
        loss_between("localization", teacher=teacher)


def test_options_are_checked(loss_between):
    for option, value, said in (
        ("main", -1, "a number of at least 0"),
        ("gamma", 2, "a number from 0 to 1"),
        ("temperature", 0, "a number above 0"),
        ("class_temperature", 0, "a number above 0"),
        ("tal_beta", -1, "a number of at least 0"),
    ):
        with pytest.raises(UserError, match=f"output loss 'localization': {option}: got .*{said}"):
            loss_between("localization", **{option: value})
    with pytest.raises(UserError, match="'localization': main, valuable and classes are all 0, which leaves nothing"):
        loss_between("localization", main=0, valuable=0)
    with pytest.raises(UserError, match=r"'localization': classes compares .* have only one in common; leave it out"):
        loss_between("localization", own=("cat",), other=("cat",), classes=1)
