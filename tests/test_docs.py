"""What the documents say of the code is so."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch

import train_distill
from distill.features import FEATURES
from distill.outputs import OUTPUTS
from models.families import family_scales, read_spec
from models.summary import count_parameters, gflops
from models.yolo import Model

ROOT = Path(train_distill.__file__).resolve().parent
METHODS = {**OUTPUTS, **FEATURES}
TABLE = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| `\w+` \|", line)
]
ROWS = {row[0].strip("`"): row for row in TABLE if len(row) == 7}


def test_every_method_has_one_row_and_every_row_a_method() -> None:
    assert sorted(ROWS) == sorted(METHODS)
    assert len([row for row in TABLE if len(row) == 7]) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_its_row_is_complete(name: str) -> None:
    _, formula, paper, needs, _, _, gain = ROWS[name]
    assert formula and paper and needs
    assert gain == "not measured" or re.match(r"[+-]0\.\d+", gain)


@pytest.mark.parametrize("name", METHODS)
def test_its_defaults_are_those_of_the_code(name: str) -> None:
    _, _, _, _, defaults, weight, _ = ROWS[name]
    assert float(weight) == METHODS[name].default_weight
    written = dict(re.findall(r"`(\w+): ([^`]+)`", defaults))
    parameters = inspect.signature(METHODS[name]).parameters
    known = {key: one.default for key, one in parameters.items() if one.default is not one.empty}
    assert {key: str(value).lower().removesuffix(".0") for key, value in known.items()} == written


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "hyp").glob("*.yaml")))
def test_recipes_of_distillation_are_listed(name: str) -> None:
    text = (ROOT / "hyp" / f"{name}.yaml").read_text(encoding="utf-8")
    if "Follows another recipe" in text or name.startswith("classic-"):
        assert f"`{name}`" in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


# -- models ------------------------------------------------------------------------------------------------------------

MODELS = {
    cells[0].strip("` "): [cell.strip() for cell in cells]
    for cells in (
        line.split("|")[1:-1] for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    )
    if len(cells) == 9 and cells[0].strip().startswith("`")
}


def test_every_model_has_a_row() -> None:
    assert set(MODELS) == set(family_scales())


@pytest.mark.parametrize(
    "name",
    [
        *("yolov3-slim", "yolov5p", "yolov7-tiny", "yolov7", "yolov7-w6"),
        *("yolov8s-p2", "yolov10b", "yolo26m", "yolov5nu"),
    ],
)
def test_a_row_says_what_the_model_is(name: str) -> None:
    _, parameters, inference, operations, _, strides, layers, _, _ = MODELS[name]
    with torch.device("meta"):
        model, deploy = Model(read_spec(name), 80), Model(read_spec(f"{name}-deploy"), 80)
    assert parameters == f"{count_parameters(model):,}"
    if model.spec.anchor_free:
        assert inference == f"{count_parameters(copy.deepcopy(model).fuse()):,}"
    else:
        same = deploy.head.__class__ is model.head.__class__
        assert inference == ("\u2013" if same else f"{count_parameters(deploy):,}")
    assert operations == f"{gflops(model):.1f}"
    assert layers == " ".join(map(str, model.head_inputs))
    assert strides == " ".join(str(model.feature_info[layer].stride) for layer in model.head_inputs)
