from __future__ import annotations

import copy
import dataclasses
import re
import sys
import types
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from models.families import deployed, read_spec
from models.spec import ModelSpec
from models.transfer import transfer
from models.weights import load_model, read_checkpoint
from models.yolo import Model
from tests.models.limited import outcomes
from utils.errors import UserError

UNFINISHED = {
    "task": {},
    "optimizer": {},
    "scaler": {},
    "ema_updates": 3,
    "optimizer_steps": 3,
    "epoch": 2,
    "best_fitness": 0.5,
    "best_epoch": 1,
    "class_maps": None,
}


@pytest.fixture
def image():
    return torch.rand(1, 3, 64, 64)


@pytest.fixture
def ours(small, tmp_path):
    """A checkpoint as the engine writes it."""

    def write(**changes) -> str:
        path = tmp_path / "best.pt"
        content = {
            "format": "yolo-distill",
            "version": 1,
            "description": small.spec.to_dict(),
            "names": list(small.names),
            "named": True,
            "model": small.state_dict(),
            "options": {"epochs": 3},
            "hyp": {"lr0": 0.01},
            "metrics": {"mAP50": 0.5},
        }
        torch.save({**content, **changes}, path)
        return str(path)

    return write


@pytest.fixture
def published(small, tmp_path, monkeypatch):
    """Pickles the small model as its authors would have: modules and all, under the names of code that is not here."""
    code = types.ModuleType("models.published")

    class Model(nn.Module):
        pass

    Model.__module__, Model.__qualname__ = "models.published", "Model"
    code.Model = Model

    def write(file="published.pt", key="model", half=True, also=None, **attributes) -> str:
        module = Model()
        module.model = small.model.half() if half else small.model
        described = {"yaml": {**small.spec.to_dict(), "nc": 3, "ch": 3}, "names": list(small.names)}
        for name, value in {**described, **attributes}.items():
            setattr(module, name, value)
        content = {"epoch": -1, "model": None, "ema": None, "date": "2026", **(also or {}), key: module}
        with monkeypatch.context() as context:
            context.setitem(sys.modules, "models.published", code)
            torch.save(content, tmp_path / file)
        small.float()
        return str(tmp_path / file)

    return write


