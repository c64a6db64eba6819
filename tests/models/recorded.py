"""What the recorded outputs of published models are compared by."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.families import read_spec
from models.summary import count_parameters
from models.yolo import Model


def as_recorded(name: str, expected: dict[str, Any]) -> Model:
    """Our model of this name, in evaluation mode, whose keys, shapes, parameters and strides are the recorded."""
    model = Model(read_spec(name), 80).eval()
    lines = [f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()]
    assert len(lines) == expected["tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected["digest"]
    assert count_parameters(model) == expected["parameters"]
    assert model.head.strides.tolist() == expected["stride"]
    return model


def recorded_image() -> Tensor:
    """(1, 3, 256, 256) in [0, 1]: what all of them were shown."""
    image = np.random.default_rng(256).integers(0, 256, (1, 3, 256, 256), dtype=np.uint8)
    return torch.from_numpy(image).float() / 255


def assert_equals_record(output: Tensor, record: dict[str, Any], tolerance: float = 1e-4) -> None:
    """`output`: of one image. `tolerance`: of the record's largest value."""
    assert list(output.shape) == record["shape"]
    difference = output.flatten()[record["index"]] - torch.tensor(record["value"])
    assert difference.abs().max() < tolerance * record["largest"]
