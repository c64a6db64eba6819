"""PyTorch's own layers that model files name as `nn.…`: their arguments are passed on as written."""

from __future__ import annotations

from torch import nn

from models.blocks.base import LayerSpec, batch_norm


class _Plain(nn.Module):
    repeats_inside = False


class SameChannels(_Plain):
    """Layers that leave the number of channels alone."""

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        return cls(*spec.args), c_in[0]


class OwnChannels(_Plain):
    """Layers whose first argument is the number of channels that they put out."""

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        c_out = spec.channels(width)
        return cls(c_in[0], c_out, *spec.args[1:]), c_out


class Upsample(SameChannels, nn.Upsample): ...


class MaxPool2d(SameChannels, nn.MaxPool2d): ...


class ZeroPad2d(SameChannels, nn.ZeroPad2d): ...


class Identity(SameChannels, nn.Identity): ...


class Conv2d(OwnChannels, nn.Conv2d): ...


class ConvTranspose2d(OwnChannels, nn.ConvTranspose2d): ...


class BatchNorm2d(_Plain):
    """A batch norm, with our eps and momentum whatever is written."""

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        return batch_norm(c_in[0]), c_in[0]
