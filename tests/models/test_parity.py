"""Our models beside what the published ones are recorded to be and to put out."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from models.families import read_spec
from models.spec import ModelSpec
from models.summary import count_parameters, gflops
from models.weights import load_model
from models.yolo import Model
from tests.models.recorded import as_recorded, assert_equals_record, recorded_image

RECORDED = ["yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5n6", "yolov5s6", "yolov5l6", "yolov5x6"]
RECORDED += ["yolov3", "yolov3-tiny", "yolov7", "yolov7x", "yolov7-tiny", "yolov7-w6", "yolov7-e6", "yolov7-e6e"]
RECORDED += ["yolov7-deploy", "yolov7-tiny-deploy", "yolov7-tiny-silu-deploy", "yolov7-w6-deploy"]
FOLDED = {"yolov7", "yolov7-tiny", "yolov7-w6"}  # also tried in fused form: branches, implicit and auxiliary parts
# published: million parameters, GFLOPs at 640 pixels
PUBLISHED = {
    "yolov5n": (1.9, 4.5),
    "yolov5s": (7.2, 16.5),
    "yolov5m": (21.2, 49.0),
    "yolov5l": (46.5, 109.1),
    "yolov5x": (86.7, 205.7),
    "yolov5n6": (3.2, 4.6),
    "yolov5s6": (12.6, 16.8),
    "yolov5m6": (35.7, 50.0),
    "yolov5l6": (76.8, 111.4),
    "yolov5x6": (140.7, 209.8),
    "yolov3": (61.9, 156.4),
    "yolov3-spp": (63.0, 157.0),
    "yolov3-tiny": (8.9, 13.3),
    "yolov7-tiny": (6.2, 13.8),
    "yolov7-deploy": (37.6, 104.7),
    "yolov7x-deploy": (71.3, 189.9),
    "yolov7-w6-deploy": (70.4, 360 / 4),  # published at 1280 pixels, as the next two
    "yolov7-e6-deploy": (97.2, 515.2 / 4),
    "yolov7-e6e-deploy": (151.7, 843.2 / 4),
}


def test_every_recorded_size_is_tested(recorded):
    assert sorted(recorded["models"]) == sorted(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_keys_shapes_and_outputs_equal_the_recorded(name, recorded, fill):
    expected = recorded["models"][name]
    model = as_recorded(name, expected)

    fill(model)
    puts_out_the_recorded(model, expected)
    if name in FOLDED:
        puts_out_the_recorded(model.fuse(), expected)
        assert count_parameters(model) < expected["parameters"]


@torch.no_grad()
def puts_out_the_recorded(model, expected):
    levels = model(recorded_image()).levels
    for output, record in zip((*levels, model.head.decode(levels)), expected["outputs"], strict=True):
        assert_equals_record(output[0], record)


def test_rows_are_the_published_ones(recorded):
    """So layer numbers, as people write them into recipes, mean the same layers."""
    for name, digest in recorded["digests"].items():
        spec = read_spec(name).to_dict()
        content = json.dumps([spec["anchors"], [*spec["backbone"], *spec["head"]]])
        assert hashlib.sha256(content.encode()).hexdigest() == digest, name


def test_d6_is_published_with_its_auxiliary_levels():
    """154.7 M parameters, and 806.8 GFLOPs at 1280 pixels, of the training form; without them it has 13 % less."""
    with torch.device("meta"):
        model = Model(read_spec("yolov7-d6"), 80)
    assert count_parameters(model) / 1e6 == pytest.approx(154.7, abs=0.1)
    assert gflops(model) == pytest.approx(0.87 * 806.8 / 4, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_as_published(name):
    with torch.device("meta"):
        model = Model(read_spec(name), 80)
    millions, operations = PUBLISHED[name]
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.1)
    assert gflops(model) == pytest.approx(operations, rel=0.015)


def test_other_published_rows_build(recorded):
    for name, rows in recorded["rows"].items():
        with torch.device("meta"):
            model = Model(ModelSpec.from_dict(rows, name, name), 80)
            levels = model(torch.empty(1, 3, 256, 256)).levels
        assert len(levels) == len(model.head_inputs), name


def former_rows(stage, stage_depths):
    """YOLOv5s before release 6: a focus stem, and the pyramid pooling before the last stage."""
    current = read_spec("yolov5s").to_dict()
    first, second, third = stage_depths
    current["backbone"] = [
        [-1, 1, "Focus", [64, 3]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, first, stage, [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, second, stage, [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, third, stage, [512]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 1, "SPP", [1024, [5, 9, 13]]],
        [-1, 3, stage, [1024, False]],
    ]
    current["head"] = [[*row[:2], stage if row[2] == "C3" else row[2], row[3]] for row in current["head"]]
    return ModelSpec.from_dict(current, "former", "former")


@pytest.mark.parametrize("stage, parameters", [("C3", 7_276_605), ("BottleneckCSP", 7_468_157)])
def test_former_releases_have_their_published_number_of_parameters(stage, parameters):
    with torch.device("meta"):
        assert count_parameters(Model(former_rows(stage, (3, 9, 9)), 80)) == parameters


@pytest.mark.parametrize("weights, record", [("yolov5n.pt", "yolov5n"), ("yolov5s_state_dict.pt", "yolov5s")])
def test_published_weights_put_out_what_was_recorded_on_a_photograph(weights, record, shared):
    model, report = load_model(str(shared / "weights" / weights))
    assert report.taken == report.total == 349
    expected = np.load(shared / "weights" / f"{record}_recorded.npz")
    with torch.no_grad():
        levels = model.eval()(torch.from_numpy(expected["image_uint8_chw_rgb"])[None].float() / 255).levels
        decoded = model.head.decode(levels)[0]
    for i, level in enumerate(levels):
        assert list(level.shape[1:]) == expected[f"level{i}_shape"].tolist()
        difference = level.flatten()[expected[f"level{i}_index"]] - torch.from_numpy(expected[f"level{i}_value"])
        assert difference.abs().max() < 1e-4 * level.abs().max()

    top = torch.from_numpy(expected["decoded_top50_xywh_obj_cls"])
    distance = torch.cdist(top, decoded, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
    assert distance.max() < 0.02  # pixels, over 85 values; each recorded row is among ours
