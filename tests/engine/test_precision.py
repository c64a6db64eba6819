"""Which device, which number format."""

from __future__ import annotations

import contextlib

import pytest
import torch

from engine.precision import autocast, choose_device, choose_precision, describe, teacher_precision
from utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_without_a_gpu_the_cpu_is_taken(without_gpu: None) -> None:
    assert choose_device("") == choose_device("CPU") == CPU


@pytest.mark.parametrize(
    ("name", "message"), [("0", "sees no CUDA device; use --device cpu"), ("gpu", "got 'gpu', expected cpu, mps, or")]
)
def test_a_device_that_is_not_there_is_a_users_mistake(without_gpu: None, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_device(name)


def test_one_process_drives_one_gpu(two_gpus: None) -> None:
    assert choose_device("") == choose_device("cuda:0") == CUDA
    assert choose_device("1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="torchrun --nproc_per_node 2"):
        choose_device("0,1")
    with pytest.raises(UserError, match="GPU 7 asked for, but there are 2"):
        choose_device("7")


def test_each_rank_takes_its_own_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("") == choose_device("0,1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "amp", "fast", "expected"),
    [
        (CPU, "auto", True, torch.bfloat16),
        (CPU, "auto", False, None),
        (CPU, "on", False, torch.bfloat16),
        (CPU, "off", True, None),
        (CUDA, "auto", False, torch.float16),
        (CUDA, "bf16", False, torch.bfloat16),
        (CUDA, "off", False, None),
    ],
)
def test_the_format_follows_device_and_wish(
    device: torch.device, amp: str, fast: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.precision.cpu_has_bf16", lambda: fast)
    assert choose_precision(device, amp) == expected


def test_a_cpu_does_not_train_in_fp16() -> None:
    with pytest.raises(UserError, match="--amp fp16: a CPU trains in bf16 or float32"):
        choose_precision(CPU, "fp16")


def test_the_teacher_computes_as_the_student_trains() -> None:
    assert teacher_precision(CPU, torch.bfloat16) == torch.bfloat16
    assert teacher_precision(CPU, None) is None


def test_without_a_format_nothing_is_cast() -> None:
    assert isinstance(autocast(CPU, None), contextlib.nullcontext)
    with autocast(CPU, torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_device_is_described_with_its_format() -> None:
    assert describe(CPU, torch.bfloat16).startswith("cpu with ")
    assert describe(CPU, None).endswith("float32")
