"""Where the machine ends a run, one line says what is left of it and how it goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import train
from engine.faults import Peaks, machine_faults, resume_command, share_that_fits, smaller_batch
from engine.trainer import Trainer
from models.weights import load_model, read_checkpoint
from utils import files
from utils.errors import MachineFault, UserError

GB = 1e9
OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
}


def session(folder: Path, **options: Any) -> Any:
    given = {"batch_size": 16, "imgsz": (640, 640), "workers": 4, "cache": "ram"} | options
    return SimpleNamespace(
        options=SimpleNamespace(**given), image_size=(640, 640), folder=folder, device=torch.device("cpu"),
        hyp=SimpleNamespace(nominal_batch=64), peaks=Peaks(),
    )  # fmt: skip


def told(error: Exception, folder: Path, **options: Any) -> str:
    with pytest.raises(MachineFault) as raised, machine_faults(session(folder, **options)):
        raise error
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)
    return str(raised.value)


def full_disk(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_the_last_checkpoint_and_how_to_resume_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_distill.py", "--data", "x"])
    last = tmp_path / "weights" / "last.pt"
    assert told(full_disk(last), tmp_path) == f"{last}: the disk is full; make room there"
    last.parent.mkdir()
    last.touch()
    assert told(full_disk(last), tmp_path) == (
        f"{last}: the disk is full; make room there; the last checkpoint is whole; "
        f"to go on: python /somewhere/train_distill.py --resume {tmp_path}"
    )


def test_the_checkpoint_of_a_baseline_counts(tmp_path: Path) -> None:
    last = tmp_path / "baseline" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert f"to go on: python {sys.argv[0]} --resume {tmp_path}" in told(full_disk(last), tmp_path)


@pytest.mark.parametrize(("machines", "flags"), [("1", ""), ("2", "(and the other flags as before) ")])
def test_a_run_of_several_processes_goes_on_with_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machines: str, flags: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("utils.dist.is_distributed", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    assert resume_command(tmp_path) == f"torchrun --nproc_per_node 8 {flags}train.py --resume {tmp_path}"


def test_a_lack_of_memory_names_what_was_tried_and_what_takes_less(tmp_path: Path) -> None:
    assert told(OUT_OF_MEMORY["cpu"], tmp_path) == (
        "out of memory (--batch-size 16, --imgsz 640 640, --workers 4, --cache ram); what takes less: --batch-size 8, "
        "or -1, which finds what fits; a smaller --imgsz, fewer --workers, no --cache"
    )
    assert told(OUT_OF_MEMORY["gpu"], tmp_path, batch_size=1) == (
        "out of memory (--batch-size 1, --imgsz 640 640); what takes less: a smaller --imgsz"
    )


@pytest.mark.parametrize("error", [UserError("--epochs: got '0'"), KeyError("bug"), KeyboardInterrupt()])
def test_all_else_passes(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, machine_faults(session(tmp_path)):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("batch", "share", "ranks", "expected"),
    [(64, 0.5, 1, 32), (64, 0.9, 1, 32), (100, 0.7, 1, 70), (16, 0.5, 2, 8), (12, 0.5, 4, 4), (2, 0.1, 2, 2)],
)
def test_the_batch_that_is_suggested_is_smaller_and_for_all_ranks(
    batch: int, share: float, ranks: int, expected: int
) -> None:
    assert smaller_batch(batch, share, 64, ranks) == expected


def test_what_steps_have_taken_tells_the_share_that_fits() -> None:
    peaks = Peaks()
    assert share_that_fits(peaks, 10 * GB) == 0.5  # the first step was too large: nothing is known
    peaks.most, peaks.least = int(9 * GB), int(1 * GB)
    assert share_that_fits(peaks, 10 * GB) == pytest.approx((0.9 * 10 - 1) / 8)
    assert share_that_fits(peaks, 1 * GB) == 0


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a run of three epochs."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for index in range(4):
        image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"data/images/{index}.png"), image)
        (tmp_path / f"data/labels/{index}.txt").write_text("0 0.5 0.5 0.4 0.3\n")
    content = {"path": str(tmp_path / "data"), "train": "images", "val": "images", "names": ["ball"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    line = f"--data {tmp_path}/data.yaml --cfg yolov5p --project {tmp_path}/runs --imgsz 64 --batch 4 --epochs 3"
    return [*line.split(), *["--device", "cpu", "--workers", "0", "--noplots", "--save-interval", "0"]]


def stopped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a run ends."""
    with pytest.raises(SystemExit) as end:
        train.main(words)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    return line


def fails_from(number: int, real: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The same function, which raises from its Nth call on."""
    calls = []

    def call(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) >= number:
            raise error
        return real(*args, **more)

    return call


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_it_goes_on_from_the_one_before(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, write = tmp_path / "runs/exp/weights", files._write
    last, epochs = weights / "last.pt", []

    def fill_up(path: Path, *rest: Any) -> None:
        if path == last:
            epochs.append(1)
            if len(epochs) > 2:
                raise full_disk(path)
        write(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_write", fill_up)
        line = stopped(words, capsys)
    assert f"{last}: the disk is full; make room there; the last checkpoint is whole; to go on: " in line
    assert line.endswith(f"--resume {tmp_path / 'runs/exp'}")
    assert read_checkpoint(last).training is not None
    assert {file.name for file in weights.iterdir()} <= {"last.pt", "best.pt"}

    train.main(["--resume", str(tmp_path / "runs/exp")])
    assert read_checkpoint(last).training is None
    table = (tmp_path / "runs/exp/results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["epoch", "1", "2", "3"]


def test_a_table_that_cannot_be_written_is_one_warning_and_the_run_goes_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise full_disk(path)

    monkeypatch.setattr("engine.loggers.table.write_atomically", refuse)
    train.main(words)
    assert caplog.text.count("results.csv: the disk is full; make room there; training goes on without") == 1
    assert load_model(str(tmp_path / "runs/exp/weights/best.pt"))[0].names == ("ball",)


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
def test_out_of_memory_in_training_is_one_line(
    device: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = fails_from(3, Trainer._epoch, OUT_OF_MEMORY[device])
    monkeypatch.setattr(Trainer, "_epoch", failing)
    line = stopped(words, capsys)
    assert line.startswith("error: out of memory (--batch-size 4, --imgsz 64 64")
    assert "what takes less: --batch-size 2, or -1, which finds what fits; a smaller --imgsz" in line
    assert "the last checkpoint is whole; start anew from it (--weights " in line


def test_data_that_vanish_end_the_run_and_it_goes_on_when_they_are_back(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data.store.SMALL", 0)  # images are read anew in every epoch
    images, elsewhere, epoch = tmp_path / "data/images", tmp_path / "elsewhere", Trainer._epoch

    def unmount(self: Trainer, number: int) -> Any:
        if number == 1:
            images.rename(elsewhere)
        return epoch(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_epoch", unmount)
        line = stopped(words, capsys)
    assert f"is the disk of {images} still there?; " in line
    assert "the last checkpoint is whole; to go on: " in line
    elsewhere.rename(images)
    train.main(["--resume", str(tmp_path / "runs/exp")])
    assert read_checkpoint(tmp_path / "runs/exp/weights/last.pt").training is None


def test_a_disk_that_is_full_from_the_start_leaves_no_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise full_disk(path)

    monkeypatch.setattr(files, "_write", refuse)
    assert stopped(words, capsys).endswith("runs/exp/opt.yaml: the disk is full; make room there")
    assert not list((tmp_path / "runs").iterdir())
