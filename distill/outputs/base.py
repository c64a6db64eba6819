"""What every output loss is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from distill.levels import by_stride
from utils.errors import UserError

if TYPE_CHECKING:
    from distill.classes import ClassMap
    from losses.anchor import Gains

ANCHOR_TOLERANCE = 0.01  # relative: checkpoints in half precision round their anchors


class OutputLoss(nn.Module):
    """Compares two predictions: `loss(student, taught, batch) -> scalar`; see the shelf's docstring for the contract.

    Levels are matched by stride; those that only one side has are left out.

    Raises:
        UserError: the heads lack what the loss needs, or have no stride in common.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # of "objectness", "anchors"

    def __init__(self, student_head: nn.Module, teacher_head: nn.Module, class_map: ClassMap, gains: Gains) -> None:
        super().__init__()
        self.class_map = class_map
        self.gains = gains
        strides = head_strides(student_head), head_strides(teacher_head)
        self.level_pairs = by_stride(*strides)  # (student level, teacher level)
        if "objectness" in self.needs:
            self._require_objectness(student_head, teacher_head)
        if "anchors" in self.needs:
            self._require_same_anchors(student_head, teacher_head, strides[0])

    def _require_objectness(self, student_head: nn.Module, teacher_head: nn.Module) -> None:
        for who, head in (("student", student_head), ("teacher", teacher_head)):
            if not hasattr(head, "anchors"):  # of our heads, those with anchors are those with objectness
                raise UserError(
                    f"{type(self).__name__} needs objectness, which the {who}'s head ({type(head).__name__}) does not "
                    "have; choose another output loss, or use features only (outputs: {})"
                )

    def _require_same_anchors(self, student_head: Any, teacher_head: Any, strides: list[int]) -> None:
        for level, other in self.level_pairs:
            own, taught = student_head.anchors_px[level].float().cpu(), teacher_head.anchors_px[other].float().cpu()
            if own.shape != taught.shape or not torch.allclose(own, taught, rtol=ANCHOR_TOLERANCE):
                raise UserError(
                    f"{type(self).__name__} compares anchor by anchor, but anchors differ at stride {strides[level]}: "
                    f"student {_sizes(own)}, teacher {_sizes(taught)}; use features only (outputs: {{}}) "
                    "or give both the same anchors (anchors in the hyp file, --noautoanchor)"
                )


def head_strides(head: Any) -> list[int]:
    """Strides of a head's levels, in pixels."""
    return [round(stride) for stride in head.strides.tolist()]


def _sizes(anchors: torch.Tensor) -> str:
    return " ".join(f"{width:.4g},{height:.4g}" for width, height in anchors.tolist())
