from __future__ import annotations

import math

import pytest
import torch

from models.heads.anchor import Detect
from models.heads.bins import BINS, IBin
from models.heads.implicit import IAuxDetect, IDetect
from tests.models.confident import assert_confident_rows

ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]]


@pytest.fixture
def head():
    return Detect(2, ANCHORS, [4, 6], [8, 16])


def decoded_slowly(head, levels):
    """The published formula, one cell at a time."""
    rows = []
    for i, level in enumerate(levels):
        stride = head.strides[i].item()
        for image in level:
            for a, anchor in enumerate(image):
                for row, line in enumerate(anchor):
                    for column, cell in enumerate(line):
                        x, y, w, h, *scores = (1 / (1 + math.exp(-value)) for value in cell.tolist())
                        width, height = ANCHORS[i][2 * a : 2 * a + 2]
                        box = [
                            (2 * x - 0.5 + column) * stride,
                            (2 * y - 0.5 + row) * stride,
                            (2 * w) ** 2 * width,
                            (2 * h) ** 2 * height,
                        ]
                        rows.append(box + scores)
    return torch.tensor(rows)


def test_decoding_equals_the_published_formula(head):
    levels = [torch.randn(1, 3, 3, 5, 7), torch.randn(1, 3, 2, 3, 7)]
    torch.testing.assert_close(head.decode(levels)[0], decoded_slowly(head, levels), rtol=1e-4, atol=1e-4)


def test_boxes_of_one_level_are_those_of_the_decoded_rows(head):
    levels = [torch.randn(2, 3, 3, 5, 7), torch.randn(2, 3, 2, 3, 7)]
    boxes = head.decode_boxes(1, levels[1][..., :4])
    assert boxes.shape == (2, 3, 2, 3, 4)
    assert torch.equal(boxes.flatten(1, 3), head.decode(levels)[:, 3 * 3 * 5 :, :4])


def test_half_precision_levels_are_decoded_in_float32(head):
    levels = [torch.randn(1, 3, 3, 5, 7), torch.randn(1, 3, 2, 3, 7)]
    half = [level.bfloat16() for level in levels]
    decoded = head.decode(half)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, head.decode([level.float() for level in half]))


@pytest.mark.parametrize("conf", [0.01, 0.5, 0.9])
def test_confident_rows_are_those_of_all_that_are_decoded(head, conf):
    levels = [3 * torch.randn(2, 3, 5, 7, 7), 3 * torch.randn(2, 3, 3, 4, 7)]
    assert_confident_rows(head, levels, conf, has_objectness=True)
    assert_confident_rows(head, [level.half() for level in levels], conf, has_objectness=True)


def test_what_is_not_a_number_is_among_the_confident_rows(head):
    levels = [torch.full((2, 3, 5, 7, 7), -9.0), torch.full((2, 3, 3, 4, 7), -9.0)]
    levels[1][1, 2, 0, 3, 4] = torch.nan
    confident = head.decode_confident(levels, 0.5)
    assert confident.image.tolist() == [1] and confident.rows.isnan().any()


@pytest.mark.parametrize("index", [0, 1])
def test_encoding_undoes_decoding(head, index):
    level = 2 * torch.randn(2, 3, 5, 7, 4)
    logits = head.encode_boxes(index, head.decode_boxes(index, level))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, level, rtol=1e-3, atol=1e-3)


def test_a_box_is_encoded_for_its_cell_and_anchor(head):
    boxes = torch.ones(1, 3, 5, 7, 4)
    boxes[0, 2, 4, 6] = torch.tensor([100.0, 75, 59, 238])  # (6.25, 4.6875) cells; the anchor, and twice its height
    x, y, w, h = head.encode_boxes(1, boxes)[0, 2, 4, 6].sigmoid().tolist()
    assert x == pytest.approx((6.25 - 6 + 0.5) / 2)
    assert y == pytest.approx((4.6875 - 4 + 0.5) / 2)
    assert w == pytest.approx(1 / 2)
    assert h == pytest.approx(math.sqrt(2) / 2)


