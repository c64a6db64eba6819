"""PyTorch's own layers that model files name as `nn.…`: their arguments are passed on as written."""

from __future__ import annotations

from torch import nn

from models.blocks.base import BATCH_NORM, LayerSpec, round_channels


class _SameChannels:
    """Layers that leave the number of channels alone."""

    repeats_inside = False

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        return cls(*spec.args), c_in[0]


class _OwnChannels:
    """Layers whose first argument is the number of channels that they put out."""

    repeats_inside = False

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        c_out = round_channels(spec.args[0], width)
        return cls(c_in[0], c_out, *spec.args[1:]), c_out


class Upsample(_SameChannels, nn.Upsample): ...


class MaxPool2d(_SameChannels, nn.MaxPool2d): ...


class ZeroPad2d(_SameChannels, nn.ZeroPad2d): ...


class Identity(_SameChannels, nn.Identity): ...


class Conv2d(_OwnChannels, nn.Conv2d): ...


class ConvTranspose2d(_OwnChannels, nn.ConvTranspose2d): ...


class BatchNorm2d(_SameChannels, nn.BatchNorm2d):
    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        return cls(c_in[0], **BATCH_NORM), c_in[0]
