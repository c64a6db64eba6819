"""A frozen model that shows how it is done."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.types import Prediction

if TYPE_CHECKING:
    from models.yolo import Model


class Teacher(nn.Module):
    """A frozen copy of a model: it never learns, never leaves `eval()`, and its batch statistics never move.

    Whoever holds it keeps it outside its own module tree (in a tuple), so that it is neither optimised, nor
    synchronised, nor saved.

    Args:
        model: copied; the caller's stays as it is.
        half: the format to compute in, None for the model's own. The copy's weights are converted once, so that no
            step pays for the cast.
    """

    def __init__(self, model: Model, half: torch.dtype | None = None) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model).eval().fuse()
        if half is not None:
            # anchors and strides stay exact: in half precision boxes of a 1280 px image would be off by pixels
            geometry = {name: buffer.clone() for name, buffer in self.model.head.named_buffers(recurse=False)}
            self.model.to(half)
            for name, buffer in geometry.items():
                setattr(self.model.head, name, buffer)
        self.model.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.dtype = next(self.model.parameters()).dtype
        super().train(False)

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.model.head
        return head

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()  # not inference_mode: losses save these tensors for their backward pass
    def forward(
        self, images: Tensor, layers: Sequence[int] = (), want_prediction: bool = True
    ) -> tuple[Prediction | None, list[Tensor]]:
        """The raw prediction and the outputs of `layers`, in the asked order, in the teacher's own precision.

        Args:
            images: (B, 3, H, W) in [0, 1], the very tensor that the student sees.
            want_prediction: without it the prediction is None, and nothing beyond the last wanted layer is run.
        """
        with torch.autocast(images.device.type, enabled=False):  # the student's autocast is not ours
            images = images.to(self.dtype)
            if not want_prediction:
                return None, list(self.model.features(images, layers)) if layers else []
            if not layers:  # a bare Prediction then; unpacking it would tear its two fields apart
                return self.model(images), []
            prediction, maps = self.model(images, extra_features=layers)
            return prediction, list(maps)
