"""What every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and published checkpoints, which a user's clone does not have."""
    folder = ROOT.parent / "shared"
    if not (folder / "weights").is_dir():
        pytest.skip("../shared is absent: no real photographs and no published checkpoints to test with")
    return folder


@pytest.fixture(autouse=True)
def same_chance() -> None:
    """Every test draws the same numbers, in whatever order tests run."""
    torch.manual_seed(0)