def same_outputs(a, b, image, tolerance=1e-6):
    with torch.no_grad():
        for x, y in zip(a.eval()(image).levels, b.eval()(image).levels, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_our_checkpoint_comes_back_whole(ours, small, image):
    model, report = load_model(ours())
    assert model.training
    same_outputs(model, small, image)
    assert report.taken == report.total and report.line() == f"{report.total} of {report.total} tensors"
    assert model.names == ("cat", "dog", "cow") and model.named
    assert dataclasses.replace(model.spec, nc=80) == small.spec
    checkpoint = read_checkpoint(ours(training=UNFINISHED))
    assert checkpoint.training == UNFINISHED and checkpoint.meta["metrics"] == {"mAP50": 0.5}
    assert read_checkpoint(ours()).training is None


def test_made_up_names_stay_made_up(ours):
    assert not load_model(ours(named=False))[0].named


def test_half_precision_weights_become_float32(ours, small):
    half = {key: value.half() if value.is_floating_point() else value for key, value in small.state_dict().items()}
    model, _ = load_model(ours(model=half))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_newer_or_incomplete_format_is_told(ours):
    with pytest.raises(UserError, match="newer version"):
        load_model(ours(version=2))
    path = Path(ours())
    torch.save({"format": "yolo-distill", "version": 1, "model": {}}, path)
    with pytest.raises(UserError, match="without description, names, named"):
        load_model(str(path))


@pytest.mark.parametrize("key", ["description", "options", "hyp", "metrics", "training"])
@pytest.mark.parametrize("value", [5, ["lr0"], None])
def test_parts_of_ours_that_are_no_mappings_are_told(key, value, ours):
    with pytest.raises(UserError, match=rf"best\.pt: {key}: expected keys and values; got "):
        read_checkpoint(ours(**{key: value}))


@pytest.mark.parametrize("key", UNFINISHED)
def test_a_state_that_no_run_can_go_on_from_is_told(key, ours):
    for state, found in (
        ({**UNFINISHED, key: "x"}, "x"),
        ({k: UNFINISHED[k] for k in UNFINISHED if k != key}, "nothing"),
    ):
        with pytest.raises(
            UserError, match=rf"best\.pt: training: {key}: got {found}; it was not written by this code"
        ):
            read_checkpoint(ours(training=state))


def test_a_published_pickle_is_read_without_its_code(published, small, image):
    path = published(half=False)
    model, report = load_model(path)
    assert "models.published" not in sys.modules
    assert report.taken == report.total
    assert model.names == small.names and model.num_classes == 3
    same_outputs(model, small, image)


def test_names_as_dict_and_names_that_are_only_numbers(published):
    assert load_model(published(names={0: "a", 2: "c", 1: "b"}))[0].names == ("a", "b", "c")
    assert not load_model(published(names=["0", "1", "2"]))[0].named


def test_the_average_is_preferred_to_the_model(published, small, image):
    other = {key: torch.zeros_like(value) for key, value in small.state_dict().items()}
    path = published(key="ema", half=False, also={"model": other})
    same_outputs(load_model(path)[0], small, image)


def test_another_activation_in_a_pickle_is_seen(published, small, image):
    for module in small.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.LeakyReLU(0.1)
    model, _ = load_model(published(half=False))
    assert model.spec.activation == "nn.LeakyReLU(0.1)"
    same_outputs(model, small, image)
    small.model[0].act = nn.Hardswish()
    with pytest.raises(UserError, match="mixes activations"):
        load_model(published())


def test_families_that_we_do_not_have_are_named(published):
    rows = {
        "backbone": [[-1, 1, "C2fAttn", [8]]],
        "head": [[[0], 1, "Detect", ["nc"]]],
        "yaml_file": "yolov8-world.yaml",
    }
    with pytest.raises(UserError, match="family yolov8-world, which is not supported: its layers C2fAttn are unknown"):
        load_model(published(yaml=rows))
    rows = {"backbone": [[-1, 1, "Conv", [8]]], "head": [[[0], 1, "Segment", ["nc", 32, 256]]]}
    with pytest.raises(UserError, match=r"models\.published\.Model, which is not supported: it finds masks, not boxes"):
        load_model(published(yaml=rows))
    with pytest.raises(UserError, match=r"holds a models\.published\.Model, not a detector"):
        load_model(published(yaml=None))


def test_a_pickle_of_odd_content_is_an_error_of_one_line(published):
    for rows in ({"backbone": [3], "head": 4, "anchors": 3}, {"backbone": 3, "head": [[]], "anchors": None}):
        with pytest.raises(UserError, match=r"published\.pt"):
            load_model(published(yaml=rows))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_is_recognised(suffix, small, tmp_path, image):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(small.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(small.state_dict(), path)
    model, report = load_model(str(path))
    assert model.spec.name == "yolov5p" and model.num_classes == 3 and not model.named
    assert report.taken == report.total
    same_outputs(model, small, image)


@pytest.mark.parametrize("name", ["yolov5n", "yolov5s6"])
def test_published_sizes_are_recognised_by_their_tensors(name, tmp_path):
    with torch.device("meta"):
        model = Model(read_spec(name), 7)
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert (checkpoint.spec.name, checkpoint.num_classes) == (name, 7)


def test_prefixes_of_wrappers_are_cut_off(small, tmp_path, image):
    torch.save({"state_dict": {f"module.{key}": value for key, value in small.state_dict().items()}}, tmp_path / "x.pt")
    same_outputs(load_model(str(tmp_path / "x.pt"))[0], small, image)


def test_a_fused_state_dict_puts_out_the_same(small, tmp_path, image):
    with torch.no_grad():
        before = small(image)
    small.fuse()
    torch.save(small.state_dict(), tmp_path / "fused.pt")
    model, report = load_model(str(tmp_path / "fused.pt"))
    assert report.taken == report.total
    with torch.no_grad():
        for a, b in zip(before.levels, model.eval()(image).levels, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_unknown_state_dict_needs_its_model_file(small, tmp_path, image):
    described = {**small.spec.to_dict(), "width_multiple": 0.0625}
    odd = Model(type(small.spec).from_dict(described, "odd", ""), 3)
    torch.save(odd.state_dict(), tmp_path / "odd.pt")
    with pytest.raises(
        UserError, match=r"odd.pt is a bare state dict of no model that we know, .*; name its model file"
    ):
        load_model(str(tmp_path / "odd.pt"))
    (tmp_path / "odd.yaml").write_text(__import__("json").dumps(described))
    same_outputs(load_model(str(tmp_path / "odd.pt"), cfg=str(tmp_path / "odd.yaml"))[0], odd, image)


def test_another_number_of_classes_keeps_all_but_the_last_layer(ours, small):
    model, report = load_model(ours(), num_classes=5)
    assert report.line() == (
        f"{report.total - 6} of {report.total} tensors; not taken: model.24.m.0.weight and 5 more because nc 3 != 5"
    )
    assert {key for key, _ in report.skipped} == {
        f"model.24.m.{i}.{name}" for i in range(3) for name in ("weight", "bias")
    }
    for key, value in model.state_dict().items():
        if key not in dict(report.skipped):
            assert torch.equal(value, small.state_dict()[key])
    assert model.num_classes == model.spec.nc == 5 and not model.named
    assert load_model(ours(), names=["a"])[0].names == ("a",)


def test_weights_of_another_architecture_are_an_error(ours):
    with pytest.raises(UserError, match="nothing of the weights fits yolov5n"):
        load_model(ours(), cfg="yolov5n")


def test_a_bigger_relative_takes_what_fits(ours, small):
    model = Model(read_spec("yolov5p"), 3)
    state = small.state_dict()
    state["model.0.conv.weight"] = torch.zeros(4, 3, 6, 6)
    del state["model.1.conv.weight"]
    report = transfer(model, state)
    assert dict(report.skipped) == {
        "model.0.conv.weight": "shape (4, 3, 6, 6) != (8, 3, 6, 6)",
        "model.1.conv.weight": "the file has none",
    }


def test_the_report_of_another_size_stays_readable():
    with torch.device("meta"):
        smaller = Model(read_spec("yolov8n"), 80).state_dict()
    report = transfer(
        Model(read_spec("yolov8s"), 80), {key: torch.zeros(value.shape) for key, value in smaller.items()}
    )
    assert report.line().startswith("94 of 355 tensors; not taken: model.0.conv.weight because shape (16, 3, 3, 3) != ")
    assert report.line().endswith(" more for other reasons") and len(report.line()) < 500


def test_anchors_of_the_weights_are_kept_unless_others_are_given(ours, small):
    fitted = small.head.anchors_px * 1.5
    small.head.set_anchors_px(fitted)
    path = ours()
    torch.testing.assert_close(load_model(path)[0].head.anchors_px, fitted)
    torch.testing.assert_close(load_model(path, cfg="yolov5p")[0].head.anchors_px, fitted)

    published = Model(read_spec("yolov5p"), 3).head.anchors_px
    model, report = load_model(path, cfg="yolov5p", anchors_from_cfg=True)
    torch.testing.assert_close(model.head.anchors_px, published)
    assert report.skipped == (("model.24.anchors", "the given anchors stand"),)

    rows = [[4, 5, 6, 7, 8, 9], [14, 15, 16, 17, 18, 19], [24, 25, 26, 27, 28, 29]]
    model, _ = load_model(path, anchors=rows)
    assert model.head.anchors_px.flatten(1).tolist() == rows and not model.head.provisional
    model, report = load_model(path, anchors=2.2)
    assert model.head.num_anchors == 2 and model.head.provisional
    assert "anchors a level 3 != 2" in report.line()
    with pytest.raises(UserError, match="1 rows of anchors for 3 levels"):
        load_model(path, anchors=[[1, 2]])


def test_more_anchors_in_the_weights_than_in_the_model_file(tmp_path, image):
    model = Model(read_spec("yolov5p").with_anchors(4), 3)
    torch.save(model.state_dict(), tmp_path / "four.pt")
    loaded, report = load_model(str(tmp_path / "four.pt"))
    assert loaded.head.num_anchors == 4 and not loaded.head.provisional and report.taken == report.total
    same_outputs(loaded, model, image)


def test_from_scratch():
    model, report = load_model("", cfg="yolov5p", num_classes=4)
    assert report is None and model.num_classes == 4
    assert load_model("", cfg="yolov5p")[0].num_classes == 80
    with pytest.raises(UserError, match="neither weights nor a model file"):
        load_model("")


# -- the forms of YOLOv7 -----------------------------------------------------------------------------------------------


@pytest.fixture
def learned(auxiliary):
    """The model with auxiliary levels, no tensor of which is as it began."""
    for parameter in auxiliary.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)
    for module in auxiliary.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return auxiliary


def test_weights_in_training_form_fit_the_form_for_inference(learned, image):
    inference = Model(deployed(learned.spec), 3)
    report = transfer(inference, learned.state_dict())
    assert report.taken == report.total
    same_outputs(inference, learned, image, 1e-4)


def test_weights_in_the_form_for_inference_fit_the_training_form(learned, image):
    inference = Model(deployed(learned.spec), 3)
    transfer(inference, learned.state_dict())
    again = Model(learned.spec, 3)
    report = transfer(again, inference.state_dict())
    missing = {key.split(".")[1] for key, _ in report.skipped}
    assert missing == {"6", "7", "8"} and all(".m2." in key for key, _ in report.skipped if key.startswith("model.8."))
    same_outputs(again, learned, image, 1e-4)


def test_folded_weights_fit_the_training_form(learned, image):
    folded = copy.deepcopy(learned).fuse()
    again = Model(learned.spec, 3)
    transfer(again, folded.state_dict())
    same_outputs(again, learned, image, 1e-4)


def test_implicit_knowledge_of_another_convolution_is_not_folded(learned):
    inference, state = Model(deployed(learned.spec), 3), learned.state_dict()
    head = f"model.{len(learned.model) - 1}"
    for key in ("ia.0.implicit", "im.0.implicit", "m.0.bias", "m.0.weight"):
        with pytest.raises(ValueError, match="implicit knowledge of shapes"):
            transfer(
                inference,
                {**state, f"{head}.{key}": state[f"{head}.{key}"][:1, :1] if key[0] == "i" else torch.ones(1)},
            )


def spread(*shape):
    """A tensor of one number, whatever its shape."""
    return torch.ones(1).expand(*shape) if len(shape) == 1 else torch.ones((1,) * len(shape)).expand(*shape)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are Linux's")
def test_small_files_of_large_tensors_are_refused_without_memory(ours, small, tmp_path):
    state = small.state_dict()
    factors = {f"model.24.{part}.0.implicit": torch.ones(1, 1, 1, 1) for part in ("ia", "im")}
    head = {"model.24.m.0.weight": spread(50_000, 1, 1, 1), "model.24.m.0.bias": spread(50_000, 1)}
    fused = {key: value for key, value in state.items() if ".bn." not in key}
    biases = {key.replace("weight", "bias"): spread(1_000_000) for key in fused if key.endswith(".conv.weight")}
    cases = {
        "classes": ({**state, "model.24.m.0.bias": spread(99_000_000)}, r"32999995 classes; expected at most 25000$"),
        "factors": ({**state, **head, **factors}, "is not made as checkpoints are: implicit knowledge of shapes"),
        "biases": ({**fused, **biases}, "^loaded$"),
    }
    paths = [Path(ours(model=content)).rename(tmp_path / f"{name}.pt") for name, (content, _) in cases.items()]
    for said, (_, message) in zip(outcomes(paths), cases.values(), strict=True):
        assert re.search(message, said), said


def test_other_classes_leave_the_heads_and_say_why(learned):
    other = Model(learned.spec, 5)
    report = transfer(other, learned.state_dict())
    assert {key.split(".")[2] for key, _ in report.skipped} == {"m", "m2", "im"}
    assert report.line().endswith("because nc 3 != 5")


def test_a_pickled_yolov7_is_read_with_numpy_numbers_and_anchors_in_pixels(learned, tmp_path, monkeypatch, image):
    code = types.ModuleType("models.yolo7")
    code.Model = type("Model", (nn.Module,), {"__module__": "models.yolo7", "__qualname__": "Model"})
    module = code.Model()
    module.model, module.yaml, module.names = learned.model, {**learned.spec.to_dict(), "nc": 3}, list(learned.names)
    learned.head.register_buffer("anchor_grid", learned.head.anchors_px.view(2, 1, 2, 1, 1, 2))
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "models.yolo7", code)
        torch.save({"model": module, "best_fitness": numpy.float64(0.5), "epoch": -1}, tmp_path / "yolov7.pt")
    model, report = load_model(str(tmp_path / "yolov7.pt"))
    assert report.taken == report.total and model.spec.head[-1][2] == "IAuxDetect"
    same_outputs(model, learned, image)


def test_a_traced_model_is_read_for_the_model_in_it(small, tmp_path, monkeypatch, image):
    code = types.ModuleType("utils.torch_utils")
    inner = types.ModuleType("models.inner")
    code.TracedModel = type(
        "TracedModel", (nn.Module,), {"__module__": "utils.torch_utils", "__qualname__": "TracedModel"}
    )
    inner.Model = type("Model", (nn.Module,), {"__module__": "models.inner", "__qualname__": "Model"})
    traced, module = code.TracedModel(), inner.Model()
    module.model, module.yaml, module.names = small.model, {**small.spec.to_dict(), "nc": 3}, list(small.names)
    traced.model = module
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "utils.torch_utils", code)
        context.setitem(sys.modules, "models.inner", inner)
        torch.save({"model": traced}, tmp_path / "traced.pt")
    same_outputs(load_model(str(tmp_path / "traced.pt"))[0], small, image)


