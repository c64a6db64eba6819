"""The heads of YOLOv7: anchors, implicit knowledge, and auxiliary levels that only learn along.

Sources: Wang et al., "You Only Learn One Representation", arXiv:2105.04206 (implicit knowledge); Wang et al.,
"YOLOv7", CVPR 2023, arXiv:2207.02696 (auxiliary levels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.blocks.base import LayerSpec
from models.heads.anchor import Anchors, Detect, required_anchors
from utils.types import Prediction

if TYPE_CHECKING:
    from models.spec import ModelSpec

SPREAD = 0.02  # standard deviation with which implicit knowledge begins


class Implicit(nn.Module):
    """One learned number a channel, the same everywhere in every image."""

    def __init__(self, channels: int, mean: float) -> None:
        super().__init__()
        self.implicit = nn.Parameter(mean + SPREAD * torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(B, C, H, W) -> the same, in its own format (under autocast the number would make it float32)."""
        return join(x, self.implicit.to(x.dtype))


class IDetect(Detect):
    """`Detect` with a number added to each channel that comes in and one multiplied with each that goes out.

    `fuse()` folds both into the convolutions, after which it is a `Detect`.

    Args:
        auxiliary: channels of the maps of further levels, of the same strides, which learn along: in training alone
            they are put out as `Prediction.aux`. `fuse()` drops them.
    """

    def __init__(
        self,
        num_classes: int,
        anchors: Anchors,
        channels: Sequence[int],
        strides: Sequence[int],
        auxiliary: Sequence[int] = (),
    ) -> None:
        super().__init__(num_classes, anchors, channels, strides)
        if auxiliary:
            self.m2 = self._convolutions(auxiliary, strides)
        self.ia = nn.ModuleList(Implicit(level_channels, 0.0) for level_channels in channels)
        self.im = nn.ModuleList(Implicit(convolution.out_channels, 1.0) for convolution in self.m)

    @property
    def learns_along(self) -> bool:
        """Whether there are auxiliary levels."""
        return hasattr(self, "m2")

    def forward(self, maps: Sequence[Tensor]) -> Prediction:
        """One map a level, finest first, then in training one an auxiliary level."""
        lead, auxiliary = maps[: self.num_levels], maps[self.num_levels :]
        levels = super().forward(lead).levels
        if not (self.training and self.learns_along):
            return Prediction(levels)
        return Prediction(
            levels, tuple(self._arranged(convolution(x)) for convolution, x in zip(self.m2, auxiliary, strict=True))
        )

    def level(self, index: int, features: Tensor) -> Tensor:
        if not hasattr(self, "ia"):
            return super().level(index, features)
        x = self.m[index](self.ia[index](features, torch.add))
        return self._arranged(self.im[index](x, torch.mul))

    @torch.no_grad()
    def fuse(self) -> None:
        """Does nothing the second time."""
        if hasattr(self, "m2"):
            del self.m2
        if not hasattr(self, "ia"):
            return
        for convolution, added, factor in zip(self.m, self.ia, self.im, strict=True):
            convolution.weight, convolution.bias = map(
                nn.Parameter,
                folded(convolution.weight, convolution.bias, added.implicit, factor.implicit),
            )
        del self.ia, self.im


class IAuxDetect(IDetect):
    """`IDetect` whose row names the auxiliary maps behind the others."""

    @classmethod
    def from_spec(
        cls, spec: LayerSpec, channels: Sequence[int], strides: Sequence[int], num_classes: int, model: ModelSpec
    ) -> Detect:
        anchors = required_anchors(spec, model)
        levels = len(channels) // 2
        if list(strides[:levels]) != list(strides[levels:]):
            raise ValueError(f"the second half of its levels has the strides of the first; got {list(strides)}")
        return cls(num_classes, anchors, channels[:levels], strides[:levels], channels[levels:])


def folded(weight: Tensor, bias: Tensor, added: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 1x1 convolution that takes `added` and `factor`, (1, C, 1, 1) each, upon itself.

    Raises:
        ValueError: they are not those of one convolution, and could become far larger by being spread out.
    """
    c_out, c_in = weight.shape[:2] if weight.ndim == 4 else (0, 0)
    wanted = ((c_out, c_in, 1, 1), (c_out,), (1, c_in, 1, 1), (1, c_out, 1, 1))
    found = tuple(tuple(value.shape) for value in (weight, bias, added, factor))
    if found != wanted:
        raise ValueError(f"implicit knowledge of shapes {found}; expected {wanted}")
    bias = bias + weight.flatten(1) @ added.flatten()
    return weight * factor.view(-1, 1, 1, 1), bias * factor.flatten()
