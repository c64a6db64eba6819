"""Which images those of a batch are mixed with, where decoding them anew for every mosaic costs too much."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.random import Generator

Pool = tuple[int, ...]


class Pools:
    """The images of which a process has lately loaded a batch: partners drawn from them need not be decoded again.

    Processes get batches in turn (batch k goes to process k modulo their number), so what each has loaded follows from
    the order of an epoch alone. A pool is the last `size` different images of a process's batches, the present one
    included. At the beginning of an epoch it is filled up with images drawn at random.

    Statistics, against drawing partners from the whole data set: as the order of an epoch is random, so is who meets in
    a pool, and every image is the partner of every other equally often in expectation. How often an image is drawn in
    an epoch has the same mean, 3 times for mosaics, and nearly the same variance, since it waits for as many draws
    while it is in the pool. What differs: its draws come within `size` images instead of anywhere in the epoch, the
    partners of a mosaic are different images, and none of them is the image itself. A sample then depends on the number
    of processes as well as on the seed and its key.

    Args:
        size: images in a pool.
        bounds: images bounds[0] ... bounds[1] are mixed among themselves, as are those up to bounds[2], and so on.
        processes: that load batches.
    """

    def __init__(self, size: int, bounds: Sequence[int], processes: int, rng: Generator) -> None:
        self.size = size
        self.bounds = bounds
        self._pools: list[list[dict[int, None]]] = [  # dictionaries for their order; of each process, of each group
            [dict.fromkeys(_drawn(first, last, size, rng)) for first, last in pairwise(bounds)]
            for _ in range(processes)
        ]

    def after(self, batch: int, indices: Sequence[int]) -> list[Pool]:
        """For each image of a batch, the pool of its group; the images enter it now. Batches are told in order."""
        pools = self._pools[batch % len(self._pools)]
        groups = (np.searchsorted(self.bounds, indices, side="right") - 1).tolist()
        for index, group in zip(indices, groups, strict=True):
            pool = pools[group]
            pool.pop(index, None)
            pool[index] = None
            if len(pool) > self.size:
                del pool[next(iter(pool))]
        shared = [tuple(pool) for pool in pools]
        return [shared[group] for group in groups]


def _drawn(first: int, last: int, count: int, rng: Generator) -> list[int]:
    """So many different numbers of first ... last, or all of them."""
    numbers: list[int] = (first + rng.choice(last - first, size=min(count, last - first), replace=False)).tolist()
    return numbers
