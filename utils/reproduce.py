"""One seed for everything that draws."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seeds python, numpy and torch; every rank draws its own numbers.

    Not deterministic even so: CUDA's atomic additions (index_add, bilinear backward) and cuDNN's choice of algorithm.
    """
    random.seed(seed + rank)
    # libraries of the user may draw from the global generator
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002
    torch.manual_seed(seed + rank)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample: depends on (seed, epoch, index) alone, never on the number of workers."""
    return np.random.default_rng((abs(seed), epoch, index))
