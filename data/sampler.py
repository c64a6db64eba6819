"""Which images make up which batch of which epoch, on which rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.labels import Labels
from data.picture import Size
from data.pool import Pool, Pools

Batches = list[NDArray[np.int64]]


class Key(NamedTuple):
    """What a training sample is made from. Keys travel to the workers, so an epoch needs no shared state."""

    epoch: int
    index: int  # of the image
    repeat: int  # how many times the epoch has shown it already
    mosaic: bool
    size: Size
    pool: Pool = ()  # of what images it may be mixed with; empty: of all. One tuple for many keys of a batch


class EvalKey(NamedTuple):
    """What an image of evaluation is made from."""

    index: int
    size: Size


class TrainSampler:
    """Batches of keys for one rank; the same number of batches on every rank.

    Args:
        count: number of images.
        rectangles: the batches of --rect; otherwise they are drawn anew for every epoch.
        labelled: so many of the images, the first ones, have labels; None: all. The others are spread evenly among
            them: a batch's detection loss is a mean over its labelled images, and few of them would make it noise.
        pool: images are mixed with so many that their process has lately loaded, see `Pools`; 0: with all. All it is
            as well without mosaics, and with weights: partners are drawn evenly, but a pool would follow the weights.
        processes: that load the batches of this rank.
    """

    def __init__(
        self, count: int, batch_size: int, size: Size, *, seed: int, rank: int = 0, world_size: int = 1,
        rectangles: Rectangles | None = None, labelled: int | None = None, pool: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        self.count = count
        self.pool = pool
        self.processes = processes
        self.labelled = count if labelled is None else labelled
        self.batch_size = batch_size
        self.size = size
        self.seed = abs(seed)
        self.rank = rank
        self.world_size = world_size
        self.rectangles = rectangles
        self.epoch = 0
        self.mosaic = True
        self.first = 0  # batches before it were drawn already
        self.weights: NDArray[np.float64] | None = None  # (labelled,) how often images are drawn

    def __len__(self) -> int:
        if self.rectangles is not None:
            return math.ceil(len(self.rectangles.batches) / self.world_size)
        return math.ceil(math.ceil(self.count / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._shuffled(rng) if self.rectangles is None else self._rectangular(rng, self.rectangles)
        mosaic = self.mosaic and self.rectangles is None  # a mosaic has the full size
        seen, pools = np.zeros(self.count, dtype=np.int64), self._pools()
        # every rank walks through all batches, so that repeats are counted over all of them
        for number, (indices, size) in enumerate(batches):
            repeats = []
            for index in indices.tolist():
                repeats.append(int(seen[index]))
                seen[index] += 1
            if number % self.world_size == self.rank:
                own = indices.tolist()
                found = pools.after(number // self.world_size, own) if pools else [()] * len(own)
                if number // self.world_size < self.first:
                    continue
                yield [
                    Key(self.epoch, index, repeat, mosaic, size, pool)
                    for index, repeat, pool in zip(own, repeats, found, strict=True)
                ]

    def _pools(self) -> Pools | None:
        if not self.pool or not self.mosaic or self.rectangles is not None or self.weights is not None:
            return None
        # numbers of their own: with a pool or without, the order of an epoch is the same
        rng = np.random.default_rng((self.seed, self.epoch, self.rank, self.processes))
        bounds = sorted({0, self.labelled, self.count})
        return Pools(self.pool, bounds, self.processes, rng)

    def _shuffled(self, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.int64], Size]]:
        """Batches of rank 0, 1, ... in turn."""
        order = self._order(rng)
        total = math.ceil(self.count / self.world_size) * self.world_size
        order = np.resize(order, total)  # begins again where ranks would get different numbers
        for step in range(len(self)):
            for rank in range(self.world_size):
                own = order[rank :: self.world_size]
                yield own[step * self.batch_size : (step + 1) * self.batch_size], self.size

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """(count,) labelled images once each, or by weight; unlabelled ones once each."""
        if self.weights is None:
            order = rng.permutation(self.labelled)
        else:
            order = rng.choice(self.labelled, size=self.labelled, p=self.weights / self.weights.sum())
        rest = self.count - self.labelled
        if not rest:
            return order
        order = np.concatenate((order, self.labelled + rng.permutation(rest)))
        return order[np.argsort(even_places(self.labelled, self.count, rng.random(self.count)), kind="stable")]

    def _rectangular(
        self, rng: np.random.Generator, rectangles: Rectangles
    ) -> Iterator[tuple[NDArray[np.int64], Size]]:
        """The batches are always the same; their order is not."""
        order = np.resize(rng.permutation(len(rectangles.batches)), len(self) * self.world_size)
        for number in order.tolist():
            yield rectangles.batches[number], rectangles.sizes[number]


class Rectangles(NamedTuple):
    """Batches of images of similar shape, and the smallest size that holds each batch."""

    batches: Batches
    sizes: tuple[Size, ...]


def rectangles(
    shapes: NDArray[np.int32], batch_size: int, size: Size, stride: int, pad: float, labelled: int | None = None
) -> Rectangles:
    """Images sorted by height / width, cut into batches.

    A batch's size is what its images need when they fit into `size`, plus `pad` strides, rounded up to strides.

    Args:
        labelled: so many images, the first ones, have labels; None: all. Among images of equal shape the others are
            spread evenly.
    """
    ratio = shapes[:, 0] / shapes[:, 1]
    places = even_places(len(shapes) if labelled is None else labelled, len(shapes), 0.5)
    order = np.lexsort((places, ratio))
    batches, sizes = [], []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        high = np.minimum(size[0], size[1] * ratio[batch]).max()
        wide = np.minimum(size[1], size[0] * (1 / ratio[batch])).max()
        batches.append(batch)
        sizes.append(tuple(math.ceil(side / stride + pad) * stride for side in (high, wide)))
    return Rectangles(batches, tuple(sizes))


def even_places(labelled: int, count: int, within: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """(count,) numbers in [0, 1) by which to sort, so that labelled images (the first) and others lie evenly mixed.

    Args:
        within: (count,) or one for all, in [0, 1): where an image lies in the piece of the line that is its own.
    """
    rest = count - labelled
    numbers = np.concatenate((np.arange(labelled), np.arange(rest)))
    totals = np.repeat((labelled, rest), (labelled, rest))
    return (numbers + within) / totals


def squares(count: int, batch_size: int, size: Size) -> Rectangles:
    """Batches in the order of the images, all of one size."""
    batches = [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return Rectangles(batches, (size,) * len(batches))


def weigh_images(labels: Labels, per_class: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) how often to draw each labelled image: the sum over its boxes of their class's weight, rare ones more.

    Args:
        per_class: (C,) such as (1 - mAP)², so that what is not learnt yet is seen more.
    """
    counts = labels.class_counts(len(per_class))[: len(per_class)]
    weights = np.asarray(per_class, dtype=np.float64) / np.maximum(counts, 1)
    found = np.bincount(labels.image_of_row, weights[labels.rows[:, 0].astype(np.int64)], minlength=labels.labelled)
    return found if found.sum() > 0 else np.ones(labels.labelled)


class EvalSampler:
    """Batches of keys for one rank; nothing is repeated, so ranks may differ by one batch."""

    def __init__(self, plan: Rectangles, rank: int = 0, world_size: int = 1) -> None:
        self.plan = plan
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(range(self.rank, len(self.plan.batches), self.world_size))

    def __iter__(self) -> Iterator[list[EvalKey]]:
        for number in range(self.rank, len(self.plan.batches), self.world_size):
            yield [EvalKey(index, self.plan.sizes[number]) for index in self.plan.batches[number].tolist()]
