"""What heads decode of their levels where only some rows are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def assert_confident_rows(head: Any, levels: Sequence[Tensor], conf: float, has_objectness: bool) -> None:
    """They are those of all decoded rows whose score is above `conf`, in that order, and not all."""
    decoded, confident = head.decode(levels), head.decode_confident(levels, conf)
    score = decoded[..., 4] if has_objectness else decoded[..., 5:].amax(dim=-1)
    assert 0 < len(confident.rows) < score.numel() and confident.images == len(decoded)
    for image, rows in enumerate(decoded):
        obtained = confident.rows[confident.image == image]
        torch.testing.assert_close(obtained, rows[score[image] > conf])
