"""A frozen model that shows how it is done."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError
from utils.types import Prediction

if TYPE_CHECKING:
    from models.yolo import Model

Shown = tuple[Prediction | None, list[Tensor]]  # raw levels, and the maps of the layers asked for

DISTORTION = 0.05  # by which a teacher may see things wider or higher than the student does


class Teacher(nn.Module):
    """A frozen copy of a model: it never learns, never leaves `eval()`, and its batch statistics never move.

    A guide: (images, layers, want_prediction) -> (prediction, maps), as the model itself puts them out for the images
    that it sees, on the device of the images it was given.

    Whoever holds it keeps it outside its own module tree (in a tuple), so that it is neither optimised, nor
    synchronised, nor saved, nor moved to the student's device.

    Args:
        model: copied; the caller's stays as it is.
        half: the format to compute in, None for the model's own. The copy's weights are converted once, so that no
            step pays for the cast.
        device: where it computes, None for where the model is.
        home: where the images come from and `head` is used, None for `device`.
        image_scale: height and width of the images that it sees, in those it is given (`image_scale`). What it puts out
            is of its own images: grids are larger by this, and boxes are in pixels of these.
    """

    def __init__(
        self,
        model: Model,
        half: torch.dtype | None = None,
        device: torch.device | None = None,
        home: torch.device | None = None,
        image_scale: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model).eval()
        self.model.head.use("one_to_many")  # see `distill.course.Course`; fusing drops the other branch
        self.model.fuse()
        if half is not None:
            # anchors and strides stay exact: in half precision boxes of a 1280 px image would be off by pixels
            geometry = {name: buffer.clone() for name, buffer in self.model.head.named_buffers(recurse=False)}
            self.model.to(half)
            for name, buffer in geometry.items():
                setattr(self.model.head, name, buffer)
        self.requires_grad_(False)
        # The losses ask the head for anchors, strides, decoding and towers where the predictions end up. It is a small
        # part of its model, so it is copied whole.
        self._head_at_home = () if home is None or home == device else (copy.deepcopy(self.model.head).to(home),)
        self.model.to(device).to(memory_format=torch.channels_last)
        self.image_scale = image_scale
        self.stride = max(model.feature_info[layer].stride for layer in model.head_inputs)  # sides are multiples of it
        self.dtype = next(self.model.parameters()).dtype
        super().train(False)

    @property
    def head(self) -> nn.Module:
        """The head, for anchors, strides and decoding, on the device to which predictions are brought."""
        (head,) = self._head_at_home or (self.model.head,)
        return head

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    def networks(self) -> list[nn.Module]:
        """What is run in each step."""
        return [self]

    @torch.no_grad()  # not inference_mode: losses save these tensors for their backward pass
    def forward(self, images: Tensor, layers: Sequence[int] = (), want_prediction: bool = True) -> Shown:
        """The raw prediction and the outputs of `layers`, in the asked order, in the teacher's own precision.

        Args:
            images: (B, 3, H, W) in [0, 1], the very tensor that the student sees.
            want_prediction: without it the prediction is None, and nothing beyond the last wanted layer is run.
        """
        device, home = next(self.model.parameters()).device, images.device
        with torch.autocast(device.type, enabled=False):  # the student's autocast is not ours
            prediction, maps = watch(self.model, self._as_seen(_moved(images, device)), layers, want_prediction)
        if prediction is not None:
            prediction = Prediction(*(tuple(_moved(level, home) for level in levels) for levels in prediction))
        return prediction, [_moved(map_, home) for map_ in maps]

    def _as_seen(self, images: Tensor) -> Tensor:
        """The images in the teacher's size and format."""
        sides: tuple[int, ...] = tuple(images.shape[2:])
        if self.image_scale != (1.0, 1.0):
            sides = tuple(
                max(1, round(side * scale / self.stride)) * self.stride
                for side, scale in zip(sides, self.image_scale, strict=True)
            )
        if sides != tuple(images.shape[2:]):
            shrinks = min(self.image_scale) < 1  # without antialias single pixels would stand for all around them
            images = F.interpolate(images.float(), sides, mode="bilinear", align_corners=False, antialias=shrinks)
        return images.to(self.dtype)


def watch(model: Any, images: Tensor, layers: Sequence[int], want_prediction: bool = True) -> Shown:
    """A model's raw prediction and the outputs of `layers`; without the first, no further than the last of these."""
    if not want_prediction:
        return None, list(model.features(images, layers)) if layers else []
    if not layers:  # a bare Prediction then; unpacking it would tear its two fields apart
        return model(images), []
    prediction, maps = model(images, extra_features=layers)
    return prediction, list(maps)


def image_scale(teacher: tuple[int, int], student: tuple[int, int]) -> tuple[float, float]:
    """Height and width of the teacher's training images in the student's, both given in pixels.

    One factor for every batch, so that rectangular batches and --multi-scale are enlarged alike.

    Raises:
        UserError: things would become wider or higher than they are.
    """
    height, width = (one / other for one, other in zip(teacher, student, strict=True))
    if max(height, width) > (1 + DISTORTION) * min(height, width):
        high, wide = (round(side * min(height, width)) for side in student)
        raise UserError(
            f"--t_imgsz {teacher[0]} {teacher[1]}: the student's images of {student[0]} {student[1]} (height, width) "
            f"would be stretched; the same shape is --t_imgsz {high} {wide}"
        )
    return height, width


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    # a copy to the CPU that nobody waits for may be read before it has arrived
    return tensor.to(device, non_blocking=device.type != "cpu")
