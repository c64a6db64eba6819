"""Convolutions with batch norm and activation, and the stems and light variants made of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.blocks.activation import activation
from models.blocks.base import Block, LayerSpec, batch_norm
from models.blocks.merge import corners

Size = int | tuple[int, int]


def same_padding(kernel: Size, dilation: int = 1) -> Size:
    """Padding that keeps height and width at stride 1."""
    if isinstance(kernel, int):
        return dilation * (kernel - 1) // 2
    return dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2


class Conv(Block):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: Size = 1,
        stride: Size = 1,
        padding: Size | None = None,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = same_padding(kernel, dilation) if padding is None else padding
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation=dilation, groups=groups, bias=False)
        self.bn: nn.Module = batch_norm(c_out)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        """YOLOv7's rows name the activation behind the groups, where others have the dilation."""
        plain = tuple(arg for arg in spec.args if not (isinstance(arg, str) and arg.startswith("nn.")))
        named = [arg for arg in spec.args if arg not in plain]
        module, c_out = super().from_spec(replace(spec, args=plain), c_in, width)
        if named:
            module.act = activation(named[0])
        return module, c_out

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def fuse(self) -> None:
        """Folds the batch norm, as it stands, into the convolution. Does nothing the second time."""
        norm = self.bn
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            return
        self.conv.weight, self.conv.bias = fuse_conv_bn_weights(
            self.conv.weight, self.conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.bn = nn.Identity()


class DWConv(Conv):
    """Depth-wise convolution: as many groups as both channel counts allow."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, act: bool = True
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride, None, _common_groups(c_in, c_out), dilation, act)


def _common_groups(c_in: int, c_out: int) -> int:
    while c_out:
        c_in, c_out = c_out, c_in % c_out
    return c_in


class Focus(Block):
    """Moves each 2×2 neighbourhood into the channels, then convolves: the stem of releases before v6."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv(4 * c_in, c_out, kernel, stride, padding, groups, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, c_out, H/2, W/2)"""
        return self.conv(torch.cat(corners(x), dim=1))


class CrossConv(Block):
    """A 1×k convolution, then a k×1 one."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        expansion: float = 1.0,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = Conv(c_in, hidden, (1, kernel), (1, stride))
        self.cv2 = Conv(hidden, c_out, (kernel, 1), (stride, 1), groups=groups)
        self.add = shortcut and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y
