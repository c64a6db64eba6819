"""What every feature loss is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self


class FeatureLoss(nn.Module):
    """Compares two maps: `loss(student, teacher, lesson) -> scalar`; see the shelf's docstring for the contract."""

    adapter: ClassVar[str | None] = "conv_bn"  # what stands before the loss: "conv_bn", "conv" or None
    needs_prediction: ClassVar[bool] = False  # whether `lesson.taught` must be there (the teacher then runs its head)

    @classmethod
    def from_pair(cls, channels: int, stride: int, **options: Any) -> Self:
        """A loss for maps of so many channels (the teacher's, behind an adapter) at this stride.

        Losses with learning parts of their own override it; most do not care what they compare.
        """
        return cls(**options)
