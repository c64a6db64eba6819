"""What batches of an evaluation come to, and what they add up to, whoever ran them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.matching import Metric, match
from utils.metrics import ConfusionMatrix, Evaluation, evaluate

if TYPE_CHECKING:
    from engine.evaluator import Detections

STAGES = 3  # as in Report.speed_ms


@dataclass(frozen=True)
class BatchResult:
    """What one batch came to."""

    images: int
    stats: list[tuple[Any, ...]]  # of each labelled image, see `evaluate`
    terms: dict[str, float]  # of the criterion, means over the images
    seconds: tuple[float, ...]  # a stage
    not_finite: int  # images
    detections: tuple[Detections, ...]  # where they are kept


class Tally:
    """Collects what the scores are made of, batch by batch. Plain data, which ranks send to each other."""

    def __init__(self, num_classes: int, metric: Metric, ranks: int = 1) -> None:
        self.metric = metric
        self.ranks = ranks  # that took turns with the batches
        self.confusion = ConfusionMatrix(num_classes)
        self.batches: list[BatchResult] = []

    def add(
        self,
        found: Sequence[Detections],
        labelled: Sequence[bool],
        terms: Mapping[str, Tensor],
        seconds: Sequence[float],
        not_finite: int,
        keep: bool,
    ) -> None:
        """One batch.

        Args:
            labelled: which of its images count.
            not_finite: images with outputs that are not.
            keep: the detections, too.
        """
        counted = list(compress(found, labelled))
        detections, labels = [one.found for one in counted], [one.labels for one in counted]
        stats = []
        for own, there, right in zip(detections, labels, match(detections, labels, metric=self.metric), strict=True):
            stats.append((right, own[:, 4], own[:, 5], there[:, 0]))
            self.confusion.update(own, there)
        values = {name: float(value) for name, value in terms.items()}
        kept = tuple(found) if keep else ()
        self.batches.append(BatchResult(len(found), stats, values, tuple(seconds), not_finite, kept))

    @property
    def images(self) -> int:
        return sum(batch.images for batch in self.batches)

    @property
    def not_finite(self) -> int:
        """Images."""
        return sum(batch.not_finite for batch in self.batches)

    def evaluation(self, names: Sequence[str]) -> Evaluation:
        return evaluate([one for batch in self.batches for one in batch.stats], names, self.metric)

    def losses(self) -> dict[str, float]:
        """Mean of each term over the images."""
        sums: dict[str, float] = {}
        for batch in self.batches:
            for name, value in batch.terms.items():
                sums[name] = sums.get(name, 0.0) + value * batch.images
        return {name: total / self.images for name, total in sums.items()}

    def detections(self) -> tuple[Detections, ...]:
        return tuple(one for batch in self.batches for one in batch.detections)

    def speed_ms(self) -> tuple[float, float, float]:
        """Of one image, a stage: the median over batches, which a disturbance does not move.

        The first batch of each rank is left out where others follow: it warms the device up.
        """
        counted = self.batches[self.ranks :] or self.batches
        if not counted:
            return 0.0, 0.0, 0.0
        pre, inference, suppression = (
            1000 * statistics.median(batch.seconds[stage] / batch.images for batch in counted)
            for stage in range(STAGES)
        )
        return pre, inference, suppression


def joined(shares: Sequence[Tally]) -> Tally:
    """What one rank would have collected: to the last bit, since sums and equal confidences are in the same order.

    Args:
        shares: of ranks that took turns with the batches, rank 0 first.
    """
    first = shares[0]
    whole = Tally(first.confusion.num_classes, first.metric, len(shares))
    for share in shares:
        whole.confusion.matrix += share.confusion.matrix
    turns = zip_longest(*(share.batches for share in shares))
    whole.batches = [batch for turn in turns for batch in turn if batch is not None]
    return whole


class Clock:
    """Time of each stage of a batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[float] = []  # seconds
        self._since = 0.0

    def start(self) -> None:
        self.laps = []
        self._since = self._now()

    def lap(self) -> None:
        now = self._now()
        self.laps.append(now - self._since)
        self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