def test_a_head_of_bins_knows_its_classes(tmp_path):
    rows = read_spec("yolov5p").to_dict()
    rows["head"][-1][2] = "IBin"
    model = Model(ModelSpec.from_dict(rows, "bins", "bins"), 3, ("cat", "dog", "cow"))
    content = {"format": "yolo-distill", "version": 1, "description": model.spec.to_dict(), "names": list(model.names)}
    torch.save({**content, "named": True, "model": model.state_dict()}, tmp_path / "bins.pt")
    again, report = load_model(str(tmp_path / "bins.pt"))
    assert again.num_classes == 3 and report.taken == report.total


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-tiny-deploy", "yolov3-tiny"])
def test_bare_state_dicts_of_other_families_are_recognised(name, tmp_path):
    torch.save(Model(read_spec(name), 80).state_dict(), tmp_path / "weights.pt")
    assert load_model(str(tmp_path / "weights.pt"))[0].spec.name == name


# -- models without anchors --------------------------------------------------------------------------------------------


@pytest.fixture
def free():
    return Model(read_spec("yolov8n"), 3, ("cat", "dog", "cow")).eval()


def test_a_bare_state_dict_without_anchors_is_recognised(free, tmp_path):
    torch.save(free.state_dict(), tmp_path / "weights.pt")
    model, report = load_model(str(tmp_path / "weights.pt"))
    assert (model.spec.name, model.num_classes) == ("yolov8n", 3) and report.taken == report.total


