from __future__ import annotations

import resource

import pytest
import torch
import yaml
from torch import nn

from models.blocks.base import round_channels
from models.families import family_scales, known_specs, read_spec
from models.graph import layer_specs
from models.spec import ModelSpec
from models.weights import load_model
from models.yolo import Model
from utils.errors import UserError

SINGLE = {
    "nc": 5,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Focus", [64, 3]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "BottleneckCSP", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 9, "C3", [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 1, "SPP", [512, [5, 9, 13]]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C3", [256, False]],
        [[9, 6], 1, "Detect", ["nc", "anchors"]],
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes a single model file with some keys changed; returns its path."""

    def write_file(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**SINGLE, **changes}))
        return str(path)

    return write_file


def with_row(section, place, row):
    rows = list(SINGLE[section])
    rows[place] = row
    return {section: rows}


@pytest.mark.parametrize(
    "name",
    [
        "yolov5s",
        "yolov5s.yaml",
        "models/yolov5s.yaml",
        "cfg/yolov5s.yaml",
        "../models/yolov5s.yml",
        "models/hub/yolov5s.yaml",
    ],
)
def test_names_and_former_paths_are_ours(name):
    spec = read_spec(name)
    assert (spec.name, spec.depth_multiple, spec.width_multiple) == ("yolov5s", 0.33, 0.5)


def test_p6_sizes_have_four_levels():
    spec = read_spec("models/hub/yolov5s6.yaml")
    assert len(spec.anchors) == 4 and spec.head[-1][0] == (23, 26, 29, 32)


def test_every_published_model_and_ours_are_known():
    names = {f"yolov5{scale}{level}" for scale in "nsmlx" for level in ("", "6")}
    names |= {"yolov3", "yolov3-spp", "yolov3-tiny", "yolov7", "yolov7x"}
    names |= {f"yolov7-{kind}" for kind in ("tiny", "tiny-silu", "w6", "e6", "d6", "e6e")}
    names |= {f"yolov8{scale}{level}" for scale in "nsmlx" for level in ("", "-p2", "-p6")}
    names |= {f"yolov9{scale}" for scale in "tsmce"} | {f"yolov10{scale}" for scale in "nsmblx"}
    names |= {f"yolo{version}{scale}" for version in (11, 12, 26) for scale in "nsmlx"}
    names |= {f"yolo26{scale}{level}" for scale in "nsmlx" for level in ("-p2", "-p6")}
    names |= {f"yolov5{scale}{level}u" for scale in "nsmlx" for level in ("", "6")}
    names |= {"yolov3u", "yolov3-sppu", "yolov3-tinyu"}
    assert set(family_scales()) == names | {"yolov5p", "yolov5pu", "yolov3-slim"}


@pytest.mark.parametrize(
    ("path", "name", "head"),
    [
        ("cfg/training/yolov7.yaml", "yolov7", "IDetect"),
        ("cfg/training/yolov7-w6.yaml", "yolov7-w6", "IAuxDetect"),
        ("cfg/deploy/yolov7-w6.yaml", "yolov7-w6-deploy", "Detect"),
        ("cfg/deploy/yolov7-tiny-silu.yaml", "yolov7-tiny-silu-deploy", "Detect"),
        ("yolov7x-deploy", "yolov7x-deploy", "Detect"),
        ("models/yolov3-tiny.yaml", "yolov3-tiny", "Detect"),
    ],
)
def test_former_paths_of_yolov7_and_v3_are_ours(path, name, head):
    spec = read_spec(path)
    assert (spec.name, spec.head[-1][2]) == (name, head)


def test_the_form_for_inference_is_without_auxiliary_layers():
    training, inference = read_spec("yolov7-w6"), read_spec("yolov7-w6-deploy")
    assert len(training.head) - len(inference.head) == 4
    assert inference.head[-1][0] == training.head[-1][0][:4] == (114, 115, 116, 117)


def test_keypoints_are_refused_by_name(write):
    head = [*SINGLE["head"][:-1], [SINGLE["head"][-1][0], 1, "IKeypoint", ["nc", "anchors"]]]
    with pytest.raises(UserError, match="IKeypoint finds keypoints; this repository trains detectors of boxes"):
        Model(read_spec(write(head=head)), 5)


def test_channels_of_the_slim_model_are_taken_as_written():
    model = Model(read_spec("yolov3-slim"), 80)
    assert [model.feature_info[layer].channels for layer in (0, 1, 5, 9, 16, 23)] == [26, 44, 84, 148, 270, 412]
    assert [model.feature_info[layer].stride for layer in model.head_inputs] == [8, 16, 32]
    levels = model.eval()(torch.rand(1, 3, 192, 512)).levels
    assert [level.shape[2:4] for level in levels] == [(24, 64), (12, 32), (6, 16)]


def test_a_file_of_the_user_wins_over_the_name(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "yolov5s.yaml").write_text(yaml.safe_dump(SINGLE))
    assert read_spec("models/yolov5s.yaml").nc == 5
    assert read_spec("yolov5s.yaml").nc == 80


@pytest.mark.parametrize("name", ["yolov5t", "my/own/yolov5s.yaml", "nowhere.yaml"])
def test_unknown_models_are_told(name):
    with pytest.raises(
        UserError,
        match=r"no model file .*known: yolo11\[nsmlx\], .*yolov5\[nsmlxp\]u, .*yolov7-tiny-silu",
    ):
        read_spec(name)
    with pytest.raises(UserError, match="did you mean 'yolov5s'"):
        read_spec("yolo5s")
    with pytest.raises(UserError, match="did you mean 'yolov8n'"):
        read_spec("YOLOv8n.yaml")


@pytest.mark.parametrize(
    "name, sizes", [("yolov8.yaml", "yolov8[nsmlx]"), ("yolo26-p6", "yolo26[nsmlx]-p6"), ("YOLOv5u", "yolov5[nsmlxp]u")]
)
def test_a_family_without_a_size_is_asked_for_it(name, sizes):
    with pytest.raises(UserError) as caught:
        read_spec(name)
    assert f"; of which size? {sizes}; known: " in str(caught.value)


def test_a_single_file_builds(write):
    spec = read_spec(write())
    model = Model(spec, spec.nc)
    assert spec.name == "mine"
    assert [level.shape for level in model.eval()(torch.rand(1, 3, 64, 64)).levels] == [
        (1, 2, 8, 8, 10),
        (1, 2, 4, 4, 10),
    ]
    assert len(model.model[4].m) == 3  # 9 * 0.33
    assert len(model.model[2].m) == 1  # 3 * 0.33


def test_a_spec_survives_being_written(write):
    for spec in (read_spec(write(activation="nn.ReLU()", anchors=3)), read_spec("yolov5n6")):
        described = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
        assert ModelSpec.from_dict(described, described["name"], "") == spec


def test_width_rounds_up_to_multiples_of_8_but_one_takes_numbers_as_written():
    assert [round_channels(channels, 0.25) for channels in (64, 100, 1024)] == [16, 32, 256]
    assert round_channels(80, 0.75) == 64
    assert round_channels(37, 1.0) == 37


def test_blocks_without_inner_depth_are_stacked():
    rows = {**SINGLE, **with_row("backbone", 1, [-1, 9, "Bottleneck", [128]])}
    rows["backbone"][0] = [-1, 1, "Conv", [64, 3, 4]]
    layers = layer_specs(ModelSpec.from_dict(rows, "stacked", "stacked"))
    assert layers[1].number == 3
    model = Model(ModelSpec.from_dict(rows, "stacked", "stacked"), 1)
    assert isinstance(model.model[1], nn.Sequential) and len(model.model[1]) == 3
    assert "model.1.2.cv1.conv.weight" in model.state_dict()


def test_anchors_may_be_a_number(write):
    spec = read_spec(write(anchors=3))
    assert spec.anchors == 3
    head = Model(spec, 1).head
    assert head.provisional and head.num_anchors == 3
    assert spec.with_anchors(3.4).anchors == 3


def test_another_activation_reaches_every_block(write):
    model = Model(read_spec(write(activation="nn.LeakyReLU(0.1, inplace=True)")), 1)
    kinds = [type(module.act) for module in model.modules() if hasattr(module, "act")]
    assert set(kinds) == {nn.LeakyReLU} and len(kinds) > 10
    assert model.model[0].conv.act.negative_slope == 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            with_row("backbone", 1, [-1, 1, "Convv", [128, 3, 2]]),
            r"mine: backbone row 1, layer 1 \[-1, 1, Convv, \[128, 3, 2\]\]: no block is called 'Convv'; "
            "did you mean 'Conv'",
        ),
        (with_row("backbone", 1, [-1, 1, "os.system", ["true"]]), "no block is called 'os.system'"),
        (with_row("backbone", 1, [-1, 1, "Conv"]), "backbone row 1: a row is"),
        (with_row("backbone", 1, ["-1", 1, "Conv", [128]]), "backbone row 1: 'from' is a layer number"),
        (with_row("backbone", 1, [-1, 0, "Conv", [128]]), "'number' is 1 or more; got 0"),
        (with_row("backbone", 1, [7, 1, "Conv", [128]]), "'from' 7 is not a layer before this one"),
        (with_row("backbone", 1, [-5, 1, "Conv", [128]]), "'from' -5 is not a layer before this one"),
        (with_row("backbone", 1, [-1, 1, "Conv", ["wide", 3, 2]]), r"backbone row 1, layer 1 .*wide"),
        (with_row("backbone", 1, [-1, 1, "Conv", []]), "backbone row 1, layer 1"),
        (with_row("backbone", 1, [-1, 1, "Conv", [128, 3, 2, 1, 1, 1, True, 8, 9]]), "layer 1 .*argument"),
        (with_row("head", 1, [[-1, 3], 1, "Concat", [2]]), "Concat joins channels, dimension 1"),
        (with_row("head", 1, [[-1, 2], 1, "Concat", [1]]), "head row 1, layer 8 .*Sizes of tensors must match"),
        (with_row("head", 2, [[-1, 4], 1, "C3", [256]]), "C3 takes one input; got 2"),
        (
            with_row("head", 3, [[9, 6], 1, "Detekt", ["nc"]]),
            r"mine: head row 3, layer 10 .*: no head is called 'Detekt'; did you mean 'Detect'",
        ),
        (with_row("head", 3, [[9, -11], 1, "Detect", ["nc", "anchors"]]), "layer 10 .*a head reads layers, not the im"),
        (
            with_row("backbone", 1, [-1, 1, "CBLinear", [[64, 128]]]),
            "BottleneckCSP reads single maps; layer 1 puts out several",
        ),
        (with_row("head", 2, [-1, 1, "CBLinear", [[64, 256]]]), "layer 10 .*Detect reads single maps; layer 9 puts o"),
        ({"backbone": None}, r"mine\.yaml: 'backbone' is a list of rows .*; got None"),
        ({"head": "Detect"}, r"mine\.yaml: 'head' is a list of rows .*; got Detect"),
        ({"nc": "eighty"}, r"mine\.yaml: nc: got eighty, expected a whole number of at least 1"),
        ({"reg_max": 0}, "reg_max: got 0, expected a whole number of at least 1"),
        ({"scales": [0.33, 0.25, 1024]}, r"mine\.yaml: scales: expected a letter a size"),
        ({"scales": {"n": [0.33]}}, r"mine\.yaml: scales: n: expected a list depth_multiple, width_multiple, max"),
        ({"scales": {"n": [0.33, 0.25, float("inf")]}}, "max_channels: got inf"),
        (with_row("head", 3, [[9, 4, 6], 1, "Detect", ["nc", "anchors"]]), "2 rows of anchors for 3 levels"),
        (with_row("head", 3, [[9, 6], 1, "Detect", ["nc", [[1, 2]]]]), r"arguments are \[nc, anchors\]"),
        ({"anchors": "many"}, "mine.yaml: anchors are a number a level"),
        ({"activation": "nn.Sin()"}, "no activation is called 'nn.Sin'"),
        ({"activation": "__import__('os')"}, "an activation looks like"),
        ({"activation": "nn.LeakyReLU(open)"}, "arguments of an activation are numbers"),
        ({"activation": "nn.LeakyReLU([)"}, "arguments of an activation are numbers"),
        ({"activation": "nn.LeakyReLU(1:1:1)"}, "arguments of an activation are numbers"),
        ({"activation": "nn.LeakyReLU(slope=0.1)"}, "unexpected keyword argument 'slope'"),
        (with_row("backbone", 0, [-1, 1, "Conv", [8, 3, 1, None, 1, "nn.ReLU({)"]]), "arguments of an activation are"),
    ],
)
def test_bad_rows_are_named(changes, message, write):
    with pytest.raises(UserError, match=message):
        Model(read_spec(write(**changes)), 1)


TOO_MUCH = {
    "channels": (with_row("backbone", 1, [-1, 1, "Conv", [40_000_000, 3, 2]]), "more than 1,000,000,000 parameters"),
    "a kernel": (with_row("backbone", 1, [-1, 1, "Conv", [8, 100_001, 1]]), "backbone row 1, layer 1"),
    "repetitions": ({"backbone": [[-1, 1_000_000_000, "Conv", [8]]]}, "1000000000 layers, repetitions counted"),
    "parts": ({**with_row("backbone", 2, [-1, 9_000, "C3", [8]]), "depth_multiple": 10}, "10,000 parts"),
    "depth": ({"depth_multiple": 1e300}, r"depth_multiple: got 1e\+300, expected a number in \(0, 10\]"),
    "width": ({"width_multiple": float("nan")}, "width_multiple: got nan"),
    "no width": ({"width_multiple": 0}, "width_multiple: got 0"),
    "classes": ({"nc": 10**9}, "nc: got 1000000000, expected a whole number of at least 1, 25000 at most"),
    "anchors": ({"anchors": 10**9}, "anchors: got 1000000000, expected at most 100 a level"),
    "an activation": ({"activation": [1]}, r"activation: got \[1\], expected text"),
    "a long activation": ({"activation": f"nn.LeakyReLU({'1:' * 200_000}1)"}, "an activation looks like"),
    "poolings": (with_row("backbone", 0, [-1, 1, "SPPF", [8, 5, 10**7]]), "10000000 poolings; expected at most 16"),
    "kernels": (with_row("backbone", 0, [-1, 1, "SPP", [8, [5] * 1000]]), "1000 poolings; expected at most 16"),
    "kernels of halves": (with_row("backbone", 0, [-1, 1, "SPPCSPC", [8, 0.5, [5] * 17]]), "17 poolings; expected at"),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_a_model_file_that_asks_for_too_much_gets_a_line_and_no_memory(kind, write):
    changes, message = TOO_MUCH[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        load_model("", write(**changes))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


def test_published_models_are_within_bounds():
    for spec in known_specs():
        assert ModelSpec.from_dict(spec.to_dict(), spec.name, "x").name == spec.name


def test_bad_files_are_named(tmp_path, root):
    path = tmp_path / "broken.yaml"
    path.write_text("backbone: [")
    with pytest.raises(UserError, match=r"broken.yaml: line 1: expected the node content"):
        read_spec(str(path))
    path.write_text("- 1")
    with pytest.raises(UserError, match=r"broken.yaml: line 1: got a list, expected lines of"):
        read_spec(str(path))
    path.write_text("head: []\nanchors: 3")
    with pytest.raises(UserError, match="no 'backbone'"):
        read_spec(str(path))
    path.write_text("backbone: []\nhead: []\nanchors: 3")
    with pytest.raises(UserError, match=r"broken\.yaml: no rows"):
        read_spec(str(path))


# -- files in Ultralytics' format --------------------------------------------------------------------------------------

SCALED = {
    "nc": 5,
    "scales": {"n": [0.33, 0.25, 128], "s": [0.67, 0.5, 64]},
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 3, "C3", [256]]],
    "head": [[[1, 2], 1, "Detect", ["nc"]]],
}


@pytest.fixture
def scaled(tmp_path):
    path = tmp_path / "yolov8-mine.yaml"
    path.write_text(yaml.safe_dump(SCALED))
    return path


def test_a_scale_is_depth_width_and_largest_channels(scaled):
    spec = read_spec(str(scaled.with_name("yolov8s-mine.yaml")))
    assert (spec.name, spec.scale, spec.depth_multiple, spec.width_multiple) == ("yolov8s-mine", "s", 0.67, 0.5)
    model = Model(spec, 5)
    assert [info.channels for info in model.feature_info] == [32, 32, 32]  # at most 64, then half
    assert len(model.model[2].m) == 2  # 3 * 0.67


def test_the_scale_stands_in_the_name_of_a_file_or_is_the_first(scaled, caplog):
    caplog.set_level("INFO")
    own = scaled.rename(scaled.with_name("yolov8s.yaml"))
    assert read_spec(str(own)).scale == "s"
    assert read_spec(str(own.rename(own.with_name("mine.yaml")))).scale == "n"
    assert "mine.yaml has the scales n, s: taking n" in caplog.text


def test_a_file_may_say_its_scale_itself_and_its_scales_win_over_multiples(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SCALED, "scale": "s", "depth_multiple": 1.0, "width_multiple": 1.0}))
    assert (read_spec(str(path)).scale, read_spec(str(path)).width_multiple) == ("s", 0.5)


def test_empty_scales_are_none(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SCALED, "scales": None}))
    assert read_spec(str(path)).width_multiple == 1


def test_another_activation_reaches_the_head_without_anchors(scaled):
    scaled.write_text(yaml.safe_dump({**SCALED, "activation": "nn.ReLU()"}))
    head = Model(read_spec(str(scaled)), 5).head
    assert {type(module.act) for module in head.modules() if hasattr(module, "act")} == {nn.ReLU}


def test_our_family_files_are_files_like_others(root):
    assert read_spec(str(root / "models/cfg/yolov5.yaml")).scale == "n"
    assert read_spec(str(root / "models/cfg/yolo11m.yaml")).backbone == read_spec("yolo11m").backbone


@pytest.mark.parametrize(
    "name", ["ultralytics/cfg/models/v8/yolov8n.yaml", "cfg/models/26/yolo26x.yaml", "yolov10b", "yolov9t", "yolov5nu"]
)
def test_names_of_ultralytics_are_ours(name):
    spec = read_spec(name)
    assert spec.anchor_free and spec.nms_iou == 0.7
    assert spec.two_branches is ("26" in name or "v10" in name)


def test_a_spec_without_anchors_survives_being_written():
    for name in ("yolov8m-p6", "yolov9e", "yolov10x", "yolo26l"):
        spec = read_spec(name)
        described = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
        assert ModelSpec.from_dict(described, described["name"], "") == spec
