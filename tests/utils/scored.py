"""Labels, detections of them, and which of these are right, in loops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SIZE = 400


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def some_labels(rng: np.random.Generator, count: int) -> Tensor:
    first = rng.uniform(0, SIZE * 0.7, (count, 2))
    last = first + rng.uniform(15, SIZE * 0.3, (count, 2))
    return torch.tensor(np.concatenate((rng.integers(0, 3, (count, 1)), first, last), axis=1), dtype=torch.float32)


def some_detections(rng: np.random.Generator, labels: Tensor, spread: float = 5, wrong: int = 6) -> Tensor:
    """Each label found about once, some twice or not at all or as another class, and some that are nowhere."""
    found = labels[rng.integers(0, max(len(labels), 1), len(labels) * 2)] if len(labels) else labels
    found = torch.cat((found, some_labels(rng, wrong)))
    boxes = found[:, 1:] + torch.tensor(rng.normal(0, spread, (len(found), 4)), dtype=torch.float32)
    other = torch.tensor(rng.random(len(found)) < 0.1)
    classes = torch.where(other, (found[:, 0] + 1) % 3, found[:, 0])
    sure = torch.tensor(rng.beta(2, 2, len(found)), dtype=torch.float32)
    sure[-wrong:] *= 0.7
    detections = torch.cat((boxes, sure[:, None], classes[:, None]), dim=1)
    return detections[sure.argsort(descending=True)]


def data_set(seed: int = 0, images: int = 30, **options) -> list[tuple[Tensor, Tensor]]:
    """(detections, labels) of each image; some without labels."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        labels = some_labels(rng, int(rng.integers(0, 9)))
        pairs.append((some_detections(rng, labels, **options), labels))
    return pairs


def slow_match(detections: Tensor, labels: Tensor, threshold: float) -> list[bool]:
    """Pairs by falling overlap, each detection keeps its first; then each label keeps its first detection."""
    pairs = []
    for d, detection in enumerate(detections.tolist()):
        for n, label in enumerate(labels.tolist()):
            if detection[5] == label[0] and overlap(detection[:4], label[1:]) >= threshold:
                pairs.append((overlap(detection[:4], label[1:]), d, n))
    claims: dict[int, int] = {}
    for _, d, n in sorted(pairs, key=lambda pair: -pair[0]):
        claims.setdefault(d, n)
    winners: dict[int, int] = {}
    for d in sorted(claims):
        winners.setdefault(claims[d], d)
    return [d in winners.values() for d in range(len(detections))]
