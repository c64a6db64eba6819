"""Detection heads: the last row of a model file.

A head is built by `from_spec(spec, channels, strides, num_classes, model)` and knows `num_classes`, `num_levels` and
`strides`. It takes one map a level, puts out a `Prediction` of raw levels in training and evaluation alike, and
`decode(levels)` turns these into (B, N, 5 + C) rows of x, y, w, h (centre, pixels), objectness, class scores;
`decode_confident(levels, conf)` into those rows alone that can be detections. A head that `learns_along` puts out
auxiliary levels too, in training alone, perhaps of further maps behind those.

One whose evaluation is `nms_free` puts out one box an object; `use(branch)` chooses among the branches of heads that
have two, and `dense(prediction)` are the levels in which many cells answer for an object, whatever the head.
"""

from __future__ import annotations

from typing import Any

from models.heads.anchor import Detect
from models.heads.anchor_free import AnchorFreeDetect, V10Detect
from models.heads.bins import IBin
from models.heads.implicit import IAuxDetect, IDetect

HEADS: dict[str, Any] = {
    "Detect": Detect,
    "IDetect": IDetect,
    "IAuxDetect": IAuxDetect,
    "IBin": IBin,
}
# of models whose file has no anchors: there, too, the head is called `Detect`
ANCHOR_FREE: dict[str, Any] = {
    "Detect": AnchorFreeDetect,
    "v10Detect": V10Detect,
}
# known by name and not built, with what they find instead of boxes
REFUSED = {
    "IKeypoint": "keypoints",
    "Pose": "keypoints",
    "Pose26": "keypoints",
    "Segment": "masks",
    "Segment26": "masks",
    "OBB": "rotated boxes",
    "OBB26": "rotated boxes",
    "Classify": "the class of a whole image",
}