def test_boxes_out_of_reach_become_the_nearest_that_a_cell_can_say(head):
    boxes = torch.zeros(3, 3, 5, 7, 4)
    boxes[0, ..., :2], boxes[0, ..., 2:] = -1000, 0
    boxes[1, ..., :2], boxes[1, ..., 2:] = 1000, 1000
    boxes[2] = -torch.inf
    logits = head.encode_boxes(0, boxes)
    assert logits.isfinite().all()
    found = head.decode_boxes(0, logits)
    corner = torch.tensor([3.0, 2.0]) * 8  # of the cell in row 2, column 3
    close = {"rtol": 1e-3, "atol": 1e-2}
    for image, cells, sides in ((0, -0.5, 0), (1, 1.5, 4), (2, -0.5, 0)):
        torch.testing.assert_close(found[image, 0, 2, 3, :2], corner + 8 * cells, **close)
        torch.testing.assert_close(found[image, 0, 2, 3, 2:], torch.tensor(ANCHORS[0][:2]) * float(sides), **close)


def test_half_precision_boxes_are_encoded_in_float32(head):
    boxes = head.decode_boxes(0, torch.randn(1, 3, 3, 5, 4)).half()
    assert torch.equal(head.encode_boxes(0, boxes), head.encode_boxes(0, boxes.float()))


def test_anchors_are_kept_in_units_of_the_stride(head):
    assert torch.equal(head.anchors_px, torch.tensor(ANCHORS, dtype=torch.float32).view(2, 3, 2))
    assert torch.equal(head.anchors[1, 0], torch.tensor([30 / 16, 61 / 16]))
    assert list(dict(head.named_buffers())) == ["strides", "anchors"]
    assert set(head.state_dict()) == {"anchors", "m.0.weight", "m.0.bias", "m.1.weight", "m.1.bias"}


def test_coarsest_anchors_first_are_turned_round(head):
    turned = Detect(2, ANCHORS[::-1], [4, 6], [8, 16])
    assert torch.equal(turned.anchors, head.anchors)
    coarse_first = Detect(2, ANCHORS, [6, 4], [16, 8])
    assert torch.equal(coarse_first.anchors_px, head.anchors_px.flip(0))


def test_anchors_can_be_set_in_pixels(head):
    fresh = torch.rand(2, 3, 2) * 50 + 1
    head.set_anchors_px(fresh)
    torch.testing.assert_close(head.anchors_px, fresh)
    with pytest.raises(ValueError, match="do not fit"):
        head.set_anchors_px(fresh[:1])


def test_a_number_of_anchors_waits_for_the_data():
    head = Detect(2, 4, [4, 6], [8, 16])
    assert head.provisional and head.num_anchors == 4 and (head.anchors > 0).all()
    head.set_anchors_px(torch.rand(2, 4, 2) + 1)
    assert not head.provisional


@pytest.mark.parametrize(
    "anchors, message",
    [
        ([[1, 2]], "1 rows of anchors for 2 levels"),
        ([[1, 2], [1, 2, 3, 4]], "same number of anchors"),
        ([[1, 2, 3], [1, 2, 3]], "a width and a height"),
        ([[1, 2], [-3, 4]], "positive"),
        (0, "at least one anchor"),
    ],
)
def test_impossible_anchors_are_refused(anchors, message):
    with pytest.raises(ValueError, match=message):
        Detect(2, anchors, [4, 6], [8, 16])


