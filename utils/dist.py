"""Ranks: who am I, who goes first, what do we agree on. Everything works unchanged in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """Which device of this machine is ours (torchrun sets it), 0 in a single process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if is_distributed():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block, then the others: downloads, label caches and drawn data are made once."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def start(device: torch.device, timeout_minutes: float = 60) -> None:
    """Joins the process group that torchrun announces; does nothing without torchrun.

    The time-out is long because ranks wait while rank 0 draws, downloads or validates.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2 or is_distributed():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))


def stop() -> None:
    if is_distributed():
        dist.destroy_process_group()


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over ranks."""
    if is_distributed():
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def from_main(value: object) -> object:
    """What rank 0 says, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Rank 0's batch statistics, on every rank."""
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
