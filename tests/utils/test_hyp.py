"""Recipes: ours, published ones, and those with a mistake."""

# ruff: noqa: C408 - `dict(lr0=0.01)` reads like the files

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.family import ANCHOR_FREE, ANCHORS, for_family
from utils.files import ROOT
from utils.hyp import (
    Hyp,
    Schedule,
    distillation_keys,
    hyp_from_dict,
    hyp_to_dict,
    read_hyp,
    resolve_hyp,
    write_hyp,
)

# what YOLOv5's files share, as published (they name every key, unused ones too)
SHARED = dict(
    lr0=0.01, lrf=0.01, momentum=0.937, weight_decay=0.0005, warmup_epochs=3.0, warmup_momentum=0.8, warmup_bias_lr=0.1,
    box=0.05, cls=0.5, cls_pw=1.0, obj=1.0, obj_pw=1.0, iou_t=0.2, anchor_t=4.0, fl_gamma=0.0, hsv_h=0.015, hsv_s=0.7,
    hsv_v=0.4, degrees=0.0, translate=0.1, scale=0.5, shear=0.0, perspective=0.0, flipud=0.0, fliplr=0.5, mosaic=1.0,
    mixup=0.0, copy_paste=0.0,
)  # fmt: skip
MEDIUM = dict(lrf=0.1, cls=0.3, obj=0.7, scale=0.9, mixup=0.1)
PUBLISHED = {
    "scratch-low": {},
    "scratch-med": MEDIUM,
    "scratch-high": MEDIUM | dict(copy_paste=0.1),
    "no-augmentation": dict(
        lrf=0.1, cls=0.3, obj=0.7, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0.0
    ),
    "VOC": dict(
        lr0=0.00334, lrf=0.15135, momentum=0.74832, weight_decay=0.00025, warmup_epochs=3.3835, warmup_momentum=0.59462,
        warmup_bias_lr=0.18657, box=0.02, cls=0.21638, cls_pw=0.5, obj=0.51728, obj_pw=0.67198, anchor_t=3.3744,
        hsv_h=0.01041, hsv_s=0.54703, hsv_v=0.27739, translate=0.04591, scale=0.75544, mosaic=0.85834, mixup=0.04266,
        anchors=3.412,
    ),
    "Objects365": dict(
        lr0=0.00258, lrf=0.17, momentum=0.779, weight_decay=0.00058, warmup_epochs=1.33, warmup_momentum=0.86,
        warmup_bias_lr=0.0711, box=0.0539, cls=0.299, cls_pw=0.825, obj=0.632, anchor_t=3.44, anchors=3.2, hsv_h=0.0188,
        hsv_s=0.704, hsv_v=0.36, translate=0.0902, scale=0.491,
    ),
}  # fmt: skip

# what YOLOv7's files have otherwise, and besides
SEVEN = dict(lrf=0.1, cls=0.3, obj=0.7, translate=0.2, scale=0.9, mixup=0.15, paste_in=0.15, loss_ota=1)
PUBLISHED_V7 = {
    "p5": SEVEN,
    "p6": SEVEN | dict(lrf=0.2),
    "tiny": dict(mixup=0.05, paste_in=0.05, loss_ota=1),
    "custom": SEVEN | dict(scale=0.5, mixup=0.0, paste_in=0.0),
}


def message(**keys: object) -> str:
    with pytest.raises(UserError) as caught:
        hyp_from_dict(keys, "hyp/mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_loads_unchanged_and_is_our_recipe_of_that_name(name: str, tmp_path: Path) -> None:
    values = SHARED | PUBLISHED[name]
    file = tmp_path / f"hyp.{name}.yaml"
    file.write_text("# a published file\n" + "".join(f"{key}: {value}\n" for key, value in values.items()))
    published = read_hyp(file)
    for key, value in values.items():
        assert key == "iou_t" or getattr(published, key) == value
    assert read_hyp(f"data/hyps/hyp.{name}.yaml") == published


@pytest.mark.parametrize("name", PUBLISHED_V7)
def test_a_published_file_of_yolov7_loads_unchanged_and_is_our_recipe(name: str, tmp_path: Path) -> None:
    values = SHARED | PUBLISHED_V7[name]
    file = tmp_path / f"hyp.scratch.{name}.yaml"
    file.write_text("# a published file\n" + "".join(f"{key}: {value}\n" for key, value in values.items()))
    published = read_hyp(file)
    for key, value in values.items():
        assert key == "iou_t" or getattr(published, key) == value
    assert read_hyp(f"data/hyp.scratch.{name}.yaml") == published
    assert read_hyp(f"v7-{name}") == published


def test_unused_keys_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        hyp_from_dict({"iou_t": 0.2, "loss_ota": 1, "lr0": 0.02}, "hyp/theirs.yaml")
    (record,) = caplog.records
    assert record.getMessage() == "hyp/theirs.yaml: not used here: iou_t (matching is by anchor_t)"


# as everybody copies it, shortened
PASTED = """
task: detect
mode: train
model:
epochs: 100
batch: 16
optimizer: auto
cos_lr: False
close_mosaic: 15
overlap_mask: True
iou: 0.7
lr0: 0.02
box: 7.5
cls: 0.5
dfl: 1.5
pose: 12.0
kobj: 1.0
nbs: 32
bgr: 0.0
cutmix: 0.0
copy_paste_mode: flip
auto_augment: randaugment
erasing: 0.4
"""


def test_a_default_yaml_of_ultralytics_loads_and_what_is_not_used_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "args.yaml").write_text(PASTED)
    with caplog.at_level(logging.INFO):
        hyp = read_hyp(tmp_path / "args.yaml")
    assert (hyp.optimizer, hyp.close_mosaic, hyp.lr0, hyp.nominal_batch) == ("auto", 15, 0.02, 32)
    assert (hyp.box, hyp.cls, hyp.dfl) == (7.5, 0.5, 1.5)
    (record,) = caplog.records
    assert "pose kobj auto_augment erasing (of other tasks" in record.getMessage()
    assert "bgr cutmix copy_paste_mode (there is no" in record.getMessage()


