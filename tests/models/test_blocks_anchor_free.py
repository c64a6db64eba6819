"""The blocks of YOLOv8 and later."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import BLOCKS
from models.blocks.area_attention import A2C2f, ABlock
from models.blocks.attention import Attention, PSABlock
from models.blocks.base import LayerSpec
from models.blocks.c2f import CIB, C2f, C2fCIB, C3k2
from models.blocks.csp import Bottleneck, C3k
from models.blocks.elan import AConv, RepNCSPELAN4
from models.blocks.merge import CBFuse, CBLinear
from models.blocks.pool import SPPF
from models.blocks.rep import RepConvPair, RepVGGDW
from models.families import read_spec
from models.spec import ModelSpec
from models.summary import count_parameters
from models.yolo import Model
from tests.models.norms import seasoned


def row(module, *args, **others):
    return LayerSpec(0, (-1,), 1, module, args, "", **others)


def test_a_row_repconv_means_the_pair_in_models_without_anchors():
    module, channels = BLOCKS["RepConv"].from_spec(row("RepConv", 16, 3, 2, anchor_free=True), [8], 1.0)
    assert channels == 16 and module.eval()(torch.rand(1, 8, 8, 8)).shape == (1, 16, 4, 4)
    assert {key.split(".")[0] for key in module.state_dict()} == {"conv1", "conv2"}
    with pytest.raises(ValueError, match="3x3 kernel; got 5"):
        BLOCKS["RepConv"].from_spec(row("RepConv", 16, 5, anchor_free=True), [8], 1.0)


@torch.no_grad()
def attended_slowly(block, x, areas):
    """Position by position: a mean of the values of its area, weighted by the softmax of its scores there."""
    channels, height, width = x.shape
    qkv = block.qkv(x[None])[0].flatten(1)
    run = height * width // areas
    attended, all_values = torch.empty(channels, height * width), torch.empty(channels, height * width)
    a_head = len(qkv) // block.num_heads
    for head in range(block.num_heads):
        own = qkv[head * a_head : (head + 1) * a_head]
        keys_from, values_from = block.key_channels, 2 * block.key_channels
        queries, keys, values = own[:keys_from], own[keys_from:values_from], own[values_from:]
        rows = slice(head * block.value_channels, (head + 1) * block.value_channels)
        all_values[rows] = values
        for position in range(height * width):
            area = slice(position // run * run, (position // run + 1) * run)
            scores = (queries[:, position, None] * keys[:, area]).sum(0) / math.sqrt(block.key_channels)
            weights = scores.exp() / scores.exp().sum()
            attended[rows, position] = (values[:, area] * weights).sum(1)
    along = block.pe(all_values.view(1, channels, height, width))
    return block.proj(attended.view(1, channels, height, width) + along)[0]


@pytest.mark.parametrize(("key_ratio", "areas", "kernel"), [(0.5, 1, 3), (1.0, 1, 7), (1.0, 4, 7)])
def test_attention_is_a_weighted_mean_of_values(key_ratio, areas, kernel):
    block = seasoned(Attention(12, 3, key_ratio, areas, kernel))
    x = torch.randn(2, 12, 4, 6)
    with torch.no_grad():
        y = block(x)
    for image in range(2):
        torch.testing.assert_close(y[image], attended_slowly(block, x[image], areas), rtol=1e-4, atol=1e-5)


def test_areas_know_nothing_of_each_other():
    """But for the depth-wise convolution of the values, silenced here."""
    block = seasoned(Attention(8, 2, 1.0, 4, 7))
    nn.init.zeros_(block.pe.bn.weight)
    x = torch.randn(1, 8, 8, 5, requires_grad=True)
    block(x)[:, :, 2:4].sum().backward()
    touched = x.grad.abs().sum((0, 1, 3)) > 0
    assert touched.tolist() == [False, False, True, True, False, False, False, False]


@pytest.mark.parametrize("block", [PSABlock(64), ABlock(64, 1.2, 4)])
def test_attention_learns_in_bf16(block):
    x = torch.randn(2, 64, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    y.float().square().mean().backward()
    assert torch.isfinite(y).all() and all(torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize(
    ("block", "channels"),
    [
        (lambda: RepConvPair(6, 8), 6),
        (lambda: RepVGGDW(6), 6),
        (lambda: RepNCSPELAN4(8, 12, 8, 4, 2), 8),
        (lambda: C2fCIB(8, 8, 2, True, True), 8),
    ],
)
def test_fused_branches_put_out_the_same(block, channels):
    block = seasoned(block())
    x = torch.randn(2, channels, 11, 9)
    with torch.no_grad():
        before = block(x)
        for _ in range(2):  # the second time nothing is left to do
            for part in block.modules():
                if callable(getattr(part, "fuse", None)):
                    part.fuse()
            torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-5)
    pairs = [part for part in block.modules() if isinstance(part, RepConvPair | RepVGGDW)]
    assert pairs and all(None in (part.conv1, getattr(part, "conv2", 0)) for part in pairs)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in block.modules())


def test_a_fused_pair_is_one_convolution():
    for block, side in ((RepConvPair(4, 6), 3), (RepVGGDW(4), 7)):
        block.fuse()
        (weight,) = (value for value in block.state_dict().values() if value.dim() == 4)
        assert weight.shape[2:] == (side, side)


def test_the_last_convolution_sees_every_stage():
    block = C2f(8, 16, 3, True)
    assert block.cv2.conv.in_channels == (2 + 3) * 8
    x = torch.randn(1, 8, 6, 6)
    for stage in block.m:
        nn.init.zeros_(stage.cv2.bn.weight)  # every stage then passes on what comes in
        nn.init.zeros_(stage.cv2.bn.bias)
    block.eval()
    first, second = block.cv1(x).split(8, dim=1)
    torch.testing.assert_close(block(x), block.cv2(torch.cat((first, second, second, second, second), dim=1)))


@pytest.mark.parametrize(("scale", "nested"), [("", False), ("n", False), ("s", False), ("m", True), ("x", True)])
def test_c3k2_is_nested_in_the_larger_models_whatever_its_row_says(scale, nested):
    block, _ = C3k2.from_spec(row("C3k2", 64, False, 0.25, scale=scale), [32], 1.0)
    assert isinstance(block.m[0], C3k if nested else Bottleneck)
    assert isinstance(C3k2.from_spec(row("C3k2", 64, True, scale=scale), [32], 1.0)[0].m[0], C3k)


@pytest.mark.parametrize("scale", "nsmlx")
def test_attention_in_c3k2_is_so_at_every_scale(scale):
    block, _ = C3k2.from_spec(row("C3k2", 256, True, 0.5, True, scale=scale), [32], 1.0)
    assert [type(part) for part in block.m[0]] == [Bottleneck, PSABlock] and block.m[0][1].attn.num_heads == 2


@pytest.mark.parametrize(("scale", "large"), [("", False), ("m", False), ("l", True), ("x", True)])
def test_large_area_attention_has_a_residual_and_a_narrow_mlp(scale, large):
    block, _ = A2C2f.from_spec(row("A2C2f", 64, True, 4, scale=scale), [64], 1.0)
    assert block.m[0][0].mlp[0].conv.out_channels == (38 if large else 64)
    assert (block.gamma is not None) == large and ("gamma" in block.state_dict()) == large
    plain, _ = A2C2f.from_spec(row("A2C2f", 64, False, -1, scale=scale), [64], 1.0)
    assert plain.gamma is None and isinstance(plain.m[0], C3k)


def test_the_residual_of_area_attention_begins_small():
    block = A2C2f(32, 32, 1, True, 1, True).eval()
    x = torch.randn(1, 32, 4, 4)
    kept = [block.cv1(x)]
    kept.append(block.m[0](kept[0]))
    torch.testing.assert_close(block(x), x + 0.01 * block.cv2(torch.cat(kept, dim=1)))
    with pytest.raises(ValueError, match="as many channels; got 16 and 32"):
        A2C2f(16, 32, 1, True, 1, True)


def test_pools_shortcut_and_activation_of_the_newer_pyramid():
    older, newer = SPPF(8, 8).eval(), SPPF(8, 8, 5, 2, True).eval()
    assert isinstance(older.cv1.act, nn.SiLU) and isinstance(newer.cv1.act, nn.Identity)
    x = torch.randn(1, 8, 9, 10)
    first = newer.cv1(x)
    wide = [
        F.max_pool2d(first, kernel, 1, kernel // 2) for kernel in (5, 9)
    ]  # two poolings of 5 reach as far as one of 9
    torch.testing.assert_close(newer(x), x + newer.cv2(torch.cat((first, *wide), dim=1)))
    assert not SPPF(8, 16, 5, 3, True).add


def test_wide_inside_and_large_in_the_middle():
    block = CIB(8, 8, large_kernel=True, expansion=1.0)
    assert [tuple(part.conv.weight.shape) for part in (block.cv1[1], block.cv1[2].conv)] == [
        (16, 8, 1, 1),
        (16, 1, 7, 7),
    ]
    assert block.add and not CIB(8, 16).add


def test_halving_averages_first():
    block = AConv(3, 4).eval()
    x = torch.randn(1, 3, 8, 6)
    averaged = (x[..., :-1, :-1] + x[..., 1:, :-1] + x[..., :-1, 1:] + x[..., 1:, 1:]) / 4
    y = block(x)
    assert y.shape == (1, 4, 4, 3)
    torch.testing.assert_close(y, block.cv1(averaged))


def test_fused_backbones_add_one_map_of_each_enlarged():
    linear = CBLinear(3, (2, 4))
    few, many = linear(torch.randn(1, 3, 2, 3))
    assert (few.shape, many.shape) == ((1, 2, 2, 3), (1, 4, 2, 3))
    last = torch.randn(1, 4, 4, 6)
    enlarged = many.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(CBFuse((1,))([(few, many), last]), enlarged + last)
    with pytest.raises(ValueError, match="every input but the last; got 2 for 2"):
        CBFuse.from_spec(row("CBFuse", (0, 0)), [4, 4], 1.0)


def test_channels_are_capped_before_they_are_scaled():
    for name in ("Conv", "C2f", "SCDown", "nn.Conv2d"):
        others = (1,) if name == "nn.Conv2d" else ()
        _, c_out = BLOCKS[name].from_spec(row(name, 1024, *others, max_channels=512), [8], 0.25)
        assert c_out == 128, name


def test_rows_of_models_without_anchors_mean_multiples_of_8_and_larger_bottlenecks():
    assert row("Conv", 180).channels(1.0) == 180
    assert row("Conv", 180, anchor_free=True).channels(1.0) == 184
    kernels = [
        Bottleneck.from_spec(row("Bottleneck", 8, anchor_free=free), [8], 1.0)[0].cv1.conv.kernel_size
        for free in (False, True)
    ]
    assert kernels == [(1, 1), (3, 3)]


def test_a_layer_of_several_maps_is_described_by_its_last():
    described = {
        "backbone": [
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "Conv", [32, 3, 2]],
            [-1, 1, "CBLinear", [[16, 24]]],
            [[2, 0], 1, "CBFuse", [[0]]],
            [-1, 1, "AConv", [24]],
        ],
        "head": [[[4], 1, "Detect", ["nc"]]],
    }
    model = Model(ModelSpec.from_dict(described, "two backbones", "here"), 3).eval()
    assert [info.channels for info in model.feature_info] == [16, 32, 24, 16, 24]
    assert [info.stride for info in model.feature_info] == [2, 4, 4, 2, 4]
    (level,) = model(torch.rand(1, 3, 32, 32)).levels
    assert level.shape == (1, 64 + 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "parameters"), [("yolov9m", 20_216_160), ("yolov9e", 58_206_592), ("yolov3u", 103_754_144)]
)
def test_sizes_of_which_no_outputs_are_recorded_have_their_published_parameters(name, parameters):
    with torch.device("meta"):
        assert count_parameters(Model(read_spec(name), 80)) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"), [("yolov8n-p6", 4_976_656), ("yolov8m-p6", 44_862_352), ("yolov8x-p6", 97_382_352)]
)
def test_published_parameters_of_p6_sizes_are_those_of_their_fused_form(name, parameters):
    with torch.device("meta"):
        assert count_parameters(Model(read_spec(name), 80).fuse()) == parameters
