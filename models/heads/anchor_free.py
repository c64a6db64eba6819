"""Heads without anchors: a box and the classes of each cell, found by towers of their own.

Sources: Tian et al., "FCOS", ICCV 2019, arXiv:1904.01355 (distances from a point); Li et al., "Generalized Focal Loss",
NeurIPS 2020, arXiv:2006.04388 (distances as distributions, DFL); Wang et al., "YOLOv10", NeurIPS 2024, arXiv:2405.14458
(one-to-one beside one-to-many).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from models.blocks.base import LayerSpec
from models.blocks.conv import Conv, DWConv
from utils.boxes import around, cell_points, expected_distances, xyxy_to_xywh
from utils.types import DecodedRows, Prediction

if TYPE_CHECKING:
    from models.spec import ModelSpec

Branch = Literal["one_to_many", "one_to_one"]

LIGHT_SINCE = {"C2fCIB", "C3k2", "A2C2f"}  # a model with one of these blocks (v10, 11, 12, 26) has light class towers
LEAST_BOX_WIDTH = 16
WIDEST_CLASSES = 100  # class towers need no more channels than that, however many classes


class AnchorFreeDetect(nn.Module):
    """Puts out (B, 4 * reg_max + C, H, W) a level: the distances to left, top, right, bottom, then class logits.

    A distance is in strides, from the cell's centre: the expectation over `reg_max` bins, or with `reg_max` 1 the
    number itself. There is no objectness: class scores say it all.

    With two branches, one-to-many and one-to-one, training puts out both: one-to-one as `levels`, one-to-many as `aux`.
    Evaluation puts out one, `use` says which. The one-to-one branch gives one box an object and needs no NMS; it does
    not move the layers before it (it reads detached maps).

    Args:
        num_classes: C.
        channels: of each level's map.
        strides: of each level, pixels.
        reg_max: bins a distance.
        two_branches: a one-to-one branch beside the one-to-many.
        light: class towers of depth-wise and 1x1 convolutions.
    """

    strides: Tensor  # (L,) pixels

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        strides: Sequence[int],
        reg_max: int = 16,
        two_branches: bool = False,
        light: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_levels = len(channels)
        self.reg_max = reg_max
        self.two_branches = two_branches
        self.branch: Branch = "one_to_one" if two_branches else "one_to_many"
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.float32), persistent=False)

        # both as wide at every level as the finest asks for
        boxes = max(LEAST_BOX_WIDTH, channels[0] // 4, 4 * reg_max)
        classes = max(channels[0], min(num_classes, WIDEST_CLASSES))
        towers = _light_tower if light else _tower
        self.cv2 = nn.ModuleList(_tower(c_in, boxes, 4 * reg_max) for c_in in channels)
        self.cv3 = nn.ModuleList(towers(c_in, classes, num_classes) for c_in in channels)
        if reg_max > 1:
            self.dfl = _Bins(reg_max)
        if two_branches:
            self.one2one_cv2 = nn.ModuleList(_tower(c_in, boxes, 4 * reg_max) for c_in in channels)
            self.one2one_cv3 = nn.ModuleList(towers(c_in, classes, num_classes) for c_in in channels)
        for box_towers, class_towers in self._branches():
            self._start(box_towers, class_towers, strides)

    @classmethod
    def from_spec(
        cls, spec: LayerSpec, channels: Sequence[int], strides: Sequence[int], num_classes: int, model: ModelSpec
    ) -> AnchorFreeDetect:
        """Of the row `[levels, 1, Detect, [nc]]`; `model` says how many bins and branches there are."""
        _require_words(spec)
        return cls(num_classes, channels, strides, model.reg_max, model.two_branches, _is_light(model))

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, maps: Sequence[Tensor]) -> Prediction:
        """One map a level, finest first."""
        if not (self.training and self.learns_along):
            return Prediction(self.branch_levels(self.branch, maps))
        return Prediction(
            self.branch_levels("one_to_one", [x.detach() for x in maps]), self.branch_levels("one_to_many", maps)
        )

    def branch_levels(self, branch: Branch, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The raw levels of a branch."""
        towers = zip(maps, *self._towers(branch), strict=True)
        return tuple(torch.cat((box(x), classes(x)), dim=1) for x, box, classes in towers)

    def towers(self, level_index: int) -> tuple[nn.Sequential, nn.Sequential]:
        """The box and the class tower of a level, three stages each, of the one-to-many branch if it is there."""
        boxes, classes = self._towers("one_to_many" if hasattr(self, "cv2") else "one_to_one")
        return boxes[level_index], classes[level_index]

    # -- branches ------------------------------------------------------------------------------------------------------

    @property
    def learns_along(self) -> bool:
        """Whether training puts out auxiliary levels."""
        return hasattr(self, "cv2") and hasattr(self, "one2one_cv2")

    @property
    def nms_free(self) -> bool:
        """Whether what evaluation puts out has one box an object."""
        return self.branch == "one_to_one"

    def use(self, branch: Branch) -> None:
        """Chooses the branch of evaluation, for `fuse()` the one that stays; heads of one branch have no choice."""
        if branch not in ("one_to_many", "one_to_one"):
            raise ValueError(f"no branch is called {branch!r}; known: one_to_many, one_to_one")
        if self.learns_along:
            self.branch = branch

    def fuse(self) -> None:
        """Drops the branch that is not in use. Does nothing the second time."""
        if not self.learns_along:
            return
        if self.nms_free:
            del self.cv2, self.cv3
        else:
            del self.one2one_cv2, self.one2one_cv3

    def dense(self, prediction: Prediction) -> tuple[Tensor, ...]:
        """The one-to-many levels of a prediction of this head, as far as it has them."""
        return prediction.aux or prediction.levels

    # -- reading levels ------------------------------------------------------------------------------------------------

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Raw levels -> (B, N, 5 + C) float32: x, y, w, h (centre, pixels), objectness, class scores in [0, 1].

        Objectness is 1, so that whoever multiplies it with a class score need not know the kind of head. Rows run over
        levels, then rows and columns.
        """
        decoded = []
        for index, level in enumerate(levels):
            boxes = self.decode_boxes(index, level).flatten(1, 3)
            scores = level[:, 4 * self.reg_max :].float().sigmoid().flatten(2).transpose(1, 2)
            decoded.append(torch.cat((boxes, torch.ones_like(boxes[..., :1]), scores), dim=-1))
        return torch.cat(decoded, dim=1)

    def decode_confident(self, levels: Sequence[Tensor], conf: float) -> DecodedRows:
        """The rows of `decode` with a class score above `conf` or not a number; no others are computed."""
        images, found = [], []
        for index, level in enumerate(levels):
            best = level[:, 4 * self.reg_max :].amax(dim=1).float().sigmoid()
            where = (~(best <= conf)).nonzero(as_tuple=True)
            image, row, column = where
            x = level.movedim(1, -1)[where].float()
            bins, classes = x.split((4 * self.reg_max, self.num_classes), dim=1)
            distances = expected_distances(bins.unflatten(1, (4, self.reg_max)))
            boxes = self._boxes(torch.stack((column, row), dim=1) + 0.5, distances, self.strides[index])
            found.append(torch.cat((boxes, torch.ones_like(boxes[:, :1]), classes.sigmoid()), dim=1))
            images.append(image)
        return DecodedRows(torch.cat(found), torch.cat(images), len(levels[0]))

    def decode_boxes(self, level_index: int, level: Tensor) -> Tensor:
        """A raw level -> boxes (B, 1, H, W, 4) x, y, w, h (centre, pixels), float32."""
        distances = self.distances(level).permute(0, 2, 3, 1)[:, None]
        points = cell_points(*level.shape[2:], device=level.device)
        return self._boxes(points, distances, self.strides[level_index])

    def distances(self, level: Tensor) -> Tensor:
        """A raw level -> (B, 4, H, W) left, top, right, bottom from the cell's centre, in strides, float32."""
        bins = level[:, : 4 * self.reg_max].float().unflatten(1, (4, self.reg_max))
        return expected_distances(bins.movedim(2, -1))

    def _boxes(self, points: Tensor, distances: Tensor, stride: Tensor) -> Tensor:
        """Points (..., 2) and distances (..., 4) in strides -> boxes (..., 4) x, y, w, h (centre, pixels)."""
        return xyxy_to_xywh(around(points, distances)) * stride

    # -- making --------------------------------------------------------------------------------------------------------

    def _towers(self, branch: Branch) -> tuple[nn.ModuleList, nn.ModuleList]:
        if self.two_branches and branch == "one_to_one":
            return self.one2one_cv2, self.one2one_cv3
        return self.cv2, self.cv3

    def _branches(self) -> list[tuple[nn.ModuleList, nn.ModuleList]]:
        return [self._towers(branch) for branch in ("one_to_many", "one_to_one")[: 1 + self.two_branches]]

    @torch.no_grad()
    def _start(self, box_towers: nn.ModuleList, class_towers: nn.ModuleList, strides: Sequence[int]) -> None:
        """Near the usual share of objects: 5 an image of 640 pixels; boxes of some width."""
        for boxes, classes, stride in zip(box_towers, class_towers, strides, strict=True):
            boxes[-1].bias.fill_(1.0)
            classes[-1].bias.fill_(math.log(5 / self.num_classes / (640 / stride) ** 2))


