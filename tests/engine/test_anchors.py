"""When a run keeps its anchors and when it finds its own."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.anchors import fit_anchors
from models.heads.anchor import Detect

SIZE = (640, 640)
COCO = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def images_with(low: float, high: float, count: int = 300) -> Any:
    """Images of 640 px whose boxes have sides between `low` and `high` pixels."""
    rng = np.random.default_rng(0)
    rows = np.zeros((count, 5), dtype=np.float32)
    rows[:, 3:5] = rng.uniform(low, high, (count, 2)) / 640
    labels = SimpleNamespace(rows=rows, image_of_row=np.arange(count))
    return SimpleNamespace(labels=labels, shapes=np.full((count, 2), 640, dtype=np.int32))


def head(anchors: Any = COCO, strides: tuple[int, ...] = (8, 16, 32)) -> Detect:
    return Detect(2, anchors, (4, 4, 4), strides)


def test_anchors_that_reach_the_boxes_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    own = head()
    with caplog.at_level(logging.INFO):
        assert not fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0)
    assert own.anchors_px.flatten(1).tolist() == COCO
    assert "anchors: best possible recall 0.99" in caplog.text


def test_anchors_that_miss_the_boxes_are_replaced() -> None:
    own = head()
    assert fit_anchors(own, images_with(3, 8), SIZE, 2.0, seed=0)
    assert own.anchors_px.max() < 9


def test_a_number_of_anchors_is_always_estimated() -> None:
    own = head(2)
    assert fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0)
    assert own.anchors.shape == (3, 2, 2)
    assert not own.provisional


@pytest.mark.parametrize("strides", [(8, 16, 32), (32, 16, 8)])
def test_small_anchors_go_to_the_fine_level(strides: tuple[int, ...]) -> None:
    own = head(3, strides)
    fit_anchors(own, images_with(20, 300), SIZE, 4.0, seed=0)
    areas = own.anchors_px.prod(dim=2)[torch.tensor(strides).argsort()].flatten()
    assert torch.equal(areas, areas.sort().values)


def test_boxes_that_no_anchors_reach_better_change_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = head()
    monkeypatch.setattr("engine.anchors.kmeans_anchors", lambda *_, **__: np.full((9, 2), 5000.0))
    with caplog.at_level(logging.INFO):
        assert not fit_anchors(own, images_with(3, 8), SIZE, 2.0, seed=0)
    assert own.anchors_px.flatten(1).tolist() == COCO
    assert "kept" in caplog.text
