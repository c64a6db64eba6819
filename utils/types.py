"""The nouns that travel between rooms.

Shape letters, everywhere in this repository:

    B images of a batch    N boxes or targets    A anchors a cell    C channels, or classes where said
    H, W rows and columns of a map               L levels (strides) of a head

Boxes are `xyxy` or `xywh` (centre), in pixels or in [0, 1]; a docstring says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Frame(NamedTuple):
    """How an original image lies in the tensor: original pixel * scale + offset = tensor pixel."""

    height: int  # of the original image, pixels
    width: int
    scale_y: float
    scale_x: float
    offset_y: float  # padding above and left, pixels of the tensor
    offset_x: float


class Batch(NamedTuple):
    """What a loader yields and a task eats."""

    images: Tensor  # (B, 3, H, W) RGB: uint8 from the loader, float in [0, 1] after `to`
    targets: Tensor  # (N, 6) float: image index in the batch, class, x, y, w, h (centre, in [0, 1] of H, W)
    labelled: Tensor  # (B,) bool: False where an image has no ground truth at all (not: has no objects)
    paths: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()  # one an image in evaluation, empty in training

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> Batch:
        """The same batch on a device, images as float in [0, 1]."""
        images = self.images.to(device, non_blocking=True)
        if memory_format is not None:  # while they are small
            images = images.contiguous(memory_format=memory_format)
        if not images.is_floating_point():
            images = images / 255  # in one pass, to float32
        targets, labelled = (t.to(device, non_blocking=True) for t in (self.targets, self.labelled))
        return self._replace(images=images, targets=targets, labelled=labelled)


class Prediction(NamedTuple):
    """Raw maps of a head, before any sigmoid, one a level (stride), finest first.

    Anchor heads: (B, A, H, W, 5 + C), the last axis x, y, w, h, objectness, classes. Heads without anchors:
    (B, 4 * reg_max + C, H, W), the bins of distances to left, top, right, bottom, then classes.
    """

    levels: tuple[Tensor, ...]
    aux: tuple[Tensor, ...] = ()  # auxiliary levels, in training: of a head with two branches the one-to-many


class DecodedRows(NamedTuple):
    """Some of a batch's decoded rows; those of one image stand in the order in which the head decodes."""

    rows: Tensor  # (M, 5 + C) float32: x, y, w, h (centre, pixels), objectness, class scores in [0, 1]
    image: Tensor  # (M,) long: index in the batch
    images: int  # of the batch


class Progress(NamedTuple):
    """Where a run is: step `step` of epoch `epoch`, both counted from 0."""

    epoch: int
    step: int
    epochs: int
    steps_per_epoch: int

    @property
    def iteration(self) -> int:
        """Steps taken since the start of the run."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.iteration / max(1, self.epochs * self.steps_per_epoch)


class FeatureInfo(NamedTuple):
    """What layer `layer` of a model puts out."""

    layer: int
    channels: int  # of the last map, where there are several
    stride: int
    maps: int = 1
