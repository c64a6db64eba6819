"""Changes of form and frame, against torchvision and by hand."""

from __future__ import annotations

import torch
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image

from utils.boxes import (
    around,
    cell_points,
    clip,
    expected_distances,
    iou_matrix,
    to_original,
    to_tensor,
    xywh_to_xyxy,
    xyxy_to_xywh,
)
from utils.types import Frame

FRAME = Frame(height=480, width=640, scale_y=0.5, scale_x=0.5, offset_y=40, offset_x=0)


def some_corners(count: int = 50) -> torch.Tensor:
    first = torch.rand(count, 2) * 300
    return torch.cat((first, first + torch.rand(count, 2) * 100), dim=1)


def test_forms_equal_torchvision():
    corners = some_corners()
    assert torch.allclose(xyxy_to_xywh(corners), box_convert(corners, "xyxy", "cxcywh"))
    assert torch.allclose(xywh_to_xyxy(xyxy_to_xywh(corners)), corners, atol=1e-4)


def test_forms_work_on_any_number_of_axes_and_on_none():
    assert xywh_to_xyxy(torch.rand(2, 3, 7, 4)).shape == (2, 3, 7, 4)
    assert xyxy_to_xywh(torch.zeros(0, 4)).shape == (0, 4)


def test_clipping_equals_torchvision_and_edits_nothing():
    boxes = some_corners() - 100
    before = boxes.clone()
    assert torch.equal(clip(boxes, (120, 200)), clip_boxes_to_image(boxes, (120, 200)))
    assert torch.equal(boxes, before)


def test_a_box_goes_to_the_original_by_hand():
    box = torch.tensor([[10.0, 50, 110, 140]])
    assert to_original(box, FRAME).tolist() == [[20, 20, 220, 200]]


def test_a_box_lies_around_its_point():
    assert around(torch.tensor([2.5, 1.5]), torch.tensor([1.0, 0.5, 2, 3])).tolist() == [1.5, 1.0, 4.5, 4.5]


def test_overlaps_equal_torchvision():
    boxes, others = some_corners(40), some_corners(30)
    assert torch.equal(iou_matrix(boxes, others), box_iou(boxes, others))


def test_the_way_there_and_back_changes_nothing():
    boxes = some_corners()
    assert torch.allclose(to_original(to_tensor(boxes, FRAME), FRAME), boxes, atol=1e-3)


def test_what_lies_in_the_padding_is_cut():
    box = torch.tensor([[-5.0, 0, 400, 330]])
    assert to_original(box, FRAME).tolist() == [[0, 0, 640, 480]]


def test_overlaps_of_empty_boxes_are_zero():
    assert iou_matrix(torch.zeros(2, 4), torch.zeros(3, 4)).tolist() == [[0] * 3] * 2
    assert iou_matrix(torch.zeros(0, 4), some_corners(3)).shape == (0, 3)


def test_points_lie_amid_their_cells():
    points = cell_points(2, 3)
    assert points.shape == (2, 3, 2)
    assert points.tolist() == [[[column + 0.5, row + 0.5] for column in range(3)] for row in range(2)]


def test_expected_distances_equal_a_loop_over_bins():
    logits = torch.randn(2, 5, 4, 16)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = sum(number * weights[..., number] for number in range(16))
    assert torch.allclose(expected_distances(logits), expected, atol=1e-5)


def test_autocast_leaves_expected_distances_as_they_are():
    logits = 3 * torch.randn(5, 4, 16)
    expected = expected_distances(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(expected_distances(logits), expected)


def test_a_single_bin_is_the_distance_itself():
    logits = torch.randn(3, 4, 1)
    assert torch.equal(expected_distances(logits), logits[..., 0])
