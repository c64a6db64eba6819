"""What every layer type has in common: how a row of a model file becomes a module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

# of all published families; PyTorch's own defaults (1e-5, 0.1) would change every output
BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-3, 0.03


@dataclass(frozen=True)
class LayerSpec:
    """One row `[from, number, module, args]` of a model file, scaled."""

    index: int  # of the layer in the model
    sources: tuple[int, ...]  # layers whose outputs come in, absolute; -1 is the image
    number: int  # repetitions, after scaling by the depth multiple
    module: str
    args: tuple[Any, ...]
    where: str  # for messages: file, section, row
    scale: str = ""  # the size's letter, n to x, where the family has several
    max_channels: int | None = None  # the most that a row's first argument means, before the width multiple
    anchor_free: bool = False  # a model without anchors: in the format of these, some rows mean something else

    def channels(self, width: float) -> int:
        """The first argument, as the channels that are put out."""
        channels = self.args[0] if self.max_channels is None else min(self.args[0], self.max_channels)
        return round_channels(channels, width, as_written=not self.anchor_free)


def round_channels(channels: int, width: float, as_written: bool = True) -> int:
    """Scales a number of channels, up to a multiple of 8.

    Width 1 takes the number `as_written`: pruned models have odd ones. The format of models without anchors rounds
    there, too: YOLOv9m has 184 channels where its row says 180.
    """
    return int(channels) if width == 1 and as_written else math.ceil(channels * width / 8) * 8


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM)


class Block(nn.Module):
    """A layer type that a model file can name.

    A block with unusual channel arithmetic overrides `from_spec`, so the builder needs no list of special cases.
    Attribute names (cv1, bn, m) follow the published checkpoints: they are the file format.
    """

    repeats_inside = False  # True: `number` is a depth inside the block; False: the block is stacked that often

    @classmethod
    def from_spec(cls, spec: LayerSpec, c_in: list[int], width: float) -> tuple[nn.Module, int]:
        """Returns the module and the number of channels it puts out.

        Args:
            c_in: channels of each input.
            width: the model's width multiple.
        """
        c_out = spec.channels(width)
        inside = (spec.number,) if cls.repeats_inside else ()
        return cls(c_in[0], c_out, *inside, *spec.args[1:]), c_out
