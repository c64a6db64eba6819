"""When a run keeps its anchors and when it finds its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from data.loader import train_loader
from data.spec import read_data
from engine.anchors import fit_anchors, predicted_sides
from models.heads.anchor import Detect
from utils import dist
from utils.errors import PeerLost, UserError
from utils.hyp import Hyp

SIZE = (640, 640)
COCO = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def images_with(low: float, high: float, count: int = 300) -> Any:
    """Images of 640 px whose boxes have sides between `low` and `high` pixels."""
    rng = np.random.default_rng(0)
    rows = np.zeros((count, 5), dtype=np.float32)
    rows[:, 3:5] = rng.uniform(low, high, (count, 2)) / 640
    labels = SimpleNamespace(rows=rows, image_of_row=np.arange(count))
    return SimpleNamespace(labels=labels, shapes=np.full((count, 2), 640, dtype=np.int32))


def headed(anchors: Any = COCO, strides: tuple[int, ...] = (8, 16, 32)) -> Any:
    """A model of which nothing but the head is looked at."""
    return SimpleNamespace(head=Detect(2, anchors, (4, 4, 4), strides))


def test_anchors_that_reach_the_boxes_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    own = headed()
    with caplog.at_level(logging.INFO):
        assert not fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0)
    assert own.head.anchors_px.flatten(1).tolist() == COCO
    assert "anchors: best possible recall 0.99" in caplog.text


def test_anchors_that_miss_the_boxes_are_replaced() -> None:
    own = headed()
    assert fit_anchors(own, images_with(3, 8), SIZE, 2.0, seed=0)
    assert own.head.anchors_px.max() < 9


def test_a_number_of_anchors_is_always_estimated() -> None:
    own = headed(2)
    assert fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0)
    assert own.head.anchors.shape == (3, 2, 2)
    assert not own.head.provisional


@pytest.mark.parametrize("strides", [(8, 16, 32), (32, 16, 8)])
def test_small_anchors_go_to_the_fine_level(strides: tuple[int, ...]) -> None:
    own = headed(3, strides)
    fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0)
    areas = own.head.anchors_px.prod(dim=2)[torch.tensor(strides).argsort()].flatten()
    assert torch.equal(areas, areas.sort().values)


def test_boxes_that_no_anchors_reach_better_change_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = headed()
    monkeypatch.setattr("engine.anchors.kmeans_anchors", lambda *_, **__: np.full((9, 2), 5000.0))
    with caplog.at_level(logging.INFO):
        assert not fit_anchors(own, images_with(3, 8), SIZE, 2.0, seed=0)
    assert own.head.anchors_px.flatten(1).tolist() == COCO
    assert "kept" in caplog.text


# -- asked for --------------------------------------------------------------------------------------------------------


def test_anchors_from_the_labels_replace_those_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    own, images = headed(), images_with(20, 300)
    with caplog.at_level(logging.INFO):
        assert fit_anchors(own, images, SIZE, 4.0, seed=0, mode="auto")
    found = own.head.anchors_px.flatten(0, 1)
    assert (found > 20).all() and (found < 300).all()
    assert "estimated from the labels, best possible recall 1.0000" in caplog.text
    again = headed([[50, 50, 60, 60, 70, 70]] * 3)
    fit_anchors(again, images, SIZE, 4.0, seed=0, mode="auto")
    torch.testing.assert_close(again.head.anchors_px, own.head.anchors_px)  # whatever it began with


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(UserError, match="9 anchors cannot be estimated from 4 boxes"):
        fit_anchors(headed(), images_with(20, 300, count=4), SIZE, 4.0, seed=0, mode="auto")


@pytest.mark.parametrize("found", [np.arange(18.0).reshape(9, 2) + 1, UserError("none")], ids=["anchors", "mistake"])
def test_every_rank_ends_with_what_rank_0_found(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("rank 1 estimates nothing")

    monkeypatch.setattr("engine.anchors.kmeans_anchors", never)
    monkeypatch.setattr("engine.anchors.predicted_sides", never)
    monkeypatch.setattr(dist, "is_main", lambda: False)
    monkeypatch.setattr(dist, "from_main", lambda _: found)
    own = headed()
    if isinstance(found, UserError):
        with pytest.raises(PeerLost, match="none"):
            fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0, mode="predicted")
    else:
        fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0, mode="predicted")
        np.testing.assert_array_equal(own.head.anchors_px.flatten(0, 1), found)


def test_rank_0_tells_the_others_of_its_mistake_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(dist, "from_main", lambda value: said.append(value) or value)
    with pytest.raises(UserError):
        fit_anchors(headed(), images_with(20, 300, count=4), SIZE, 4.0, seed=0, mode="auto")
    assert [type(value) for value in said] == [UserError]


# -- from predictions -------------------------------------------------------------------------------------------------


class WhiteSpotDetector(nn.Module):
    """Finds the one white rectangle of an image, with boxes around it that do not count: unsure ones and doubles."""

    stride = 32

    def __init__(self, anchors: Any = COCO, confidence: float = 0.9, places: int = 1) -> None:
        super().__init__()
        self.head = Detect(2, anchors, (4, 4, 4), (8, 16, 32))
        self.batch_norm = nn.BatchNorm2d(3)  # so that there is something that `eval` and `fuse` could change
        self.confidence = confidence
        self.places = places  # how often it claims to see it

    def fuse(self) -> WhiteSpotDetector:
        self.batch_norm = None
        return self

    def predict(self, images: Tensor) -> Tensor:
        assert not self.training and self.batch_norm is None and not torch.is_grad_enabled()
        assert images.max() <= 1 and images.shape[2] % 32 == images.shape[3] % 32 == 0
        self.head.provisional = True  # shows in the caller's model if this were the same
        rows = []
        for image in images:
            y, x = (image.mean(dim=0) > 0.9).nonzero(as_tuple=True)
            left, top, right, bottom = x.min(), y.min(), x.max() + 1, y.max() + 1
            box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            sure = [*box, 1.0, self.confidence, 0.1]
            double = [box[0] + 1, *box[1:], 0.9, self.confidence, 0.1]
            elsewhere = [[box[0] + 200 * place, *sure[1:]] for place in range(1, self.places)]
            unsure = [20.0, 20, 333, 333, 0.4, 0.5, 0.5]
            rows.append([sure, double, unsure, *elsewhere])
        return torch.tensor(rows)


@pytest.fixture
def spots(tmp_path: Path) -> Callable[..., Any]:
    """Training images, each with a white rectangle of these sides, whose labels know nothing of it."""

    def make(sides: Sequence[tuple[int, int]], height: int, width: int) -> Any:
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
        for index, (w, h) in enumerate(sides):
            image = np.zeros((height, width, 3), dtype=np.uint8)
            image[8 : 8 + h, 16 : 16 + w] = 255
            cv2.imwrite(str(tmp_path / f"images/{index}.png"), image)
            (tmp_path / f"labels/{index}.txt").write_text("0 0.5 0.5 0.9 0.9\n")
        content = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["a", "b"]}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
        spec = read_data(str(tmp_path / "data.yaml"))
        return train_loader(spec, Hyp(), image_size=(128, 128), batch_size=4, stride=32, seed=0).dataset

    return make


def spread(count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(3)
    return [(int(w), int(h)) for w, h in 2 * rng.integers(5, 40, (count, 2))]


def test_predicted_boxes_are_measured_at_the_training_size(spots: Callable[..., Any]) -> None:
    sides = spread(90)
    model = WhiteSpotDetector().train()
    found = predicted_sides(model, spots(sides, 100, 256), (128, 128), seed=0)  # images are halved
    assert len(found) == 90  # neither doubles nor what it is not sure of
    expected = np.array(sorted(sides)) / 2
    np.testing.assert_allclose(np.array(sorted(found.tolist())), expected, atol=1.01)  # edges are smoothed
    assert model.training and model.batch_norm is not None and not model.head.provisional


def test_every_object_of_an_image_counts(spots: Callable[..., Any]) -> None:
    model: Any = WhiteSpotDetector(places=3)
    assert len(predicted_sides(model, spots(spread(30), 128, 128), (128, 128), seed=0)) == 90


def test_anchors_follow_the_predicted_boxes_and_not_the_labels(
    spots: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    shapes = [(20, 20), (30, 60), (64, 24)]
    images = spots([(w + 2 * (i % 2), h) for i in range(10) for w, h in shapes], 128, 128)
    model = WhiteSpotDetector([[50, 50]] * 3)
    with caplog.at_level(logging.INFO):
        assert fit_anchors(model, images, (128, 128), 4.0, seed=0, mode="predicted")  # type: ignore[arg-type]
    found = model.head.anchors_px.flatten(0, 1)
    torch.testing.assert_close(found, torch.tensor([[21.0, 20], [65, 24], [31, 60]]), rtol=0.1, atol=0)
    assert "estimated from the boxes that the student predicts" in caplog.text


def test_a_student_that_finds_too_little_is_told_what_to_do(spots: Callable[..., Any]) -> None:
    images = spots(spread(89), 128, 128)
    with pytest.raises(UserError, match=r"finds 89 boxes .* and 9 anchors need 90.*--anchors auto"):
        predicted_sides(WhiteSpotDetector(), images, (128, 128), seed=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="finds 0 boxes"):
        predicted_sides(WhiteSpotDetector(confidence=0.2), images, (128, 128), seed=0)  # type: ignore[arg-type]


def test_boxes_without_a_size_are_no_source_of_anchors(spots: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"only the number \(3 a level\) is known.*--anchors auto"):
        predicted_sides(WhiteSpotDetector(3), spots(spread(90), 128, 128), (128, 128), seed=0)  # type: ignore[arg-type]


def test_of_many_images_a_part_is_looked_at(spots: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.anchors.MOST_IMAGES", 95)
    images = spots(spread(120), 128, 128)
    model: Any = WhiteSpotDetector()
    one, same, other = (predicted_sides(model, images, (128, 128), seed) for seed in (0, 0, 1))
    assert len(one) == 95
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()
