"""The heads without anchors."""

from __future__ import annotations

import math

import pytest
import torch

from models.blocks.base import LayerSpec
from models.heads import ANCHOR_FREE
from models.heads.anchor_free import AnchorFreeDetect
from models.spec import ModelSpec
from tests.models.confident import assert_confident_rows

CLASSES = 3


def made(**options):
    return AnchorFreeDetect(CLASSES, [8, 12], [8, 16], **options)


@pytest.fixture(params=[16, 1], ids=["bins", "direct"])
def head(request):
    return made(reg_max=request.param)


@pytest.fixture
def two():
    return made(reg_max=1, two_branches=True, light=True)


@pytest.fixture
def maps():
    return [torch.randn(2, 8, 3, 5), torch.randn(2, 12, 2, 3)]


def decoded_slowly(head, levels, image):
    """One cell and one side at a time."""
    rows = []
    for level, stride in zip(levels, (8, 16), strict=True):
        height, width = level.shape[2:]
        for row in range(height):
            for column in range(width):
                numbers = level[image, :, row, column].tolist()
                left, top, right, bottom = (
                    distance(numbers[side * head.reg_max : (side + 1) * head.reg_max]) for side in range(4)
                )
                x, y = column + 0.5, row + 0.5
                box = [x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom]
                scores = [1 / (1 + math.exp(-logit)) for logit in numbers[4 * head.reg_max :]]
                rows.append([stride * side for side in box] + [1.0] + scores)
    return torch.tensor(rows)


def distance(bins):
    if len(bins) == 1:
        return bins[0]
    weights = [math.exp(logit) for logit in bins]
    return sum(place * weight for place, weight in enumerate(weights)) / sum(weights)


def test_decoding_equals_a_loop_over_cells(head, maps):
    levels = head.eval()(maps).levels
    decoded = head.decode(levels)
    for image in range(2):
        torch.testing.assert_close(decoded[image], decoded_slowly(head, levels, image), rtol=1e-4, atol=1e-3)


def test_boxes_of_a_level_are_those_of_the_decoded_rows(head, maps):
    levels = head(maps).levels
    boxes = head.decode_boxes(1, levels[1])
    assert boxes.shape == (2, 1, 2, 3, 4)
    assert torch.equal(boxes.flatten(1, 3), head.decode(levels)[:, 3 * 5 :, :4])


def test_half_precision_levels_are_decoded_in_float32(head, maps):
    half = [level.bfloat16() for level in head(maps).levels]
    assert head.decode(half).dtype == torch.float32
    torch.testing.assert_close(head.decode(half), head.decode([level.float() for level in half]))


@pytest.mark.parametrize("conf", [0.01, 0.5, 0.9])
def test_confident_rows_are_those_of_all_that_are_decoded(head, conf):
    levels = [3 * torch.randn(2, 4 * head.reg_max + CLASSES, *size) for size in ((3, 5), (2, 3))]
    levels[0][:, -CLASSES:] -= 4
    assert_confident_rows(head, levels, conf, has_objectness=False)
    assert_confident_rows(head, [level.bfloat16() for level in levels], conf, has_objectness=False)


def test_what_is_not_a_number_is_among_the_confident_rows(head):
    levels = [torch.full((2, 4 * head.reg_max + CLASSES, *size), -9.0) for size in ((3, 5), (2, 3))]
    levels[1][1, -1, 0, 2] = torch.nan
    confident = head.decode_confident(levels, 0.5)
    assert confident.image.tolist() == [1] and confident.rows.isnan().any()


def test_it_starts_near_five_objects_an_image(maps):
    head = made()
    for box_tower, class_tower, stride in zip(head.cv2, head.cv3, (8, 16), strict=True):
        assert (box_tower[-1].bias == 1).all()
        cells = (640 / stride) ** 2
        expected = cells * class_tower[-1].bias.exp().sum()  # at such odds a probability is its odds
        assert expected.item() == pytest.approx(5, rel=1e-5)


def test_training_puts_out_both_branches_and_evaluation_the_one_in_use(two, maps):
    both = two.train()(maps)
    assert len(both.levels) == len(both.aux) == 2
    assert two.dense(both) is both.aux
    two.eval()
    one = two(maps)
    assert one.aux == () and two.nms_free
    two.use("one_to_many")
    many = two(maps)
    assert many.aux == () and not two.nms_free
    assert not torch.equal(one.levels[0], many.levels[0])


@pytest.mark.parametrize("branch", ["one_to_one", "one_to_many"])
def test_a_fused_head_keeps_the_branch_in_use(two, maps, branch):
    two.eval().use(branch)
    before, parameters = two(maps).levels, sum(p.numel() for p in two.parameters())
    two.fuse()
    two.fuse()  # nothing the second time
    torch.testing.assert_close(two(maps).levels, before)
    assert sum(p.numel() for p in two.parameters()) == parameters // 2
    assert two.train()(maps).aux == ()


def test_the_one_to_one_branch_does_not_move_the_layers_before_it(two, maps):
    maps = [x.requires_grad_() for x in maps]
    prediction = two.train()(maps)
    assert torch.autograd.grad(sum(x.sum() for x in prediction.levels), maps, allow_unused=True) == (None, None)
    gradients = torch.autograd.grad(sum(x.sum() for x in prediction.aux), maps)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_head_of_one_branch_has_no_choice(head):
    head.use("one_to_one")
    assert not head.nms_free and not head.learns_along
    with pytest.raises(ValueError, match="no branch is called 'both'; known: one_to_many, one_to_one"):
        head.use("both")


def test_towers_of_three_stages_make_a_level(two, maps):
    boxes, classes = two.towers(1)
    level = two.eval().branch_levels("one_to_many", maps)[1]
    torch.testing.assert_close(torch.cat((boxes(maps[1]), classes(maps[1])), dim=1), level)
    assert len(boxes) == len(classes) == 3


def test_bins_of_checkpoints_are_kept_and_never_learn():
    head = made()
    assert head.state_dict()["dfl.conv.weight"].flatten().tolist() == list(range(16))
    assert "dfl.conv.weight" not in {name for name, own in head.named_parameters() if own.requires_grad}
    assert not any("dfl" in key for key in made(reg_max=1).state_dict())


def row(*args):
    return LayerSpec(2, (0, 1), 1, "Detect", args, "here")


def spec(block="C2f", **options):
    return ModelSpec("mine", ((-1, 1, block, (8,)),), (([0], 1, "Detect", ("nc",)),), **options)


@pytest.mark.parametrize(
    "block, light", [("C2f", False), ("C3", False), ("C3k2", True), ("A2C2f", True), ("C2fCIB", True)]
)
def test_class_towers_are_light_since_yolo11(block, light):
    head = ANCHOR_FREE["Detect"].from_spec(row("nc"), [8], [8], CLASSES, spec(block))
    groups = [module.groups for module in head.cv3.modules() if isinstance(module, torch.nn.Conv2d)]
    assert (max(groups) > 1) is light


def test_a_model_file_chooses_bins_and_branches():
    head = ANCHOR_FREE["Detect"].from_spec(row("nc"), [8], [8], CLASSES, spec(reg_max=4, end2end=True))
    assert head.reg_max == 4 and head.two_branches
    assert ANCHOR_FREE["v10Detect"].from_spec(row("nc"), [8], [8], CLASSES, spec()).two_branches


def test_a_row_that_names_anchors_without_the_key_is_said():
    with pytest.raises(ValueError, match="names anchors, and the model file has no key 'anchors'"):
        ANCHOR_FREE["Detect"].from_spec(row("nc", "anchors"), [8], [8], CLASSES, spec())
