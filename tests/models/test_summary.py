from __future__ import annotations

import copy

import torch

from models.families import read_spec
from models.summary import count_parameters, describe, gflops, layer_table
from models.yolo import Model


def counted_slowly(model, size):
    """Multiply-adds of every convolution from the shapes that it sees, times two."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        kernel = module.weight[0].numel()  # input channels of a group, times the window
        total += output.numel() * kernel

    fused = copy.deepcopy(model).fuse()
    for module in fused.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    fused(torch.rand(1, 3, size, size))
    return 2 * total / 1e9


def test_operations_are_those_of_the_convolutions(small):
    assert abs(gflops(small, 128) / counted_slowly(small, 128) - 1) < 0.01


def test_counting_leaves_the_model_alone(small):
    before = {key: value.clone() for key, value in small.state_dict().items()}
    small.train()
    gflops(small)
    assert small.training and list(small.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert not any("total_ops" in key for key, _ in small.named_buffers())


def test_what_a_reader_sees(small):
    lines = layer_table(small).splitlines()
    assert len(lines) == 1 + len(small.model)
    assert lines[13].split() == ["12", "11,", "6", "0", "Concat", "128", "16"]
    text = describe(small)
    assert text.startswith("yolov5p: 25 layers, ") and f"{count_parameters(small):,}" in text and "3 classes" in text


def test_half_precision_models_are_counted_too(small):
    assert gflops(copy.deepcopy(small).half(), 128) == gflops(small, 128)
    with torch.autocast("cpu", torch.bfloat16):
        small(torch.rand(1, 3, 64, 64), profile=True)


def test_layers_of_several_maps_have_a_cost(caplog):
    caplog.set_level("INFO")
    model = Model(read_spec("yolov9e"), 2).eval()
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64), profile=True)
    assert "10 CBLinear" in caplog.text and "16 CBFuse" in caplog.text
