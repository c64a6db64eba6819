"""A convolution that learns as several branches and computes as one.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, arXiv:2101.03697.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.blocks.base import Block, LayerSpec, batch_norm
from models.blocks.conv import Conv


class RepConv(Block):
    """3x3 and 1x1 convolutions with a norm each, and a norm alone where shapes allow, added; then SiLU.

    `fuse()` makes one 3x3 convolution of them.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        _require_3x3(kernel)
        keeps_shape = c_in == c_out and stride == 1
        self.groups = groups
        self.rbr_identity = batch_norm(c_in) if keeps_shape else None
        self.rbr_dense: nn.Sequential | None = _branch(c_in, c_out, 3, stride, groups)
        self.rbr_1x1: nn.Sequential | None = _branch(c_in, c_out, 1, stride, groups)
        self.rbr_reparam: nn.Conv2d | None = None
        self.act = nn.SiLU()

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        """In models without anchors the name means `RepConvPair`."""
        if spec.anchor_free:
            return RepConvPair.from_spec(spec, c_in, width)
        return super().from_spec(spec, c_in, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.rbr_reparam is not None:
            return self.act(self.rbr_reparam(x))
        assert self.rbr_dense is not None and self.rbr_1x1 is not None
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return self.act(y if self.rbr_identity is None else y + self.rbr_identity(x))

    @torch.no_grad()
    def fuse(self) -> None:
        """The branches, as they stand, as one convolution. Does nothing the second time."""
        if self.rbr_dense is None or self.rbr_1x1 is None:
            return
        convolution, norm = self.rbr_dense
        kernel, bias = _folded(convolution.weight, norm)
        small, small_bias = _folded(self.rbr_1x1[0].weight, self.rbr_1x1[1])
        kernel, bias = kernel + F.pad(small, (1, 1, 1, 1)), bias + small_bias
        if self.rbr_identity is not None:
            same = nn.init.dirac_(torch.empty_like(kernel), self.groups)
            same, same_bias = _folded(same, self.rbr_identity)
            kernel, bias = kernel + same, bias + same_bias
        convolution.weight, convolution.bias = nn.Parameter(kernel), nn.Parameter(bias)
        self.rbr_reparam = convolution
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None


class RepConvPair(Block):
    """The `RepConv` of YOLOv9: without a norm alone, under other names. `fuse()` makes one 3x3 convolution of it."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        _require_3x3(kernel)
        self.conv1 = Conv(c_in, c_out, 3, stride, act=False)
        self.conv2: Conv | None = Conv(c_in, c_out, 1, stride, act=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.act(y if self.conv2 is None else y + self.conv2(x))

    def fuse(self) -> None:
        """Does nothing the second time."""
        if self.conv2 is not None:
            take_up(self.conv1, self.conv2)
            self.conv2 = None


class RepVGGDW(Block):
    """Depth-wise 7x7 and 3x3 convolutions with a norm each, added; then SiLU. `fuse()` makes one 7x7 of them.

    Source: Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", NeurIPS 2024, arXiv:2405.14458.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 7, groups=channels, act=False)
        self.conv1: Conv | None = Conv(channels, channels, 3, groups=channels, act=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y if self.conv1 is None else y + self.conv1(x))

    def fuse(self) -> None:
        """Does nothing the second time."""
        if self.conv1 is not None:
            take_up(self.conv, self.conv1)
            self.conv1 = None


@torch.no_grad()
def take_up(large: Conv, small: Conv) -> None:
    """Folds both norms and adds the small kernel to the middle of the large one, which then does what both did."""
    large.fuse()
    small.fuse()
    margin = (large.conv.kernel_size[0] - small.conv.kernel_size[0]) // 2
    assert large.conv.bias is not None and small.conv.bias is not None
    large.conv.weight += F.pad(small.conv.weight, (margin,) * 4)
    large.conv.bias += small.conv.bias


def _require_3x3(kernel: int) -> None:
    if kernel != 3:
        raise ValueError(f"RepConv has a 3x3 kernel; got {kernel}")


def _branch(c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, batch_norm(c_out))


def _folded(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias that do what the kernel and the norm do."""
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    return fuse_conv_bn_weights(weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