def test_biases_begin_near_the_usual_share_of_objects():
    torch.manual_seed(0)
    head = Detect(20, ANCHORS, [512, 512], [8, 16])  # many channels: the random part is below 1/sqrt(512)
    for convolution, stride in zip(head.m, (8, 16), strict=True):
        biases = convolution.bias.view(3, 25)
        near = {"rtol": 0, "atol": 512**-0.5}
        torch.testing.assert_close(biases[:, 4], torch.full((3,), math.log(8 / (640 / stride) ** 2)), **near)
        torch.testing.assert_close(biases[:, 5:], torch.full((3, 20), math.log(0.6 / 19.00001)), **near)
        assert biases[:, :4].abs().max() < 512**-0.5


# -- YOLOv7 ------------------------------------------------------------------------------------------------------------


def test_implicit_knowledge_adds_before_and_multiplies_behind_the_convolution():
    head = IDetect(2, ANCHORS, [4, 6], [8, 16]).eval()
    x = torch.randn(2, 4, 3, 5)
    convolution, added, factor = head.m[0], head.ia[0].implicit, head.im[0].implicit
    slow = torch.zeros(2, 21, 3, 5)
    for out in range(21):
        for channel in range(4):
            slow[:, out] += convolution.weight[out, channel, 0, 0] * (x[:, channel] + added[0, channel, 0, 0])
        slow[:, out] = (slow[:, out] + convolution.bias[out]) * factor[0, out, 0, 0]
    expected = slow.view(2, 3, 7, 3, 5).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(head.level(0, x), expected, rtol=1e-4, atol=1e-5)
    head.fuse()
    head.fuse()
    torch.testing.assert_close(head.level(0, x), expected, rtol=1e-4, atol=1e-5)
    assert set(head.state_dict()) == set(Detect(2, ANCHORS, [4, 6], [8, 16]).state_dict())


def test_implicit_knowledge_keeps_the_format_of_half_precision_maps():
    head = IDetect(2, ANCHORS, [4, 6], [8, 16])
    with torch.autocast("cpu", torch.bfloat16):
        assert head.level(0, torch.randn(1, 4, 3, 5).bfloat16()).dtype == torch.bfloat16


def test_lead_and_auxiliary_levels_begin_with_the_same_share_of_objects():
    head = IAuxDetect(2, ANCHORS, [4, 6], [8, 16], [3, 5])
    for convolutions in (head.m, head.m2):
        for convolution, stride in zip(convolutions, (8, 16), strict=True):
            objectness = convolution.bias.view(3, 7)[:, 4]
            assert objectness.mean().item() == pytest.approx(math.log(8 / (640 / stride) ** 2), abs=0.6)


def side_slowly(numbers):
    """In anchors: the middle of the best of 21 bins between 0 and 4, moved by up to one bin either way."""
    correction, *scores = numbers
    best = max(range(BINS), key=lambda k: scores[k])
    side = (best + 0.5) * 4 / BINS + (2 / (1 + math.exp(-correction)) - 1) * 4 / BINS
    return min(max(side, 0), 4)


def test_bins_say_widths_and_heights():
    head = IBin(2, ANCHORS, [4, 6], [8, 16]).eval()
    numbers = torch.randn(1, 3, 3, 5, 2 + 2 * (1 + BINS) + 3)
    head.m[0] = Fixed(numbers.permute(0, 1, 4, 2, 3).flatten(1, 2))
    del head.ia, head.im
    level = head.level(0, torch.zeros(1, 4, 3, 5))
    boxes = head.decode_boxes(0, level)
    for anchor in range(3):
        for row in range(3):
            for column in range(5):
                own = numbers[0, anchor, row, column].tolist()
                width, height = side_slowly(own[2 : 3 + BINS]), side_slowly(own[3 + BINS : 4 + 2 * BINS])
                expected = [width * ANCHORS[0][2 * anchor], height * ANCHORS[0][2 * anchor + 1]]
                assert boxes[0, anchor, row, column, 2:].tolist() == pytest.approx(expected, rel=0.01, abs=0.02)
    assert torch.equal(level[..., 4:], numbers[..., -3:])


class Fixed(torch.nn.Module):
    """Puts out the same whatever comes in."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value
