"""Which device, and which number format on it."""

from __future__ import annotations

import contextlib
import logging
import os

import torch

from utils import dist
from utils.allocator import keep_freed_memory
from utils.errors import UserError

log = logging.getLogger(__name__)


def choose_device(name: str, flag: str = "--device") -> torch.device:
    """`''` takes a GPU where there is one; under torchrun each rank takes its own. It becomes the process's own.

    Where that is the CPU, the process keeps its memory from here on (`keep_freed_memory`).

    Raises:
        UserError: the device is not there, or several are named without torchrun.
    """
    device = find_device(name, flag)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()
    return device


def find_device(name: str, flag: str) -> torch.device:
    """As `choose_device`, for a second device beside the process's own."""
    name = name.strip().lower().removeprefix("cuda:")
    if name in ("cpu", "mps"):
        return torch.device(name)
    wanted = [part for part in name.split(",") if part] if name not in ("", "cuda") else []
    if not all(part.isdigit() for part in wanted):
        raise UserError(f"{flag}: got '{name}', expected cpu, mps, or the numbers of GPUs such as 0 or 0,1")
    if not torch.cuda.is_available():
        if wanted or name == "cuda":
            raise UserError(f"{flag} {name}: this PyTorch sees no CUDA device; use {flag} cpu")
        return torch.device("cpu")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if len(wanted) > 1 and ranks == 1:
        raise UserError(
            f"{flag} {name}: one process drives one GPU; start with torchrun --nproc_per_node {len(wanted)}"
        )
    index = int(wanted[dist.local_rank() % len(wanted)]) if wanted else dist.local_rank()
    if index >= torch.cuda.device_count():
        raise UserError(f"{flag}: GPU {index} asked for, but there are {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def cpu_has_bf16() -> bool:
    """Whether bf16 matrix products are done in hardware, so that autocast is a gain and not a loss."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(amx() or avx512())


def choose_precision(device: torch.device, amp: str) -> torch.dtype | None:
    """The autocast format, None for plain float32. `amp`: auto, on, off, bf16, fp16."""
    if amp == "off" or device.type == "mps":
        return None
    if device.type == "cuda":
        return torch.bfloat16 if amp == "bf16" else torch.float16
    if amp == "fp16":
        raise UserError("--amp fp16: a CPU trains in bf16 or float32; use --amp auto")
    return torch.bfloat16 if amp in ("on", "bf16") or cpu_has_bf16() else None


def teacher_precision(device: torch.device, precision: torch.dtype | None) -> torch.dtype | None:
    """What a frozen teacher computes in: half precision where the student's training does, None for float32.

    Args:
        device: the teacher's, which may be another than the student's.
    """
    if device.type == "mps":
        return None
    if device.type == "cpu" and precision is torch.float16:  # which CPUs have no arithmetic for
        return choose_precision(device, "auto")
    return precision


def autocast(device: torch.device, precision: torch.dtype | None) -> contextlib.AbstractContextManager:
    """The context of a forward pass."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def describe(device: torch.device, precision: torch.dtype | None) -> str:
    number = str(precision or torch.float32).removeprefix("torch.")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {number}"
    return f"{device.type} with {torch.get_num_threads()} threads, {number}"
