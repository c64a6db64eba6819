"""Detection heads: the last row of a model file.

A head is built by `from_spec(spec, channels, strides, num_classes, anchors)` and knows `num_classes`, `num_levels`
and `strides`. It takes one map a level, puts out a `Prediction` of raw levels in training and evaluation alike, and
`decode(levels)` turns these into (B, N, 5 + C) rows of x, y, w, h (centre, pixels), objectness, class scores. A head
that `learns_along` takes further maps behind those and puts out auxiliary levels, in training alone.
"""

from __future__ import annotations

from typing import Any

from models.heads.anchor import Detect
from models.heads.bins import IBin
from models.heads.implicit import IAuxDetect, IDetect

HEADS: dict[str, Any] = {
    "Detect": Detect,
    "IDetect": IDetect,
    "IAuxDetect": IAuxDetect,
    "IBin": IBin,
}
# known by name and not built
REFUSED = {"IKeypoint": "it finds keypoints, and this repository trains detectors of boxes"}
