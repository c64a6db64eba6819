"""What the losses of heads with anchors have in common."""

from __future__ import annotations

import pytest
import torch

from losses import LOSSES
from utils.hyp import Hyp
from utils.types import Prediction


@pytest.mark.parametrize("kind", ["anchor", "ota"])
def test_the_loss_falls_to_its_floor_when_trained(kind, head_with, levels_of, batch_of, some_targets):
    criterion = LOSSES[kind](head_with(3), Hyp(loss_ota=int(kind == "ota")), (64, 96))
    levels, targets = levels_of(), some_targets(6)
    optimizer = torch.optim.Adam(levels, lr=0.2)
    values = []
    for _ in range(80):
        optimizer.zero_grad()
        value = sum(criterion(Prediction(levels), batch_of(targets)).values())
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.15 * values[0]
