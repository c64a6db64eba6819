"""Ranks: a single process needs no care, two agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from utils import dist

TWO_RANKS = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from utils import dist

dist.start(torch.device("cpu"), timeout_minutes=1)
folder = Path(sys.argv[1])
assert dist.is_distributed() and dist.world_size() == 2
rank = dist.rank()

with dist.main_first():
    if dist.is_main():
        time.sleep(0.3)
        (folder / "made").write_text("by rank 0")
    assert (folder / "made").read_text() == "by rank 0"

own = torch.tensor([1.0 + rank, 10.0])
assert torch.equal(dist.mean(own), torch.tensor([1.5, 10.0]))
assert own[0] == 1.0 + rank  # the argument stays as it was
assert dist.from_main({"epoch": rank}) == {"epoch": 0}
norm = nn.BatchNorm2d(2)
norm.running_mean += rank + 1
dist.broadcast_buffers(norm)
assert norm.running_mean.tolist() == [1.0, 1.0]
dist.stop()
(folder / f"done{rank}").touch()
"""


def test_one_process_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    dist.start(torch.device("cpu"))
    assert not dist.is_distributed()
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    with dist.main_first():
        dist.barrier()
    value = torch.tensor([3.0])
    assert dist.mean(value) is value
    assert dist.from_main("told") == "told"
    dist.broadcast_buffers(nn.BatchNorm2d(1))
    dist.stop()


def test_two_processes_agree(tmp_path: Path, root: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(tmp_path)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    assert (tmp_path / "done0").exists()
    assert (tmp_path / "done1").exists()
