"""The forms of convolutions that only infer, against the ordinary ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from models import inference
from models.blocks.conv import Conv
from models.families import read_spec
from models.inference import Exact, OnePass, for_inference, has_one_pass, one_pass
from models.yolo import Model

CPU = torch.device("cpu")
needs_one_pass = pytest.mark.skipif(not has_one_pass(torch.float32), reason="this PyTorch has no oneDNN")


def conv(**options) -> Conv:
    """One whose norm has statistics of its own."""
    made = Conv(6, 8, **{"kernel": 3, **options}).eval()
    norm = made.bn
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return made


@needs_one_pass
@pytest.mark.parametrize("size", [(8, 8), (1, 5), (7, 3)])
@pytest.mark.parametrize(
    "options",
    [{}, {"kernel": 1}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"kernel": (1, 3)}, {"act": False}],
    ids=str,
)
@torch.no_grad()
def test_one_pass_puts_out_what_convolution_norm_and_activation_do(options, size):
    parent = nn.Sequential(conv(**options))
    for images in (torch.randn(2, 6, *size), torch.randn(1, 6, *size).to(memory_format=torch.channels_last)):
        ordinary = copy.deepcopy(parent)
        expected = ordinary(images)
        ordinary[0].fuse()
        one_pass(ordinary, torch.float32)
        assert isinstance(ordinary[0], OnePass)
        torch.testing.assert_close(ordinary(images), expected, rtol=1e-5, atol=1e-5)


@needs_one_pass
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.3), nn.Hardswish()], ids=str)
@torch.no_grad()
def test_one_pass_knows_other_activations(activation):
    parent, images = nn.Sequential(conv()), torch.randn(2, 6, 8, 8)
    parent[0].act = activation
    expected = parent(images)
    parent[0].fuse()
    one_pass(parent, torch.float32)
    assert isinstance(parent[0], OnePass)
    torch.testing.assert_close(parent(images), expected, rtol=1e-5, atol=1e-5)


@needs_one_pass
@torch.no_grad()
def test_what_cannot_be_done_in_one_pass_stays():
    other = conv()
    other.act = nn.Mish()
    other.fuse()
    with_norm = conv()
    parent = nn.Sequential(other, with_norm)
    one_pass(parent, torch.float32)
    assert parent[0] is other and parent[1] is with_norm


@torch.no_grad()
def test_without_onednn_convolutions_stay_ordinary(small, monkeypatch):
    monkeypatch.setattr(inference, "has_one_pass", lambda precision: False)
    images = torch.rand(1, 3, 64, 64)
    expected = small(images).levels
    ready = for_inference(copy.deepcopy(small), CPU)
    assert not any(isinstance(module, OnePass) for module in ready.modules())
    for level, other in zip(ready(images).levels, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-4)


def test_asking_what_this_machine_can_draws_no_random_numbers():
    has_one_pass.cache_clear()
    state = torch.get_rng_state()
    has_one_pass(torch.float32)
    assert torch.equal(state, torch.get_rng_state())


@needs_one_pass
@pytest.mark.parametrize(
    "family", ["yolov5p", "yolov3-tiny", "yolov7-tiny", "yolov8n", "yolov10n", "yolo11n", "yolo12n"]
)
@torch.no_grad()
def test_every_family_puts_out_the_same(family):
    model = Model(read_spec(family), 2).eval()
    images = torch.rand(2, 3, 64, 96)
    expected = model(images).levels
    ready = for_inference(copy.deepcopy(model), CPU)
    assert any(isinstance(module, OnePass) for module in ready.modules())
    for level, other in zip(ready(images).levels, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_half_precision_levels_are_float32_and_nearer_than_under_autocast_alone(small):
    images = torch.rand(4, 3, 128, 128)
    expected = small(images).levels
    ready = for_inference(copy.deepcopy(small), CPU, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        halved, plain = ready(images).levels, copy.deepcopy(small).fuse()(images).levels

    def error(levels):
        return sum(
            float((level.float() - other).square().mean()) for level, other in zip(levels, expected, strict=True)
        )

    assert all(level.dtype == torch.float32 for level in halved)
    assert 0 < error(halved) < error(plain)


def test_exact_is_float32_in_whatever_surrounds_it():
    exact = Exact(nn.Linear(4, 2).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert exact(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_both_branches_of_a_head_end_in_float32(anchor_free_cfg: Callable[..., Path]) -> None:
    model = Model(read_spec(str(anchor_free_cfg(end2end=True))), 2).eval()
    model.head.use("one_to_many")
    ready = for_inference(model, CPU, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(level.dtype == torch.float32 for level in ready(torch.rand(1, 3, 64, 64)).levels)
    last = [tower[-1] for towers in (ready.head.cv2, ready.head.cv3) for tower in towers]
    assert all(isinstance(module, Exact) for module in last)
