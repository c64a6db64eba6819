"""The v3 and v5 loss, against the recorded cases and against a loop over targets."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou

from losses import LOSSES
from losses.anchor import AnchorLoss, Gains, rescaled_gains
from utils.types import Batch, Prediction

ANCHORS_PX = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
STRIDES = (8, 16, 32)


@dataclass
class Head:
    """As much of a detection head as the loss looks at."""

    num_classes: int
    anchors: Tensor


@dataclass(frozen=True)
class Recipe:
    """As much of a recipe."""

    box: float = 0.05
    obj: float = 1.0
    cls: float = 0.5
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0
    fl_gamma: float = 0.0
    label_smoothing: float = 0.0


def head_with(num_classes: int, anchors_px=ANCHORS_PX, strides=STRIDES) -> Head:
    scaled = torch.tensor(anchors_px, dtype=torch.float32) / torch.tensor(strides, dtype=torch.float32)[:, None, None]
    return Head(num_classes, scaled)


def criterion(num_classes: int = 3, size: tuple[int, int] = (64, 96), **hyp) -> AnchorLoss:
    recipe = Recipe(**hyp)
    return AnchorLoss(head_with(num_classes), recipe, size, Gains(recipe.box, recipe.obj, recipe.cls))


def levels_of(images: int = 2, num_classes: int = 3, size: tuple[int, int] = (64, 96)) -> tuple[Tensor, ...]:
    shapes = [(images, 3, size[0] // s, size[1] // s, 5 + num_classes) for s in STRIDES]
    return tuple(torch.randn(shape).requires_grad_() for shape in shapes)


def batch_of(targets: Tensor, images: int = 2, labelled: list[bool] | None = None) -> Batch:
    known = torch.tensor(labelled if labelled is not None else [True] * images)
    return Batch(torch.zeros(images, 3, 64, 96), targets, known)


def some_targets(count: int = 12, images: int = 2, num_classes: int = 3) -> Tensor:
    image = torch.randint(images, (count, 1))
    label = torch.randint(num_classes, (count, 1))
    return torch.cat((image, label, torch.rand(count, 2), torch.rand(count, 2) * 0.5 + 0.05), dim=1)


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(terms.values())


# -- the recorded cases ------------------------------------------------------------------------------------------------


def recorded_names() -> list[str]:
    weights = ("low", "smoothing", "focal", "posweights", "p6")
    return [f"v5-{name}{end}" for name in weights for end in ("", "-no-targets")] + ["v5-one-class"]


@pytest.fixture(scope="module")
def recorded(root) -> dict:
    content = json.loads((root / "tests/assets/losses-v5.json").read_text())
    return {case["name"]: case | {"targets": content["targets"][case["targets"]]} for case in content["cases"]}


def recorded_levels(case: dict) -> tuple[Tensor, ...]:
    """Drawn by the rule that goes with the recorded numbers."""
    rng = np.random.default_rng(case["level_seed"])
    levels = []
    for shape in case["level_shapes"]:
        lowered = np.array([0, 0, 0, 0, 2] + [1.5] * (shape[-1] - 5))
        levels.append(torch.tensor((rng.normal(0, 1, shape) - lowered).astype(np.float32), requires_grad=True))
    return tuple(levels)


def test_every_recorded_case_is_tested(recorded):
    assert sorted(recorded) == sorted(recorded_names())


@pytest.mark.parametrize("name", recorded_names())
def test_loss_and_gradients_equal_the_recorded_ones(recorded, name):
    case = recorded[name]
    levels, images = recorded_levels(case), case["level_shapes"][0][0]
    targets = torch.tensor(case["targets"], dtype=torch.float32).reshape(-1, 6)
    recipe = Recipe(**case["hyp"])
    head = head_with(case["level_shapes"][0][-1] - 5, case["anchors_px"], case["stride"])
    loss = AnchorLoss(head, recipe, tuple(case["image_height_width"]), Gains(recipe.box, recipe.obj, recipe.cls))

    terms = loss(Prediction(levels), batch_of(targets, images))
    summed = total(terms) * images
    summed.backward()

    assert list(terms) == ["box", "obj", "cls"]
    assert [t.item() for t in terms.values()] == pytest.approx(case["items"], rel=1e-4)
    assert summed.item() == pytest.approx(case["total"], rel=1e-4)
    assert [float(v.grad.norm()) for v in levels] == pytest.approx(case["gradient_norms"], rel=1e-4)
    assert [float(v.grad.abs().sum()) for v in levels] == pytest.approx(case["gradient_sums_abs"], rel=1e-4)


# -- a loop over offsets, anchors and targets --------------------------------------------------------------------------


def slow_terms(levels: tuple[Tensor, ...], targets: Tensor, head: Head, recipe: Recipe) -> list[Tensor]:
    """Box, objectness and class terms, cell by cell, as they are defined."""
    box_term = obj_term = cls_term = torch.zeros(())
    for level, anchors, balance in zip(levels, head.anchors, (4.0, 1.0, 0.4), strict=True):
        _, num_anchors, height, width, _ = level.shape
        wanted = torch.zeros(level.shape[:4])
        box_losses, class_losses = [], []
        for step_x, step_y in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
            for a in range(num_anchors):
                for image, label, x, y, w, h in targets.tolist():
                    x, y, w, h = x * width, y * height, w * width, h * height
                    factors = [w / float(anchors[a, 0]), h / float(anchors[a, 1])]
                    if max(max(f, 1 / f) for f in factors) >= recipe.anchor_t:
                        continue
                    # a neighbour counts where the centre lies in the half of the cell next to it; measured from the
                    # other end for right and down, so that a centre just between two cells has its own cell twice
                    if (step_x == -1 and (x % 1 >= 0.5 or x <= 1)) or (step_y == -1 and (y % 1 >= 0.5 or y <= 1)):
                        continue
                    left_over, below = width - x, height - y
                    if step_x == 1 and (left_over % 1 >= 0.5 or left_over <= 1):
                        continue
                    if step_y == 1 and (below % 1 >= 0.5 or below <= 1):
                        continue
                    column, row = min(int(x + step_x / 2), width - 1), min(int(y + step_y / 2), height - 1)
                    raw = level[int(image), a, row, column]
                    centre = raw[:2].sigmoid() * 2 - 0.5 + torch.tensor([column, row])
                    half = (raw[2:4].sigmoid() * 2) ** 2 * anchors[a] / 2
                    box = torch.cat((centre - half, centre + half))
                    aim = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                    overlap = complete_box_iou(box[None], aim[None])[0, 0]
                    box_losses.append(1 - overlap)
                    wanted[int(image), a, row, column] = overlap.detach().clamp(min=0)
                    aims = torch.full((head.num_classes,), recipe.label_smoothing / 2)
                    aims[int(label)] = 1 - recipe.label_smoothing / 2
                    probability = raw[5:].sigmoid()
                    class_losses.append(-(aims * probability.log() + (1 - aims) * (1 - probability).log()))
        if box_losses:
            box_term = box_term + torch.stack(box_losses).mean()
            cls_term = cls_term + torch.stack(class_losses).mean()
        probability = level[..., 4].sigmoid()
        entropy = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log())
        obj_term = obj_term + balance * entropy.mean()
    return [recipe.box * box_term, recipe.obj * obj_term, recipe.cls * cls_term]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_equals_a_loop_over_targets(smoothing):
    levels, targets = levels_of(), some_targets(20)
    loss = criterion(label_smoothing=smoothing)
    terms = list(loss(Prediction(levels), batch_of(targets)).values())
    expected = slow_terms(levels, targets, head_with(3), Recipe(label_smoothing=smoothing))
    assert torch.allclose(torch.stack(terms), torch.stack(expected), rtol=1e-4)
    ours = torch.autograd.grad(sum(terms), levels)
    theirs = torch.autograd.grad(sum(expected), levels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_targets_at_borders_stay_in_the_map(x, y):
    levels, targets = levels_of(), torch.tensor([[1, 2, x, y, 0.3, 0.3]])
    terms = list(criterion()(Prediction(levels), batch_of(targets)).values())
    expected = slow_terms(levels, targets, head_with(3), Recipe())
    assert torch.allclose(torch.stack(terms), torch.stack(expected), rtol=1e-4)


# -- edges -------------------------------------------------------------------------------------------------------------


def test_no_targets_leave_objectness_alone_with_a_gradient():
    levels = levels_of()
    terms = criterion()(Prediction(levels), batch_of(torch.zeros(0, 6)))
    total(terms).backward()
    assert terms["box"] == 0 and terms["cls"] == 0 and terms["obj"] > 0
    assert all(level.grad.isfinite().all() and level.grad[..., 4].abs().min() > 0 for level in levels)


def test_targets_that_no_anchor_fits_are_background():
    levels = levels_of()
    sliver = torch.tensor([[0, 1, 0.5, 0.5, 0.9, 0.0001], [1, 1, 0.5, 0.5, 0.0, 0.0]])
    terms = criterion()(Prediction(levels), batch_of(sliver))
    nothing = criterion()(Prediction(levels), batch_of(torch.zeros(0, 6)))
    assert terms == nothing


def test_a_single_class_has_no_class_term():
    levels = levels_of(num_classes=1)
    terms = criterion(num_classes=1)(Prediction(levels), batch_of(some_targets(num_classes=1)))
    total(terms).backward()
    assert terms["cls"] == 0 and terms["box"] > 0
    assert all(level.grad[..., 5:].abs().max() == 0 for level in levels)


def test_unlabelled_images_have_no_part_in_any_term():
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


def test_without_labelled_images_all_terms_are_zero_and_in_the_graph():
    levels = levels_of()
    terms = criterion()(Prediction(levels), batch_of(some_targets(), labelled=[False, False]))
    total(terms).backward()
    assert all(value == 0 for value in terms.values())
    assert all(level.grad.abs().max() == 0 for level in levels)


def test_the_last_match_of_a_cell_gives_its_objectness():
    # the same cell and anchor twice; the boxes differ, so their overlaps do
    first, second = [0, 0, 0.52, 0.52, 0.3, 0.3], [0, 1, 0.52, 0.52, 0.5, 0.5]
    levels = levels_of()
    terms = {}
    for name, rows in (("first", [first]), ("second", [second]), ("both", [first, second])):
        terms[name] = criterion()(Prediction(levels), batch_of(torch.tensor(rows)))["obj"]
    recipe, head = Recipe(), head_with(3)
    for rows in ([first, second], [second, first]):
        expected = slow_terms(levels, torch.tensor(rows), head, recipe)[1]
        obtained = criterion()(Prediction(levels), batch_of(torch.tensor(rows)))["obj"]
        assert obtained.item() == pytest.approx(expected.item(), rel=1e-5)
    swapped = criterion()(Prediction(levels), batch_of(torch.tensor([second, first])))["obj"]
    assert terms["both"] != swapped


def test_crowded_cells_give_the_same_bits_each_time():
    levels = levels_of()
    targets = some_targets(300)
    targets[:, 2:4] = 0.5 + targets[:, 2:4] * 0.02
    results = [criterion()(Prediction(levels), batch_of(targets)) for _ in range(5)]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_levels_are_judged_in_float32(dtype):
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
def test_saturated_predictions_have_finite_gradients(extreme, gamma):
    levels = tuple(torch.full_like(level, extreme).requires_grad_() for level in levels_of())
    terms = criterion(fl_gamma=gamma)(Prediction(levels), batch_of(some_targets()))
    total(terms).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(level.grad.isfinite().all() for level in levels)


def test_duplicate_rows_of_objects_of_one_image_do_not_touch_another():
    levels, targets = levels_of(), some_targets(20)
    targets[:, 0] = 1
    terms = criterion()(Prediction(levels), batch_of(targets))
    (terms["box"] + terms["cls"]).backward()
    assert all(level.grad[0].abs().max() == 0 for level in levels)


def test_the_loss_falls_to_its_floor_when_trained():
    levels, targets = levels_of(), some_targets(6)
    optimizer = torch.optim.Adam(levels, lr=0.2)
    values = []
    for _ in range(80):
        optimizer.zero_grad()
        value = total(criterion()(Prediction(levels), batch_of(targets)))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.15 * values[0]


# -- its surroundings --------------------------------------------------------------------------------------------------


def test_gains_are_rescaled_by_levels_classes_and_size():
    recipe = Recipe(box=0.05, obj=1.0, cls=0.5)
    assert rescaled_gains(recipe, 3, 80, (640, 640)) == pytest.approx((0.05, 1.0, 0.5))
    assert rescaled_gains(recipe, 4, 20, (320, 640)) == pytest.approx((0.0375, 0.375, 0.09375))


def test_gains_of_the_recipe_are_rescaled_unless_given():
    loss = AnchorLoss(head_with(3), Recipe(), (64, 96))
    assert loss.gains == rescaled_gains(Recipe(), 3, 3, (64, 96))


def test_the_recipe_is_not_edited():
    recipe = Recipe()
    before = asdict(recipe)
    AnchorLoss(head_with(3), recipe, (64, 96))(Prediction(levels_of()), batch_of(some_targets()))
    assert asdict(recipe) == before


def test_the_head_is_neither_owned_nor_copied():
    module = torch.nn.Conv2d(1, 1, 1)
    module.num_classes = 3
    module.anchors = head_with(3).anchors
    loss = AnchorLoss(module, Recipe(), (64, 96))
    assert not list(loss.parameters()) and not loss.state_dict()

    levels, batch = levels_of(), batch_of(some_targets())
    before = loss(Prediction(levels), batch)["box"]
    module.anchors = module.anchors * 1.5  # fitted to the data after the loss was built
    assert loss(Prediction(levels), batch)["box"] != before


def test_auxiliary_levels_are_ignored():
    levels, batch = levels_of(), batch_of(some_targets())
    assert criterion()(Prediction(levels, levels_of()), batch) == criterion()(Prediction(levels), batch)


def test_the_shelf_names_the_loss():
    assert LOSSES["anchor"] is AnchorLoss


def test_the_whole_reference_is_recorded_here(shared, recorded):
    cases = json.loads(gzip.decompress((shared / "reference/parity/losses-v5.json.gz").read_bytes()))
    for case in cases:
        ours = recorded[case["name"]]
        assert [list(map(float, row)) for row in ours["targets"]] == case["targets"]
        assert all(case["hyp"][key] == value for key, value in ours["hyp"].items())
        assert all(case[key] == ours[key] for key in ours if key not in ("targets", "hyp"))