class V10Detect(AnchorFreeDetect):
    """The head of YOLOv10: two branches and light class towers, whatever its model's blocks."""

    @classmethod
    def from_spec(
        cls, spec: LayerSpec, channels: Sequence[int], strides: Sequence[int], num_classes: int, model: ModelSpec
    ) -> AnchorFreeDetect:
        _require_words(spec)
        return cls(num_classes, channels, strides, model.reg_max, two_branches=True, light=True)


class _Bins(nn.Module):
    """What published checkpoints keep of DFL: the distances of its bins, as the weight of a fixed convolution."""

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reg_max, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.copy_(torch.arange(reg_max).view(1, reg_max, 1, 1))


def _tower(c_in: int, width: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(Conv(c_in, width, 3), Conv(width, width, 3), nn.Conv2d(width, c_out, 1))


def _light_tower(c_in: int, width: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(DWConv(c_in, c_in, 3), Conv(c_in, width, 1)),
        nn.Sequential(DWConv(width, width, 3), Conv(width, width, 1)),
        nn.Conv2d(width, c_out, 1),
    )


def _is_light(model: ModelSpec) -> bool:
    return any(row[2] in LIGHT_SINCE for row in (*model.backbone, *model.head))


def _require_words(spec: LayerSpec) -> None:
    """Raises ValueError unless the head's row has the argument [nc] alone."""
    if "anchors" in spec.args:
        raise ValueError(f"{spec.module} names anchors, and the model file has no key 'anchors'")
    if spec.args != ("nc",):
        raise ValueError(f"{spec.module}'s argument is [nc], its value stands above; got {list(spec.args)}")
