"""Ranks: who am I, who goes first, what do we agree on. Everything works unchanged in a single process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import PeerLost, UserError

T = TypeVar("T")

# what Gloo, NCCL and the store of torchrun say when another process is gone
GONE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|remote process exit|communicator was aborted|"
    r"failed to recv",
    re.IGNORECASE,
)


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


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block, then the others: downloads, label caches and drawn data are made once.

    Where rank 0 fails, the others do not begin: what they need is not there.
    """
    if not is_main():
        _heard(from_main(None))
        yield
        return
    with _told():
        yield
    from_main(None)


def by_main(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank. Where it fails, all end: the others would wait for it in vain."""
    if not is_main():
        return _heard(from_main(None))
    with _told():
        made = make()
    from_main(made)
    return made


@contextmanager
def _told() -> Iterator[None]:
    """Rank 0 tells the others, who wait for something else, that it has failed."""
    try:
        yield
    except BaseException as error:
        with suppress(RuntimeError):  # they may be gone, too
            from_main(error if isinstance(error, UserError) else UserError(type(error).__name__))
        raise


def _heard(found: Any) -> Any:
    if isinstance(found, UserError):
        raise PeerLost(f"rank 0 has failed: {found}")
    return found


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Within it, the processes that torchrun has started are ranks.

    After a failure the connections stay open until the process ends: the others then learn that it is gone, and it has
    said why.

    Raises:
        PeerLost: another rank is gone.
    """
    start(device)
    with lost_peers():
        yield
    stop()


@contextmanager
def lost_peers() -> Iterator[None]:
    """An error that tells no more than that another rank is gone becomes `PeerLost`."""
    try:
        yield
    except RuntimeError as error:
        found = GONE.search(str(error)) if is_distributed() else None
        if found is None:
            raise
        raise PeerLost(f"another rank has ended ({found[0]}); see what it said, or whether it was killed") from error


def start(device: torch.device, timeout_minutes: float = 60) -> None:
    """Joins the process group that torchrun announces; does nothing without torchrun.

    The time-out is long because ranks wait while rank 0 draws or downloads.
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


def smallest(number: int) -> int:
    """The least of what all ranks say, on every rank."""
    if not is_distributed():
        return number
    numbers: list[int | None] = [None] * world_size()
    dist.all_gather_object(numbers, number)
    return min(found for found in numbers if found is not None)


def from_main(value: T) -> T:
    """What rank 0 says, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def to_main(value: object) -> list[Any] | None:
    """What every rank says, in their order, on rank 0; None on others."""
    if not is_distributed():
        return [value]
    box: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, box)
    return box


def broadcast_buffers(module: nn.Module) -> None:
    """Rank 0's batch statistics, on every rank."""
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
