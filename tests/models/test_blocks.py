from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import BLOCKS
from models.blocks.attention import C3TR
from models.blocks.base import LayerSpec
from models.blocks.conv import Conv, DWConv, Focus
from models.blocks.csp import C3, Bottleneck
from models.blocks.merge import ReOrg, Shortcut
from models.blocks.pool import MP, SP, SPP, SPPF
from models.blocks.rep import RepConv
from models.graph import MANY_INPUTS
from tests.models.norms import seasoned

ARGUMENTS = {
    "TransformerBlock": (16, 2, 1),
    "GhostBottleneck": (8,),
    "ELAN1": (16, 8, 4),
    "RepNCSPELAN4": (16, 8, 4, 2),
    "SPPELAN": (16, 4),
    "CBLinear": ((8, 16),),
    "CBFuse": ((),),
    "Concat": (1,),
    "nn.Upsample": (None, 2, "nearest"),
    "nn.MaxPool2d": (2, 2, 0),
    "nn.ZeroPad2d": ((0, 1, 0, 1),),
    "nn.Conv2d": (16, 1),
    "nn.ConvTranspose2d": (16, 2, 2),
    "nn.BatchNorm2d": (),
    "nn.Identity": (),
    "MP": (),
    "SP": (5,),
    "ReOrg": (),
    "Shortcut": (1,),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_puts_out_the_channels_it_says_and_passes_gradients(name):
    spec = LayerSpec(0, (-1,), 1, name, ARGUMENTS.get(name, (16,)), "")
    module, c_out = BLOCKS[name].from_spec(spec, [8], 1.0)
    x = torch.rand(2, 8, 12, 16, requires_grad=True)
    y = module([x] if name in MANY_INPUTS else x)
    if name == "CBLinear":  # puts out several maps, of which the last is told
        *_, y = y
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


@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "groups"), [(6, 8, 1, 1), (6, 6, 1, 1), (6, 6, 2, 1), (6, 6, 1, 3)]
)
def test_branches_folded_into_one_convolution_put_out_the_same(c_in, c_out, stride, groups):
    block = seasoned(RepConv(c_in, c_out, 3, stride, groups))
    assert (block.rbr_identity is not None) == (c_in == c_out and stride == 1)
    x = torch.randn(2, c_in, 9, 11)
    with torch.no_grad():
        before = block(x)
        block.fuse()
        torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-5)
        block.fuse()
        torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in block.named_parameters()] == ["rbr_reparam.weight", "rbr_reparam.bias"]


def test_reorganising_keeps_every_value():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    y = ReOrg()(x)
    assert y.shape == (2, 12, 2, 3)
    for channel in range(12):
        column, row = channel // 6, channel // 3 % 2
        assert torch.equal(y[:, channel], x[:, channel % 3, row::2, column::2])


def test_pools_of_half_and_of_the_same_size():
    x = torch.rand(1, 2, 8, 10)
    assert torch.equal(MP()(x), F.max_pool2d(x, 2))
    assert SP(5)(x).shape == x.shape and torch.equal(SP(5)(x)[..., 4, 5], x[..., 2:7, 3:8].amax((2, 3)))


def test_shortcut_adds_maps_of_as_many_channels():
    x, y = torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3)
    assert torch.equal(Shortcut()([x, y]), x + y)
    with pytest.raises(ValueError, match=r"as many channels; got \[8, 4\]"):
        Shortcut.from_spec(LayerSpec(2, (0, 1), 1, "Shortcut", (1,), ""), [8, 4], 1.0)


def test_a_row_of_yolov7_may_name_its_activation():
    row = LayerSpec(0, (-1,), 1, "Conv", (16, 3, 2, None, 1, "nn.LeakyReLU(0.1)"), "")
    module, _ = Conv.from_spec(row, [8], 1.0)
    assert isinstance(module.act, nn.LeakyReLU) and module.act.negative_slope == 0.1
    assert module.conv.stride == (2, 2) and module.conv.dilation == (1, 1)
