"""What every feature loss is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

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


def rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C).

    Maps lie in memory this way (channels_last), so nothing is copied, and the gradient lies so too; with it in the
    other order the backward pass of a BatchNorm takes ten times as long (CPU).
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2)