def test_a_key_of_another_name_wins_over_ours_in_an_earlier_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("nbs: 8")
    assert read_hyp("finetune", tmp_path / "mine.yaml").nominal_batch == 8
    assert message(nbs=8, nominal_batch=16).endswith("nbs and nominal_batch are the same; give one of them")


def test_the_default_recipes_are_what_is_taken_where_a_file_says_nothing() -> None:
    for family in (ANCHORS, ANCHOR_FREE):
        assert for_family(read_hyp(family.recipe), family) == for_family(Hyp(), family)


@pytest.mark.parametrize("file", sorted((ROOT / "hyp").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_survives_writing(file: Path, tmp_path: Path) -> None:
    hyp = read_hyp(file)
    assert read_hyp(write_hyp(tmp_path / "hyp.yaml", hyp)) == hyp
    assert hyp_from_dict(hyp_to_dict(hyp), "checkpoint") == hyp


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("scratch-low", "scratch-low"),
        ("hyp/scratch-low.yaml", "scratch-low"),
        ("hyp.scratch-low.yaml", "scratch-low"),
        ("data/hyps/hyp.scratch-low.yaml", "scratch-low"),
        ("./data/hyps/hyp.scratch-high.yaml", "scratch-high"),
        ("/content/yolov5/data/hyps/hyp.scratch-med.yaml", "scratch-med"),
        ("data/hyp.scratch.yaml", "scratch-low"),
        ("hyp.VOC.yaml", "voc"),
        ("hyp.Objects365.yaml", "objects365"),
        ("hyp.no-augmentation.yaml", "no-augmentation"),
        ("finetune", "finetune"),
        ("data/hyp.scratch.p5.yaml", "v7-p5"),
        ("/content/yolov7/data/hyp.scratch.p6.yaml", "v7-p6"),
        ("hyp.scratch.tiny.yaml", "v7-tiny"),
        ("scratch.custom", "v7-custom"),
        ("hyp/v7-p5.yaml", "v7-p5"),
        ("v8", "v8"),
        ("yolov10", "v8"),
        ("yolo11.yaml", "v8"),
        ("yolo26", "v26"),
    ],
)
def test_names_in_peoples_notes_are_our_files(
    name: str, stem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_hyp(name) == ROOT / "hyp" / f"{stem}.yaml"


def test_a_file_that_exists_wins_over_our_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("data/hyps/hyp.scratch-low.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("lr0: 0.5\n")
    assert read_hyp(str(own)).lr0 == 0.5


def test_a_folder_called_like_a_recipe_is_not_in_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_hyp("demo") == ROOT / "hyp" / "demo.yaml"


@pytest.mark.parametrize(
    "name", ["mine/scratch-low.yaml", "scratch-lo", "data/hyp.scratch.p9.yaml", "mine/hyp.scratch.p5.yaml"]
)
def test_other_names_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match=rf"--hyp {name}: no such file; (did .*\? )?our recipes: .*scratch-low"):
        resolve_hyp(name)


def test_a_misspelt_key() -> None:
    assert message(lr_0=0.01) == "hyp/mine.yaml: unknown key 'lr_0'; did you mean 'lr0'?"


def test_layer_lists_of_different_length() -> None:
    rule = "every student layer needs exactly one teacher layer"
    assert message(student_kd_layers=[17, 20], teacher_kd_layers=[17]) == (
        f"hyp/mine.yaml: student_kd_layers has 2 entries and teacher_kd_layers has 1; {rule}"
    )
    assert message(student_kd_layers=[17]).endswith(f"student_kd_layers is given and teacher_kd_layers is not; {rule}")
    assert "is empty" in message(student_kd_layers=[], teacher_kd_layers=[])
    assert "twice" in message(student_kd_layers=[17, 17], teacher_kd_layers=[20, 20])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("lr0", value) for value in (0, -1)),
        *((key, value) for key in ("mosaic", "mixup", "copy_paste", "paste_in", "expand") for value in (-0.1, 1.1)),
        *((key, value) for key in ("fliplr", "flipud", "photometric") for value in (-0.1, 1.1)),
        ("expand_ratio", 0.9),
        *(("min_iou_crop", value) for value in (0.5, [0.0, 0.5], [1.0])),
        *(("fixed_crop", value) for value in ([0, 0, 1], [0.5, 0, 0.5, 1], [0, 0.6, 1, 0.4], [0, 0, 1, 1.1])),
        ("letterbox", 0),
        *((key, -0.1) for key in ("box", "cls", "obj", "warmup_epochs", "weight_decay", "fl_gamma", "degrees")),
        ("momentum", 1),
        ("label_smoothing", 1),
        ("scale", 1),
        ("anchor_t", 0.5),
        *(("loss_ota", value) for value in (-1, 2, 0.5, True)),
        *(("assign", value) for value in ("ota", 1)),
        *(("assign_iou", value) for value in (-0.1, 1)),
        *(("ignore_iou", value) for value in (0, 1.1)),
        ("anchors", 0.5),
        ("anchors", [[1, 2, 3]]),
        ("anchors", [[1, 2], [1, 2, 3, 4]]),
        ("anchors", [[1, -2]]),
        ("optimizer", "adm"),
        ("schedule", {"kind": "square"}),
        ("schedule", {"end": 2}),
        ("schedule", {"off_epochs": -1}),
        ("features", {"cwd": {"weight": -1}}),
        ("features", {"cwd": {"weight": "much"}}),
        ("features", {"cwd": {"weight": [1.0, -1.0]}}),
        ("phases", [{"epochs": 0}]),
        ("phases", [{"epochs": 3, "terms": []}]),
        ("teachers", [{"kind": "strict"}]),
        ("teachers", [{"ema": 1.0}]),
        ("teachers", [{"ema": 0.9}]),
        ("teachers", [{"kind": "self", "ema": 0}]),
        ("balance", {"kind": "dwb"}),
        ("difficulty", -1),
        ("pseudo_labels", 1.0),
        ("schedule", {"within": "week"}),
        ("student_kd_layers", [-1]),
    ],
)
def test_numbers_out_of_range_are_refused_by_key(key: str, value: object) -> None:
    found = message(**{key: value})
    assert found.startswith("hyp/mine.yaml: ")
    assert key in found