def test_other_classes_leave_the_class_towers_anew(free, tmp_path):
    torch.save(free.state_dict(), tmp_path / "weights.pt")
    model, report = load_model(str(tmp_path / "weights.pt"), num_classes=5)
    assert model.num_classes == 5
    assert {key.split(".")[2] for key, _ in report.skipped} == {"cv3"}
    assert {reason for _, reason in report.skipped} == {"nc 3 != 5"}
    assert torch.equal(model.model[0].conv.weight, free.model[0].conv.weight)


def test_anchors_have_no_say_in_a_model_without(free, tmp_path):
    torch.save(free.state_dict(), tmp_path / "weights.pt")
    model, _ = load_model(str(tmp_path / "weights.pt"), anchors=3, anchors_from_cfg=True)
    assert model.spec.anchors is None


@pytest.mark.parametrize("branch", ["one_to_one", "one_to_many"])
def test_a_fused_file_of_two_branches_fits_the_branch_that_it_has(branch, tmp_path, image):
    model = Model(read_spec("yolo26n"), 3).eval()
    model.head.use(branch)
    torch.save(model.fuse().state_dict(), tmp_path / "fused.pt")
    loaded, _ = load_model(str(tmp_path / "fused.pt"), "yolo26n")
    loaded.eval().head.use(branch)
    assert loaded.num_classes == 3
    torch.testing.assert_close(loaded.predict(image), model.predict(image), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["yolov9t", "yolov10s"])
