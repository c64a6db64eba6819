from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from models.families import read_spec
from models.spec import ModelSpec
from models.yolo import Model


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 96)


def test_raw_levels_have_one_shape_in_training_and_evaluation(small, image):
    shapes = [(2, 3, 8, 12, 8), (2, 3, 4, 6, 8), (2, 3, 2, 3, 8)]
    assert [tuple(level.shape) for level in small.train()(image).levels] == shapes
    assert [tuple(level.shape) for level in small.eval()(image).levels] == shapes


def test_extra_features_come_in_the_asked_order_and_change_nothing(small, image):
    alone = small(image)
    prediction, features = small(image, extra_features=[23, 4, 17, 4])
    assert all(torch.equal(a, b) for a, b in zip(alone.levels, prediction.levels, strict=True))

    seen = {}
    for layer in (4, 17, 23):
        small.model[layer].register_forward_hook(lambda module, x, y, layer=layer: seen.update({layer: y}))
    small(image)
    for layer, feature in zip([23, 4, 17, 4], features, strict=True):
        assert torch.equal(feature, seen[layer])


@pytest.mark.parametrize("layer", [24, 25, -1])
def test_a_layer_that_is_not_there_is_an_index_error_with_the_range(small, image, layer):
    with pytest.raises(IndexError, match=r"feature layer -?\d+; valid: 0 to 23"):
        small(image, extra_features=[layer])
    with pytest.raises(IndexError, match="valid: 0 to 23"):
        small.features(image, [layer])


def test_features_alone_run_no_further_than_the_last_wanted_layer(small, image):
    _, expected = small(image, extra_features=[9, 4])
    ran = []
    for index, layer in enumerate(small.model):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    features = small.features(image, [9, 4])
    assert ran == list(range(10))
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
    assert small.features(image, []) == []


def test_feature_info_is_what_layers_put_out(small):
    image = torch.rand(1, 3, 128, 192)
    _, features = small(image, extra_features=range(24))
    for info, feature in zip(small.feature_info, features, strict=True):
        assert feature.shape[1] == info.channels
        assert (128 / feature.shape[2], 192 / feature.shape[3]) == (info.stride, info.stride)
    assert small.head_inputs == (17, 20, 23)
    assert small.stride == 32
    assert [small.feature_info[layer].stride for layer in small.head_inputs] == [8, 16, 32]


