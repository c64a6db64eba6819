"""Small models, and the numbers recorded of published ones."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.families import read_spec
from models.spec import ModelSpec
from models.yolo import Model

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@pytest.fixture(scope="session")
def recorded() -> dict[str, Any]:
    return json.loads(gzip.decompress((ASSETS / "parity.json.gz").read_bytes()))


@pytest.fixture
def small() -> Model:
    """The smallest of our models, with three classes and statistics that are not those of a fresh norm."""
    model = Model(read_spec("yolov5p"), 3, ("cat", "dog", "cow")).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


AUXILIARY = {
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "ReOrg", []],
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "DownC", [12]],
        [-1, 1, "DownC", [16]],
    ],
    "head": [
        [2, 1, "RepConv", [10, 3, 1]],
        [3, 1, "RepConv", [16, 3, 1]],
        [2, 1, "Conv", [6, 3, 1]],
        [3, 1, "Conv", [14, 3, 1]],
        [[4, 5, 6, 7], 1, "IAuxDetect", ["nc", "anchors"]],
    ],
}


@pytest.fixture
def auxiliary() -> Model:
    """A small model of two levels, strides 8 and 16, and as many auxiliary ones, in the manner of YOLOv7-W6."""
    return Model(ModelSpec.from_dict(AUXILIARY, "auxiliary", "auxiliary"), 3, ("cat", "dog", "cow")).eval()


@pytest.fixture(scope="session")
def fill() -> Callable[[nn.Module], None]:
    """Fills a model by the rule of the recorded outputs: every tensor drawn from a seed of its name."""

    def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.endswith("running_var"):
            return 1 + 0.2 * rng.random(shape)
        if key.endswith("running_mean"):
            return 0.1 * rng.standard_normal(shape)
        if key.endswith("implicit"):
            return (1 if ".im." in key else 0) + 0.02 * rng.standard_normal(shape)
        if len(shape) >= 2:
            return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        if key.endswith("weight"):
            return 1 + 0.1 * rng.standard_normal(shape)
        return 0.1 * rng.standard_normal(shape)

    def fill_model(model: nn.Module) -> None:
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not key.endswith("anchors"):
                tensor.copy_(torch.from_numpy(np.asarray(value(key, tuple(tensor.shape)))))

    return fill_model
