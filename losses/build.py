"""Which detection loss a model is trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from losses import LOSSES

if TYPE_CHECKING:
    from losses.anchor import AnchorHead, AnchorLoss
    from utils.hyp import Hyp


def build_criterion(head: AnchorHead, hyp: Hyp, image_size: tuple[int, int]) -> AnchorLoss:
    """The recipe's loss for this head, on the CPU; `image_size`: height and width of training, pixels."""
    return LOSSES["ota" if hyp.loss_ota else "anchor"](head, hyp, image_size)