def test_building_a_model_leaves_its_statistics_fresh():
    model = Model(read_spec("yolov5p"), 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert (module.eps, module.momentum) == (1e-3, 0.03)
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
    assert model.training and all(module.training for module in model.modules())


def test_fused_model_puts_out_the_same_and_has_no_norms(small, image):
    before = small(image)
    decoded = small.predict(image)
    fused = copy.deepcopy(small).fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    for a, b in zip(before.levels, fused.fuse()(image).levels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.predict(image), decoded, rtol=1e-3, atol=1e-3)
    assert any(isinstance(module, nn.BatchNorm2d) for module in small.modules())


def test_channels_last_and_bfloat16_autocast(small, image):
    exact = small(image)
    small = small.to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)
    for a, b in zip(exact.levels, small(image).levels, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough, decoded = small(image), small.predict(image)
    assert decoded.dtype == torch.float32
    for a, b in zip(exact.levels, rough.levels, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).abs().max() < 0.05 * a.abs().max()


def test_deep_copy_stands_on_its_own(small, image):
    before = small(image).levels[0].clone()
    twin = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(small(image).levels[0], before)
    assert twin.names == small.names and twin.feature_info == small.feature_info


def test_one_graph_when_compiled(small, image):
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    prediction, features = compiled(image, extra_features=(17, 20))
    expected, maps = small(image, extra_features=(17, 20))
    for a, b in zip((*prediction.levels, *features), (*expected.levels, *maps), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_reach_every_parameter(small, image):
    prediction, features = small.train()(image, extra_features=[17])
    (sum(level.square().mean() for level in prediction.levels) + features[0].mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in small.parameters())


def test_profile_logs_every_layer_and_moves_no_statistics(small, image, caplog):
    small.train()
    twin = copy.deepcopy(small)
    with caplog.at_level(logging.INFO):
        profiled = small(image, profile=True)
    lines = [record.getMessage() for record in caplog.records if record.name == "models.yolo"]
    assert len(lines) == 1 + len(small.model) + 1
    assert "GFLOPs" in lines[0] and "C3" in lines[3] and "total" in lines[-1]
    for a, b in zip(profiled.levels, twin(image).levels, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(small.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_names_are_known_or_made_up():
    spec = read_spec("yolov5p")
    assert Model(spec, 2).names == ("class0", "class1")
    assert not Model(spec, 2).named
    assert Model(spec, 2, ["a", "b"]).named
    with pytest.raises(ValueError, match="3 names for 2 classes"):
        Model(spec, 2, ["a", "b", "c"])


def test_outputs_that_nobody_needs_any_more_are_let_go(small, image):
    _, kept = small._run(image, len(small.model), [4])
    assert set(kept) == {4}
    _, kept = small._run(image, 10, [])
    assert set(kept) == {4, 6, 9}  # the neck joins these


def test_a_single_level_model_works():
    spec = ModelSpec.from_dict(
        {
            "anchors": [[10, 13, 16, 30]],
            "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 2, "Conv", [8, 3, 2]]],
            "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
        },
        "one",
        "one",
    )
    model = Model(spec, 1).eval()
    assert model.stride == 8  # Conv stacked twice
    assert model(torch.rand(1, 3, 64, 64)).levels[0].shape == (1, 2, 8, 8, 6)
    assert model.predict(torch.rand(1, 3, 64, 64), augment=True).shape[2] == 6


# -- auxiliary levels --------------------------------------------------------------------------------------------------


def layers_run(model, image, **options):
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(model.model)
    ]
    output = model(image, **options)
    for hook in hooks:
        hook.remove()
    return ran, output


def test_auxiliary_levels_are_put_out_in_training_alone(auxiliary, image):
    prediction = auxiliary.train()(image)
    assert [level.shape for level in prediction.aux] == [level.shape for level in prediction.levels]
    assert len(prediction.levels) == 2
    assert auxiliary.eval()(image).aux == ()
    assert auxiliary.head_inputs == (4, 5) and auxiliary.auxiliary_layers == {6, 7}


def test_layers_of_auxiliary_levels_are_not_run_in_evaluation_unless_wanted(auxiliary, image):
    ran, alone = layers_run(auxiliary, image)
    assert ran == [0, 1, 2, 3, 4, 5, 8]
    ran, (prediction, (feature,)) = layers_run(auxiliary, image, extra_features=[7])
    assert ran == list(range(9)) and feature.shape[1] == 14
    assert all(torch.equal(a, b) for a, b in zip(alone.levels, prediction.levels, strict=True))


def test_every_parameter_learns_with_auxiliary_levels(auxiliary, image):
    prediction = auxiliary.train()(image)
    sum(level.square().mean() for level in (*prediction.levels, *prediction.aux)).backward()
    assert all(parameter.grad is not None for parameter in auxiliary.parameters())


def test_the_fused_form_has_neither_branches_nor_implicit_nor_auxiliary_parts(auxiliary, image):
    with torch.no_grad():
        before = auxiliary(image).levels
        after = auxiliary.fuse()(image).levels
        in_training = auxiliary.train()(image)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert in_training.aux == ()
    left = {key.split(".")[1] for key in auxiliary.state_dict()}
    assert left == {"1", "2", "3", "4", "5", "8"}
    assert not any(part in key for key in auxiliary.state_dict() for part in ("m2", "implicit", "bn", "rbr_1x1"))


def test_a_traced_model_puts_out_the_maps_that_its_head_reads(auxiliary, image):
    _, expected = auxiliary(image, extra_features=[4, 5])
    auxiliary.traced = True
    maps = auxiliary(image)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert torch.equal(auxiliary.head(maps).levels[1], auxiliary.head(expected).levels[1])


@pytest.mark.parametrize("head", ["IDetect", "IBin"])
def test_other_heads_of_yolov7_learn_and_are_fused(head, image):
    rows = read_spec("yolov5p").to_dict()
    rows["head"][-1][2] = head
    model = Model(ModelSpec.from_dict(rows, head, head), 3)
    prediction = model.train()(image)
    assert [tuple(level.shape) for level in prediction.levels] == [(2, 3, 8, 12, 8), (2, 3, 4, 6, 8), (2, 3, 2, 3, 8)]
    sum(level.square().mean() for level in prediction.levels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        before = model.eval()(image).levels
        for one, other in zip(before, model.fuse()(image).levels, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