def test_a_fused_file_with_branches_puts_out_the_same(name, tmp_path, image):
    """The small branches, which fusing leaves away, begin with what has no effect."""
    model = Model(read_spec(name), 3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.02, 0.1)
    with torch.no_grad():
        expected = model(image).levels
    torch.save(copy.deepcopy(model).fuse().state_dict(), tmp_path / "fused.pt")
    loaded, report = load_model(str(tmp_path / "fused.pt"), name)
    head = f"model.{len(model.model) - 1}."
    assert all(key.startswith((f"{head}cv2.", f"{head}cv3.")) for key, _ in report.skipped)
    with torch.no_grad():
        for a, b in zip(expected, loaded.eval()(image).levels, strict=True):
            assert (a - b).abs().max() < 1e-4 * a.abs().max()


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
def test_prefixes_are_cut_off_where_the_first_layer_has_no_tensors(prefix, tmp_path):
    with torch.device("meta"):
        own = Model(read_spec("yolov9e"), 3).state_dict()
    state = {f"{prefix}{key}": torch.zeros(()).expand(value.shape) for key, value in own.items()}
    torch.save(state, tmp_path / "weights.pt")
    checkpoint = read_checkpoint(tmp_path / "weights.pt")
    assert checkpoint.spec.name == "yolov9e" and checkpoint.state.keys() == own.keys()


@pytest.mark.parametrize("letter", ["s", "", None])
def test_a_pickled_model_of_a_file_without_a_letter_has_the_first_scale(letter, tmp_path, monkeypatch, image):
    """Ultralytics takes the first, and writes down the file's `scales` with no `scale`."""
    rows = {
        "nc": 3,
        "scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]},
        "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 2, "C3k2", [64, False]]],
        "head": [[[1, 2], 1, "Detect", ["nc"]]],
    } | ({} if letter is None else {"scale": letter})
    own = Model(ModelSpec.from_dict({**rows, "scale": letter or "n"}, "mine", "mine"), 3).eval()
    code = types.ModuleType("models.ultra")
    code.Model = type("Model", (nn.Module,), {"__module__": "models.ultra", "__qualname__": "Model"})
    module = code.Model()
    module.model, module.yaml, module.names = own.model, rows, {0: "cat", 1: "dog", 2: "cow"}
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "models.ultra", code)
        torch.save({"model": None, "ema": module}, tmp_path / "best.pt")
    loaded, report = load_model(str(tmp_path / "best.pt"))
    assert report.taken == report.total and loaded.spec.scale == (letter or "n")
    same_outputs(loaded, own, image)
