"""What the detection loss weighs its terms by, for losses that are means over the cells of all levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from distill.outputs.view import has_anchors

if TYPE_CHECKING:
    from losses import anchor, tal


class Gains(NamedTuple):
    """Factors of an output loss's parts, by which they count as much as their counterparts in the detection loss.

    They stand before means over classes and means over cells weighted by belief. 0 where the student has no such term.
    """

    box: float
    obj: float
    cls: float
    dfl: float = 0.0


def output_gains(head: Any, gains: anchor.Gains | tal.Gains) -> Gains:
    """Of a student with this head and a detection loss with these gains.

    - With anchors it adds up means over the matches of each level, with gains that are rescaled for their number. So a
      mean over all levels together counts that number times.
    - Without anchors it adds up the classes, and divides by the sum of what they are to score. So a mean over classes
      counts their number times. There is no objectness.
    """
    if has_anchors(head):
        return Gains(*(head.num_levels * getattr(gains, name) for name in ("box", "obj", "cls")))
    return Gains(gains.box, 0.0, head.num_classes * gains.cls, getattr(gains, "dfl", 0.0))
