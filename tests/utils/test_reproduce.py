"""One seed for everything that draws."""

from __future__ import annotations

import random

import numpy as np
import torch

from utils.reproduce import sample_rng, seed_everything


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002 - libraries draw from it


def test_the_same_seed_gives_the_same_numbers_everywhere() -> None:
    seed_everything(3)
    first = draws()
    draws()
    seed_everything(3)
    assert draws() == first


def test_every_rank_draws_its_own_numbers() -> None:
    seed_everything(3, rank=0)
    first = draws()
    seed_everything(3, rank=1)
    assert all(one != other for one, other in zip(first, draws(), strict=True))


def test_a_seed_beyond_32_bits_is_taken() -> None:
    seed_everything(2**40)


def test_a_samples_chance_depends_on_seed_epoch_and_index_alone() -> None:
    numbers = {key: sample_rng(*key).random() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(set(numbers.values())) == 4
    draws()
    assert sample_rng(0, 1, 0).random() == numbers[0, 1, 0]
