"""Suppression, against a loop and against torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from utils import nms
from utils.nms import confident_rows, highest_scores, non_max_suppression, suppressed
from utils.types import DecodedRows


def decoded_rows(images: int = 2, count: int = 300, num_classes: int = 3, size: float = 320) -> Tensor:
    """(B, N, 5 + C), in heaps, so that there is something to suppress; as unsure as an early model."""
    heaps = torch.rand(images, 20, 2) * size
    which = torch.randint(20, (images, count))
    centres = heaps.gather(1, which[..., None].expand(-1, -1, 2)) + torch.randn(images, count, 2) * 4
    sides = torch.rand(images, count, 2) * 30 + 20
    return torch.cat((centres, sides, torch.rand(images, count, 1 + num_classes)), dim=-1)


def all_rows(decoded: Tensor) -> DecodedRows:
    return confident_rows(decoded, -1)


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def slow_suppression(
    rows: Tensor, conf: float, iou: float, max_det: int, multi_label: bool, agnostic: bool
) -> list[list[float]]:
    """One image, box by box."""
    candidates = []
    for x, y, w, h, objectness, *classes in rows.double().tolist():
        if objectness <= conf:
            continue
        scores = [objectness * score for score in classes]
        wanted = range(len(scores)) if multi_label else [scores.index(max(scores))]
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        candidates += [[*box, scores[label], label] for label in wanted if scores[label] > conf]
    kept: list[list[float]] = []
    for candidate in sorted(candidates, key=lambda c: -c[4]):
        rivals = [k for k in kept if agnostic or k[5] == candidate[5]]
        if all(overlap(candidate, rival) <= iou for rival in rivals):
            kept.append(candidate)
    return kept[:max_det]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("conf", "max_det"), [(0.001, 300), (0.3, 300), (0.001, 7)])
def test_survivors_equal_those_of_a_loop(conf, max_det, multi_label, agnostic):
    decoded = decoded_rows()
    for rows, obtained in zip(
        decoded,
        non_max_suppression(decoded, conf, 0.6, max_det, multi_label=multi_label, agnostic=agnostic),
        strict=True,
    ):
        expected = torch.tensor(slow_suppression(rows, conf, 0.6, max_det, multi_label, agnostic))
        assert torch.allclose(obtained, expected, atol=1e-3)


def test_competing_a_few_at_a_time_changes_nothing():
    decoded = decoded_rows(images=1, count=4000)
    for max_det in (1, 20, 300):
        (obtained,) = non_max_suppression(decoded, max_det=max_det)
        boxes = box_convert(decoded[0, :, :4], "cxcywh", "xyxy").repeat_interleave(3, dim=0)
        scores = (decoded[0, :, 5:] * decoded[0, :, 4:5]).flatten()
        kept = batched_nms(boxes, scores, torch.arange(3).repeat(4000), 0.6)
        assert torch.allclose(obtained[:, 4], scores[kept][:max_det])
        assert torch.allclose(obtained[:, :4], boxes[kept][:max_det], atol=1e-3)


def test_a_crowd_around_one_object_takes_few_rounds(monkeypatch):
    """Wherever few detections are wanted, and nearly all candidates are suppressed."""
    boxes = torch.tensor([100.0, 100, 50, 50]) + 0.01 * torch.rand((1, 2000, 4))
    decoded = torch.cat((boxes, 0.5 + torch.rand((1, 2000, 2)) / 2), dim=2)
    rounds = []
    monkeypatch.setattr(nms, "nms", lambda *given, kernel=nms.nms: rounds.append(1) or kernel(*given))
    (found,) = non_max_suppression(decoded, max_det=2)
    assert len(found) == 1
    assert len(rounds) <= 4


def test_images_whose_rows_are_mixed_are_told_apart():
    """Heads put out level after level, and each has rows of every image."""
    decoded = decoded_rows(images=3)
    parts = [all_rows(part) for part in decoded.split((100, 150, 50), dim=1)]
    rows, image = torch.cat([part.rows for part in parts]), torch.cat([part.image for part in parts])
    expected = non_max_suppression(decoded)
    assert all(torch.equal(*pair) for pair in zip(suppressed(DecodedRows(rows, image, 3)), expected, strict=True))
    highest = [highest_scores(part) for part in (DecodedRows(rows, image, 3), all_rows(decoded))]
    assert all(torch.equal(*pair) for pair in zip(*highest, strict=True))


def test_equal_boxes_of_equal_confidence_leave_the_first():
    """Each box is there twice, and one of both survives: the one whose row comes first, though all are as confident."""
    decoded = decoded_rows(images=1, num_classes=1, count=500)
    decoded[..., 4:] = 0.5
    decoded[..., :2] = torch.arange(500)[:, None] * 100.0
    decoded[..., 2:4] = 50
    decoded[:, 250:, :4] = decoded[:, :250, :4]
    (found,) = non_max_suppression(decoded, max_det=1000)
    assert torch.equal(found[:, 0], decoded[0, :250, 0] - 25)


def test_far_away_classes_lose_no_digits():
    """Boxes a thousand pixels out, of the last of many classes, which overlap by just more and just less than 0.6."""
    rows = torch.zeros(1, 4, 5 + 1000)
    rows[0, :, :4] = torch.tensor(
        [[1000.0, 1000, 10, 10], [1000, 1000, 10, 6.001], [50, 50, 10, 10], [50, 50, 10, 5.999]]
    )
    rows[0, :, 4] = torch.tensor([0.9, 0.8, 0.7, 0.6])
    rows[0, :, -1] = 1
    (found,) = non_max_suppression(rows)
    assert found[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_boxes_left_of_the_image_suppress_no_other_class():
    # moved apart by classes, coordinates below zero must not reach into the class before
    decoded = torch.tensor(
        [[[90.0, 90, 20, 20, 1, 0.9, 0], [-11, -11, 20, 20, 1, 0, 0.8], [50, 50, 10, 10, 1, 0.7, 0]]]
    )
    (found,) = non_max_suppression(decoded, conf=0.25, iou=0.1)
    assert len(found) == 3


@pytest.mark.parametrize("num_classes", [1, 80])
def test_any_number_of_classes(num_classes):
    decoded = decoded_rows(num_classes=num_classes, count=100)
    decoded[..., 5:] /= num_classes
    for rows, found in zip(decoded, non_max_suppression(decoded, 0.01), strict=True):
        assert torch.allclose(found, torch.tensor(slow_suppression(rows, 0.01, 0.6, 300, True, False)), atol=1e-3)


def test_nothing_confident_gives_empty_images():
    for decoded in (decoded_rows() * 0, torch.zeros(2, 0, 8)):
        assert [tuple(found.shape) for found in non_max_suppression(decoded)] == [(0, 6), (0, 6)]
    assert non_max_suppression(torch.zeros(0, 10, 8)) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", range(7))
def test_rows_that_are_not_finite_are_dropped(bad, column):
    decoded = decoded_rows(images=1, num_classes=2)
    (expected,) = non_max_suppression(decoded)
    broken = decoded[:, :5].clone()
    broken[..., 4:] = 0.99
    broken[..., column] = bad
    (found,) = non_max_suppression(torch.cat((broken, decoded), dim=1))
    assert torch.equal(found, expected)


def test_only_wanted_classes_are_kept():
    decoded = decoded_rows()
    for chosen, full in zip(
        non_max_suppression(decoded, classes=[0, 2]), non_max_suppression(decoded, max_det=3000), strict=True
    ):
        assert torch.equal(chosen, full[full[:, 5] != 1][:300])
    assert all(len(found) == 0 for found in non_max_suppression(decoded, classes=[]))


def test_only_the_best_candidates_compete(monkeypatch):
    monkeypatch.setattr(nms, "MOST_CANDIDATES", 5)
    decoded = decoded_rows(images=1)
    (found,) = non_max_suppression(decoded, iou=1.0)
    (full,) = non_max_suppression(decoded, iou=1.0, max_det=5)
    assert len(found) == 5 and torch.equal(found, full)


def test_equal_confidences_keep_their_order():
    decoded = decoded_rows(images=1, num_classes=1)
    decoded[..., 4:] = 0.5
    decoded[..., 2:4] = 2
    (found,) = non_max_suppression(decoded, iou=1.0)
    assert torch.allclose(found[:, :2], decoded[0, : len(found), :2] - 1, atol=1e-3)


def test_the_input_is_not_edited_and_half_precision_is_not_spread():
    decoded = decoded_rows()
    before = decoded.clone()
    non_max_suppression(decoded)
    assert torch.equal(decoded, before)
    assert all(found.dtype == torch.float32 for found in non_max_suppression(decoded.half()))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("conf", "max_det"), [(0.001, 300), (0.5, 300), (0.001, 7), (1.0, 7)])
def test_the_highest_scores_are_those_of_a_loop(conf, max_det, multi_label):
    decoded = decoded_rows()
    for rows, obtained in zip(decoded, highest_scores(all_rows(decoded), conf, max_det, multi_label), strict=True):
        expected = torch.tensor(slow_suppression(rows, conf, 1.0, max_det, multi_label, False)).view(-1, 6)
        assert torch.allclose(obtained, expected, atol=1e-3)


def test_the_highest_scores_are_those_of_the_best_boxes_first_and_then_of_their_classes():
    """Published code takes `max_det` boxes by their best class, then `max_det` pairs of these."""
    decoded = decoded_rows(images=1)
    scores = decoded[0, :, 5:] * decoded[0, :, 4:5]
    boxes = scores.amax(dim=1).topk(20).indices
    best = scores[boxes].flatten().topk(20).values
    torch.testing.assert_close(highest_scores(all_rows(decoded), 0.001, 20)[0][:, 4], best)


def test_the_highest_scores_of_some_classes_leave_out_rows_that_are_not_finite():
    decoded = decoded_rows(images=1)
    decoded[0, 0] = torch.nan
    (found,) = highest_scores(all_rows(decoded), 0.0, 5000, classes=[0, 2])
    assert found[:, 5].unique().tolist() == [0, 2] and len(found) == 2 * 299
