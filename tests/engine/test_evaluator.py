"""The evaluator, with a detector whose answers are known."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.coco import COCO_IDS, annotation_file, category_ids, coco_scores, ground_truth, image_ids, predictions
from engine.evaluator import Detections, Evaluator, Report
from engine.report import draw_report, save_json, save_txt
from utils.nms import confident_rows
from utils.types import Batch, DecodedRows, Frame, Prediction

NAMES = ("cat", "dog", "bird")
SIDE = 64  # of the tensor
# 128 x 100 pixels, scaled by a half into the middle of the square
FRAME = Frame(height=100, width=128, scale_y=0.5, scale_x=0.5, offset_y=7, offset_x=0)
BOXES = torch.tensor([[10.0, 20, 60, 80], [70, 10, 120, 50]])  # of the original image, xyxy


def tensor_xywh(boxes: Tensor) -> Tensor:
    """Original xyxy -> pixels of the tensor, centre and size."""
    placed = boxes * 0.5 + torch.tensor([0.0, 7, 0, 7])
    return torch.cat(((placed[:, :2] + placed[:, 2:]) / 2, placed[:, 2:] - placed[:, :2]), dim=1)


class Oracle(nn.Module):
    """Finds BOXES, of classes 0 and 1, in every image; `certainty` of each image is that of its first pixel."""

    def __init__(self, names: Sequence[str] = NAMES, classes: Sequence[int] = (0, 1), named: bool = True) -> None:
        super().__init__()
        self.names, self.named, self.classes = tuple(names), named, tuple(classes)
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.head = SimpleNamespace(decode_confident=self.decode_confident, nms_free=False)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Prediction:
        certainty = images[:, 0, 0, 0] * self.weight
        return Prediction((certainty[:, None, None, None, None],))

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        certainty = levels[0].reshape(-1)
        rows = torch.zeros(len(certainty), len(BOXES), 5 + len(self.names))
        rows[..., :4] = tensor_xywh(BOXES)
        rows[..., 4] = certainty[:, None]
        rows[:, torch.arange(len(BOXES)), 5 + torch.tensor(self.classes)] = 1.0
        return rows

    def decode_confident(self, levels: Sequence[Tensor], conf: float) -> DecodedRows:
        return confident_rows(self.decode(levels), conf)

    def predict(self, images: Tensor, augment: bool = False) -> Tensor:
        assert augment
        return self.decode(self(images).levels)

    def fuse(self) -> Oracle:
        return self


def batch(count: int = 2, certainty: float = 0.9, classes: Sequence[int] = (0, 1), path: str = "image") -> Batch:
    images = torch.full((count, 3, SIDE, SIDE), certainty)
    xywh = tensor_xywh(BOXES) / SIDE
    targets = torch.cat([
        torch.cat((torch.full((2, 1), float(k)), torch.tensor(classes, dtype=torch.float)[:, None], xywh), dim=1)
        for k in range(count)
    ])  # fmt: skip
    paths = tuple(f"{path}{k}.jpg" for k in range(count))
    return Batch(images, targets, torch.ones(count, dtype=torch.bool), paths, (FRAME,) * count)


def evaluator(*batches: Batch, **options: object) -> Evaluator:
    return Evaluator(list(batches), torch.device("cpu"), **{"names": NAMES, **options})  # type: ignore[arg-type]


def test_a_perfect_detector_scores_one_in_every_class_with_labels() -> None:
    report = evaluator(batch(), batch(3))(Oracle(), progress=False)
    assert report.evaluation.map == pytest.approx(1, abs=0.01)
    assert [result.name for result in report.evaluation.per_class] == ["cat", "dog"]
    assert report.images == report.evaluation.images == 5
    assert np.diag(report.confusion.matrix).tolist() == [5, 5, 0, 0]


def test_detections_and_labels_are_in_pixels_of_the_original() -> None:
    (found,) = evaluator(batch(1), collect=True)(Oracle(), progress=False).detections
    assert np.allclose(found.found[:, :4], BOXES, atol=1e-4)
    assert np.allclose(found.labels[:, 1:], BOXES, atol=1e-4)
    assert found.found[:, 4:].tolist() == [[pytest.approx(0.9), 0], [pytest.approx(0.9), 1]]
    assert (found.height, found.width) == (100, 128)


def test_the_model_is_left_as_it_was_and_a_copy_evaluates() -> None:
    seen: list[tuple[bool, bool]] = []

    class Watched(Oracle):
        def forward(self, images: Tensor) -> Prediction:
            seen.append((self.training, self is model))
            return super().forward(images)

    model = Watched().train()
    model.frozen.eval()
    evaluator(batch())(model, progress=False)
    assert seen == [(False, False)]
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)


def test_what_needs_no_suppression_has_none_but_for_several_sizes() -> None:
    class Twice(Oracle):
        def decode(self, levels: Sequence[Tensor]) -> Tensor:
            return super().decode(levels).repeat(1, 2, 1)

    def found(nms_free: bool, augment: bool = False) -> int:
        model = Twice()
        model.head.nms_free = nms_free
        (one,) = evaluator(batch(1), collect=True, augment=augment)(model, progress=False).detections
        return len(one.found)

    assert (found(False), found(True), found(True, augment=True)) == (2, 4, 2)


def test_of_a_single_class_a_box_that_needs_no_suppression_counts_once() -> None:
    model = Oracle()
    model.head.nms_free = True
    model.decode = lambda levels: Oracle.decode(model, levels).index_fill(2, torch.arange(5, 8), 0.5)  # type: ignore
    (one,) = evaluator(batch(1), collect=True, single_class=True)(model, progress=False).detections
    assert len(one.found) == 2


def test_no_gradient_is_kept_and_losses_are_means_over_images() -> None:
    seen: list[bool] = []

    class Criterion(nn.Module):
        def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
            seen.append(prediction.levels[0].requires_grad)
            return {"box": prediction.levels[0].mean()}

    report = evaluator(batch(1, 0.2), batch(3, 0.6))(Oracle(), Criterion(), progress=False)
    assert seen == [False, False]
    assert report.losses == {"box": pytest.approx((0.2 + 3 * 0.6) / 4)}
    assert evaluator(batch())(Oracle(), progress=False).losses is None


def test_an_unlabelled_image_is_not_scored() -> None:
    half = batch(2)
    report = evaluator(half._replace(labelled=torch.tensor([True, False]), targets=half.targets[:2]))(
        Oracle(), None, False
    )
    assert report.evaluation.precision == pytest.approx(1, abs=0.01)
    assert (report.images, report.evaluation.images) == (2, 1)


def test_nothing_found_and_nothing_there_are_scores_of_zero() -> None:
    assert evaluator(batch(certainty=0.0))(Oracle(), progress=False).evaluation.map == 0
    empty = batch()._replace(targets=torch.zeros(0, 6))
    assert evaluator(empty)(Oracle(), progress=False).evaluation.map == 0


def test_outputs_that_are_not_finite_are_named_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = evaluator(batch(1, float("nan")), batch(2))(Oracle(), progress=False)
    assert "not finite in 1 of 3 images" in caplog.text
    assert 0 < report.evaluation.recall < 1


def test_single_class_takes_every_object_for_the_same() -> None:
    merged = batch(classes=(0, 0))
    report = evaluator(merged, names=("item",), single_class=True)(Oracle(), progress=False)
    assert report.evaluation.map == pytest.approx(1, abs=0.01)


def test_augmented_predictions_are_scored() -> None:
    report = evaluator(batch(), augment=True)(Oracle(), progress=False)
    assert report.evaluation.map == pytest.approx(1, abs=0.01)


def test_a_model_of_other_classes_is_scored_on_those_that_share_a_name() -> None:
    other = Oracle(("truck", "Bird", "the-dog", "cat"), classes=(3, 2))
    report = evaluator(batch(), names=("cat", "the dog", "bird", "fish"), collect=True)(other, progress=False)
    assert report.evaluation.map == pytest.approx(1, abs=0.01)
    assert report.detections[0].found[:, 5].tolist() == [0, 1]


def test_half_precision_without_fast_hardware_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.evaluator.cpu_has_bf16", lambda: False)
    with caplog.at_level(logging.INFO):
        assert evaluator(batch(), half=True).precision is None
    assert "float32 is used" in caplog.text


# -- several ranks ---------------------------------------------------------------------------------------------------


class Sent(Exception):
    """A rank has done its part."""


class Loss(nn.Module):
    """Numbers whose sum depends on their order."""

    def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return {"box": 1 / batch.images[:, 1].double().mean()}


def equally_sure() -> list[Batch]:
    """Batches of 1 to 3 images, some right and some wrong, all found with one confidence: the order decides."""
    batches = []
    for number, (count, classes) in enumerate([(1, (1, 0)), (2, (0, 1)), (3, (1, 0)), (1, (0, 1)), (2, (0, 1))]):
        one = batch(count, classes=classes, path=f"{number}-")
        one.images[:, 1] = 3.0 ** (7 * number)
        batches.append(one)
    return batches


def by_ranks(count: int, monkeypatch: pytest.MonkeyPatch) -> Report:
    """What rank 0 makes of the parts of all: the others run before it."""
    sent: list[Any] = []

    def send(own: object) -> None:
        sent.insert(0, pickle.loads(pickle.dumps(own)))
        raise Sent

    for rank in range(count - 1, -1, -1):
        monkeypatch.setattr("engine.evaluator.dist.to_main", send if rank else lambda own: [own, *sent])
        own = evaluator(*equally_sure()[rank::count], collect=True)
        if rank:
            with pytest.raises(Sent):
                own(Oracle(), Loss(), progress=False)
    return own(Oracle(), Loss(), progress=False)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_ranks_come_to_what_one_does_to_the_last_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = evaluator(*equally_sure(), collect=True)(Oracle(), Loss(), progress=False)
    report = by_ranks(count, monkeypatch)  # of 7 ranks two have no batch
    assert report.evaluation.per_class == alone.evaluation.per_class
    assert report.losses == alone.losses
    assert (report.images, report.evaluation.images) == (9, 9)
    assert np.array_equal(report.confusion.matrix, alone.confusion.matrix)
    assert [one.path for one in report.detections] == [one.path for one in alone.detections]
    # and that is no matter of course
    other = evaluator(*reversed(equally_sure()))(Oracle(), Loss(), progress=False)
    assert other.evaluation.map != alone.evaluation.map
    assert other.losses != alone.losses


# -- files -------------------------------------------------------------------------------------------------------------


def seen(path: str = "7.jpg", confidence: float = 0.9) -> Detections:
    found = np.array([[10, 20, 60, 80, confidence, 0], [70, 10, 120, 50, confidence, 1]], np.float32)
    labels = np.array([[0, 10, 20, 60, 80], [1, 70, 10, 120, 50]], np.float32)
    return Detections(path, 100, 128, found, labels)


def test_coco_numbers_are_used_for_cocos_classes_alone() -> None:
    names = ["person", *(f"class{k}" for k in range(78)), "toothbrush"]
    assert category_ids(names) == COCO_IDS
    assert (len(COCO_IDS), COCO_IDS[0], COCO_IDS[11], COCO_IDS[-1]) == (80, 1, 13, 90)
    assert category_ids(NAMES) == (0, 1, 2)


def test_images_are_numbered_by_their_names_where_those_are_numbers() -> None:
    assert image_ids(["a/000000012.jpg", "b/7.png"]) == [12, 7]
    assert image_ids(["a/000000012.jpg", "b/x.png"]) == [1, 2]
    assert image_ids(["a/1.jpg", "b/01.jpg"]) == [1, 2]


def test_predictions_in_cocos_format() -> None:
    first, second = predictions([seen()], NAMES)
    assert first == {"image_id": 7, "category_id": 0, "bbox": [10, 20, 50, 60], "score": 0.9}
    assert second["bbox"] == [70, 10, 50, 40]


def test_pycocotools_agrees_that_perfect_is_perfect() -> None:
    pytest.importorskip("pycocotools")
    detections = [seen("7.jpg"), seen("8.jpg", 0.5)]
    truth, results = ground_truth(detections, NAMES), predictions(detections, NAMES)
    assert coco_scores(truth, results, [7, 8]) == (pytest.approx(1), pytest.approx(1))
    assert coco_scores(truth, [], [7, 8]) == (0, 0)


def test_published_annotations_are_found_beside_the_images(tmp_path: Path) -> None:
    image = tmp_path / "images" / "val2017" / "1.jpg"
    assert annotation_file(str(image)) is None
    known = tmp_path / "annotations" / "instances_val2017.json"
    known.parent.mkdir()
    known.touch()
    assert annotation_file(str(image)) == known


def test_label_files_hold_boxes_in_shares_of_the_original(tmp_path: Path) -> None:
    save_txt([seen()], tmp_path / "labels", with_confidence=True)
    first = [float(word) for word in (tmp_path / "labels" / "7.txt").read_text().splitlines()[0].split()]
    assert first == [0, *map(pytest.approx, (35 / 128, 0.5, 50 / 128, 0.6, 0.9), [1e-5] * 5)]
    save_txt([seen()], tmp_path / "labels", with_confidence=False)
    assert len((tmp_path / "labels" / "7.txt").read_text().splitlines()[0].split()) == 5


def test_report_leaves_figures_and_coco_files(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "photo0.jpg"), np.full((100, 128, 3), 90, np.uint8))
    report = evaluator(batch(1, path=f"{tmp_path}/photo"), collect=True)(Oracle(), progress=False)
    paths = draw_report(report, NAMES, tmp_path / "run")
    assert {path.name for path in paths} == {
        *("PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"),
        *("confusion_matrix.png", "val_predictions.jpg"),
    }  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in paths)
    scores = save_json(report.detections, NAMES, tmp_path / "run")
    assert (tmp_path / "run" / "ground_truth.json").exists()
    if scores is not None:
        assert scores.map == pytest.approx(1)
