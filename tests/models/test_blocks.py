from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.blocks import BLOCKS
from models.blocks.attention import C3TR
from models.blocks.base import LayerSpec
from models.blocks.conv import Conv, DWConv, Focus
from models.blocks.csp import C3, Bottleneck
from models.blocks.pool import SPP, SPPF

ARGUMENTS = {
    "TransformerBlock": (16, 2, 1),
    "GhostBottleneck": (8,),
    "Concat": (1,),
    "nn.Upsample": (None, 2, "nearest"),
    "nn.MaxPool2d": (2, 2, 0),
    "nn.ZeroPad2d": ((0, 1, 0, 1),),
    "nn.Conv2d": (16, 1),
    "nn.ConvTranspose2d": (16, 2, 2),
    "nn.BatchNorm2d": (),
    "nn.Identity": (),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_puts_out_the_channels_it_says_and_passes_gradients(name):
    spec = LayerSpec(0, (-1,), 1, name, ARGUMENTS.get(name, (16,)), "")
    module, c_out = BLOCKS[name].from_spec(spec, [8], 1.0)
    x = torch.rand(2, 8, 12, 16, requires_grad=True)
    y = module([x] if name == "Concat" else x)
    assert y.shape[:2] == (2, c_out)
    y.sum().backward()
    assert x.grad is not None


def test_fast_pyramid_pooling_equals_the_slow_one():
    slow, fast = SPP(8, 8).eval(), SPPF(8, 8).eval()
    fast.load_state_dict(slow.state_dict())
    x = torch.rand(1, 8, 20, 24)
    torch.testing.assert_close(fast(x), slow(x))


def test_focus_is_a_strided_convolution():
    """The 2×2 neighbourhoods as channels, 1×1: a 2×2 convolution of stride 2 with the weights laid out anew."""
    focus = Focus(3, 8, 1).eval()
    x = torch.rand(1, 3, 8, 10)
    weight = focus.conv.conv.weight.view(8, 4, 3)  # corners: (0, 0), (1, 0), (0, 1), (1, 1) as row, column
    laid = torch.empty(8, 3, 2, 2)
    for corner, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        laid[:, :, row, column] = weight[:, corner]
    expected = focus.conv.act(focus.conv.bn(F.conv2d(x, laid, stride=2)))
    torch.testing.assert_close(focus(x), expected)


def test_attention_follows_positions_wherever_they_stand():
    """Without position codes, swapping columns of the map swaps columns of what comes out."""
    block = C3TR(8, 8, 1).eval()
    x = torch.rand(1, 8, 3, 5)
    swapped = x[..., [1, 0, 2, 3, 4]]
    torch.testing.assert_close(block(swapped), block(x)[..., [1, 0, 2, 3, 4]])


def test_shortcuts_only_where_shapes_allow():
    assert Bottleneck(8, 8).add and not Bottleneck(8, 16).add and not Bottleneck(8, 8, False).add
    assert [bottleneck.add for bottleneck in C3(8, 8, 2, False).m] == [False, False]


def test_depth_wise_groups_divide_both_sides():
    assert DWConv(12, 18).conv.groups == 6


def test_folding_twice_is_folding_once():
    conv = Conv(3, 4, 3).eval()
    conv.bn.running_mean.uniform_(-1, 1)
    x = torch.rand(1, 3, 5, 5)
    before = conv(x)
    conv.fuse()
    conv.fuse()
    torch.testing.assert_close(conv(x), before)
    assert list(conv.state_dict()) == ["conv.weight", "conv.bias"]