def test_who_answers_is_said_in_one_way() -> None:
    hyp = hyp_from_dict({}, "x")
    assert (hyp.loss_ota, hyp.assign, hyp.assign_iou, hyp.ignore_iou) == (0, "ratio", 0.5, 0.7)
    assert message(assign="iu") == "hyp/mine.yaml: assign: got 'iu'; did you mean 'iou'? known: ratio, iou"
    assert message(assign="iou", loss_ota=1).endswith("set loss_ota: 0")


@pytest.mark.parametrize("anchors", [3, 3.4, ((10.0, 13.0, 16.0, 30.0), (30.0, 61.0, 62.0, 45.0))])
def test_anchors_are_a_number_a_level_or_the_anchors_themselves(anchors: object) -> None:
    assert hyp_from_dict({"anchors": anchors}, "x").anchors == anchors


def test_the_slim_recipe_shows_whole_pictures_stretched_and_makes_no_mosaics() -> None:
    hyp = read_hyp("yolov3-slim")
    assert (hyp.lr0, hyp.momentum, hyp.weight_decay, hyp.optimizer) == (1e-3, 0.9, 5e-4, "SGD")
    assert (hyp.assign, hyp.assign_iou, hyp.ignore_iou) == ("iou", 0.5, 0.7)
    assert (hyp.letterbox, hyp.fixed_crop, hyp.mosaic) == (False, (0, 0, 1, 1), 0)
    assert hyp.photometric and hyp.expand and hyp.min_iou_crop == (0.1, 0.3, 0.5, 0.7, 0.9)


def test_keys_of_the_picture_are_off_where_nobody_sets_them() -> None:
    hyp = hyp_from_dict({}, "x")
    assert (hyp.paste_in, hyp.photometric, hyp.expand, hyp.min_iou_crop) == (0, 0, 0, ())
    assert (hyp.fixed_crop, hyp.letterbox) == (None, True)


def test_no_key_is_the_default_and_an_empty_mapping_is_none_of_it() -> None:
    assert hyp_from_dict({}, "x").outputs is None
    hyp = hyp_from_dict({"outputs": {}}, "x")
    assert hyp.outputs == {}
    assert hyp_from_dict(hyp_to_dict(hyp), "x").outputs == {}


def test_distillation_keys_are_those_that_differ_from_the_default() -> None:
    assert distillation_keys(read_hyp("scratch-low")) == ()
    assert distillation_keys(Hyp(outputs={})) == ("outputs",)
    hyp = read_hyp("distill")
    assert distillation_keys(hyp) == ("student_kd_layers", "teacher_kd_layers", "outputs", "features", "schedule")
    assert hyp.schedule == Schedule("cosine", end=0.1, off_epochs=0)


def test_a_recipe_cannot_be_edited() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Hyp().box = 1.0  # type: ignore[misc]
