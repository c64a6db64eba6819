"""Weights that find themselves: a term that falls more slowly than the detection loss counts more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from utils.types import Progress

log = logging.getLogger(__name__)


class DynamicWeightAverage(nn.Module):
    """Weights of terms from how fast they fell over the last two epochs, beside the detection loss, which keeps 1.

    With r = mean over the last epoch / mean over the epoch before, weights are exp(r / T), divided by that of the
    detection loss, and follow with a momentum. In the first two epochs, and for a term that was silent in one of
    the last two, they stay as they are, at first 1.

    Means and weights are buffers, so a resumed run goes on as if never stopped; across ranks rank 0's count.

    Source: Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv:1803.10704.

    Args:
        names: of the terms, without the detection loss.
        temperature: T; the higher, the more equal.
        momentum: share of the old weight that stays, each epoch.
    """

    sums: Tensor
    steps: Tensor
    means: Tensor
    weights: Tensor
    epoch: Tensor

    def __init__(self, names: Sequence[str], temperature: float = 5.0, momentum: float = 0.9) -> None:
        super().__init__()
        self.names = tuple(names)
        self.temperature = temperature
        self.momentum = momentum
        count = len(self.names) + 1  # the detection loss is the first
        self.register_buffer("sums", torch.zeros(count))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("means", torch.zeros(count))
        self.register_buffer("weights", torch.ones(len(self.names)))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    def at(self, progress: Progress) -> None:
        """At the first step of an epoch, the weights for it; asked again, nothing changes."""
        if progress.step or progress.epoch == self.epoch.item():
            return
        latest = self.sums / self.steps.clamp(min=1)
        known = (latest > 0) & (self.means > 0)
        rates = torch.where(known, latest / self.means.clamp(min=1e-12), 1.0)
        wanted = ((rates[1:] - rates[0]) / self.temperature).exp()
        heard = known[1:] & known[0]
        self.weights.copy_(torch.where(heard, torch.lerp(wanted, self.weights, self.momentum), self.weights))
        self.means.copy_(latest)
        self.sums.zero_()
        self.steps.zero_()
        self.epoch.fill_(progress.epoch)
        if heard.any():
            shown = zip(self.names, self.weights.tolist(), strict=True)
            log.info("balance: %s", ", ".join(f"{name} {weight:.3f}" for name, weight in shown))

    @torch.no_grad()
    def observe(self, detection: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> None:
        """Counts one step: the detection terms, and the others before they are balanced; absent ones are silent."""
        zero = self.sums.new_zeros(())
        total = torch.stack([value.float() for value in detection.values()]).sum()
        self.sums += torch.stack([total, *(terms.get(name, zero) for name in self.names)])
        self.steps += 1

    def weight(self, name: str) -> Tensor:
        """Of a term."""
        return self.weights[self.names.index(name)]
