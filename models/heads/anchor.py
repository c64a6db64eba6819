"""Heads with anchors: one 1×1 convolution a level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from models.blocks.base import LayerSpec
from utils.boxes import cell_points
from utils.types import DecodedRows, Prediction

if TYPE_CHECKING:
    from models.spec import ModelSpec

Anchors = int | Sequence[Sequence[float]]

# How near to 0 and 1 a sigmoid is asked to come when a box is put into logits: they then stay within ±9.2, the size
# that trained heads reach. Nearer, float32 has few digits left of 1 - x, and squared differences of logits would see
# nothing but the boxes at the edge. It costs 0.0002 strides of a centre.
EDGE = 1e-4


class Detect(nn.Module):
    """Puts out (B, A, H, W, 5 + C) a level: x, y, w, h, objectness, classes, all before the sigmoid.

    Args:
        num_classes: C.
        anchors: per level w, h, w, h ... in pixels, in the order of the levels or coarsest first (then it is
            turned round); or how many a level, to be found from data later (`provisional`).
        channels: of each level's map.
        strides: of each level, pixels.
    """

    hidden_outputs: ClassVar[int] = 0  # channels an anchor that a level has beyond 5 + C

    strides: Tensor  # (L,) pixels
    anchors: Tensor  # (L, A, 2) width, height in units of the stride, as in the published checkpoints

    def __init__(self, num_classes: int, anchors: Anchors, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_levels = len(channels)
        self.provisional = isinstance(anchors, int)  # True: stand-ins, waiting for anchors fitted to the data
        rows = _stand_in_anchors(anchors, strides) if isinstance(anchors, int) else anchors
        sizes = _in_stride_order(_checked(rows, self.num_levels), strides)
        self.num_anchors = len(sizes[0])

        self.register_buffer("strides", torch.tensor(strides, dtype=torch.float32), persistent=False)
        scaled = [
            [[side / stride for side in pair] for pair in level] for level, stride in zip(sizes, strides, strict=True)
        ]
        self.register_buffer("anchors", torch.tensor(scaled, dtype=torch.float32))
        self.m = self._convolutions(channels, strides)

    @classmethod
    def from_spec(
        cls, spec: LayerSpec, channels: Sequence[int], strides: Sequence[int], num_classes: int, model: ModelSpec
    ) -> Detect:
        """Of the row `[levels, 1, Detect, [nc, anchors]]`, whose arguments are these words."""
        return cls(num_classes, required_anchors(spec, model), channels, strides)

    def forward(self, maps: Sequence[Tensor]) -> Prediction:
        """One map a level, finest first."""
        return Prediction(tuple(self.level(i, x) for i, x in enumerate(maps)))

    def level(self, index: int, features: Tensor) -> Tensor:
        """A level's map (B, channels, H, W) -> (B, A, H, W, 5 + C)."""
        return self._arranged(self.m[index](features))

    def _arranged(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.num_anchors, -1)).permute(0, 1, 3, 4, 2).contiguous()

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Raw levels -> (B, N, 5 + C) float32: x, y, w, h (centre, pixels), objectness, class scores in [0, 1].

        Rows run over levels, then anchors, rows, columns.
        """
        decoded = []
        for index, level in enumerate(levels):
            scores = level[..., 4:].float().sigmoid()
            decoded.append(torch.cat((self.decode_boxes(index, level), scores), dim=-1).flatten(1, 3))
        return torch.cat(decoded, dim=1)

    def decode_confident(self, levels: Sequence[Tensor], conf: float) -> DecodedRows:
        """The rows of `decode` whose objectness is above `conf` or not a number; no others are computed."""
        images, found = [], []
        for index, level in enumerate(levels):
            where = (~(level[..., 4].float().sigmoid() <= conf)).nonzero(as_tuple=True)
            image, anchor, row, column = where
            x = level[where].float()
            cells = torch.stack((column, row), dim=-1)
            boxes = self._boxes(x, cells, self.anchors[index][anchor], self.strides[index])
            found.append(torch.cat((boxes, x[:, 4:].sigmoid()), dim=1))
            images.append(image)
        return DecodedRows(torch.cat(found), torch.cat(images), len(levels[0]))

    def decode_boxes(self, level_index: int, level: Tensor) -> Tensor:
        """A raw level (B, A, H, W, 4 or more) -> boxes (B, A, H, W, 4) x, y, w, h (centre, pixels), float32."""
        anchors = self.anchors[level_index][:, None, None]
        return self._boxes(level, _cells(level), anchors, self.strides[level_index])

    def _boxes(self, logits: Tensor, cells: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
        """Logits (..., 4 or more), columns and rows (..., 2), anchors in strides (..., 2) -> boxes (..., 4)."""
        x = logits[..., :4].float().sigmoid()
        centres = (2 * x[..., :2] - 0.5 + cells) * stride
        sides = (2 * x[..., 2:]) ** 2 * (anchors.float() * stride)
        return torch.cat((centres, sides), dim=-1)

    def encode_boxes(self, level_index: int, boxes: Tensor) -> Tensor:
        """Boxes (B, A, H, W, 4) x, y, w, h (centre, pixels) -> the logits of this head at its cells and anchors.

        The inverse of `decode_boxes`, float32. A centre out of a cell's reach (from half a cell before it to half a
        cell behind it) and sides beyond 4 anchors become the nearest that can be said.
        """
        cells = _cells(boxes)
        stride = self.strides[level_index]
        centres = (boxes[..., :2].float() / stride - cells + 0.5) / 2
        anchors = (self.anchors[level_index].float() * stride)[:, None, None]
        sides = (boxes[..., 2:4].float().clamp(min=0) / anchors).sqrt() / 2
        return torch.cat((centres, sides), dim=-1).logit(EDGE)

    @property
    def learns_along(self) -> bool:
        """Whether there are auxiliary levels."""
        return False

    @property
    def nms_free(self) -> bool:
        """Whether what evaluation puts out has one box an object."""
        return False

    def use(self, branch: str) -> None:
        """There is one branch, and no choice."""

    def dense(self, prediction: Prediction) -> tuple[Tensor, ...]:
        """The levels of a prediction of this head in which many cells answer for an object."""
        return prediction.levels

    @property
    def anchors_px(self) -> Tensor:
        """(L, A, 2) w, h in pixels."""
        return self.anchors * self.strides[:, None, None]

    @torch.no_grad()
    def set_anchors_px(self, anchors: Tensor) -> None:
        """Overwrites the anchors in place; (L, A, 2) pixels, in the order of the levels."""
        if anchors.shape != self.anchors.shape:
            raise ValueError(f"anchors of shape {tuple(anchors.shape)} do not fit {tuple(self.anchors.shape)}")
        strides = self.strides[:, None, None]
        self.anchors.copy_(anchors.to(device=strides.device, dtype=strides.dtype) / strides)
        self.provisional = False

    @torch.no_grad()
    def _convolutions(self, channels: Sequence[int], strides: Sequence[int]) -> nn.ModuleList:
        """Starts near the usual share of objects: 8 an image of 640 pixels, classes nearly equally likely."""
        outputs = self.num_anchors * (5 + self.num_classes + self.hidden_outputs)
        convolutions = nn.ModuleList(nn.Conv2d(level_channels, outputs, 1) for level_channels in channels)
        for convolution, stride in zip(convolutions, strides, strict=True):
            objectness = convolution.bias.view(self.num_anchors, -1)[:, -1 - self.num_classes]
            classes = convolution.bias.view(self.num_anchors, -1)[:, -self.num_classes :]
            objectness += math.log(8 / (640 / stride) ** 2)
            classes += math.log(0.6 / (self.num_classes - 0.99999))
        return convolutions


def required_anchors(spec: LayerSpec, model: ModelSpec) -> Anchors:
    """The model's anchors. Raises ValueError if it has none, or the head's row has not the arguments [nc, anchors]."""
    if model.anchors is None:
        raise ValueError(f"{spec.module} needs anchors, and the model file has none; known without: Detect, v10Detect")
    if spec.args != ("nc", "anchors"):
        raise ValueError(
            f"{spec.module}'s arguments are [nc, anchors], their values stand above; got {list(spec.args)}"
        )
    return model.anchors


def _cells(level: Tensor) -> Tensor:
    """(H, W, 2): column and row of each cell of a level (B, A, H, W, ...), float32."""
    return cell_points(*level.shape[2:4], device=level.device) - 0.5


def _checked(anchors: Sequence[Sequence[float]], num_levels: int) -> list[list[tuple[float, float]]]:
    """Rows of w, h, w, h ... as pairs; the same number for each of the levels."""
    if len(anchors) != num_levels:
        raise ValueError(f"{len(anchors)} rows of anchors for {num_levels} levels")
    if len({len(row) for row in anchors}) != 1 or len(anchors[0]) % 2 or not len(anchors[0]):
        raise ValueError("every level needs the same number of anchors, each a width and a height")
    if any(side <= 0 for row in anchors for side in row):
        raise ValueError("anchors have positive widths and heights")
    return [list(zip(row[::2], row[1::2], strict=True)) for row in anchors]


def _in_stride_order(sizes: list[list[tuple[float, float]]], strides: Sequence[int]) -> list[list[tuple[float, float]]]:
    """Turns the levels round when anchors grow the other way than strides."""
    areas = [sum(width * height for width, height in level) for level in sizes]
    opposite = (areas[-1] - areas[0]) * (strides[-1] - strides[0]) < 0
    return sizes[::-1] if opposite else sizes


def _stand_in_anchors(number: int, strides: Sequence[int]) -> list[list[float]]:
    """Squares of 1.5 to 6 strides, so that a model of unknown anchors is a working one."""
    if number < 1:
        raise ValueError(f"a level needs at least one anchor; got {number}")
    sides = [1.5 * 4 ** (k / max(1, number - 1)) for k in range(number)]
    return [[round(side * stride, 2) for side in sides for _ in range(2)] for stride in strides]
