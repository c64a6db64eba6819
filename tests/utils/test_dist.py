"""Ranks: a single process needs no care, two agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from utils import dist
from utils.errors import PeerLost, UserError

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

assert dist.by_main(lambda: {"made by": rank}) == {"made by": 0}
assert dist.to_main(rank) == ([0, 1] if rank == 0 else None)
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
        pass
    with dist.group(torch.device("cpu")):
        assert dist.to_main("said") == ["said"]
    value = torch.tensor([3.0])
    assert dist.mean(value) is value
    assert dist.from_main("told") == "told"
    assert dist.by_main(lambda: "made") == "made"
    dist.broadcast_buffers(nn.BatchNorm2d(1))
    dist.stop()


def two_ranks(script: str, folder: Path, root: Path) -> list[tuple[int, str]]:
    """What two processes exit with, and what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    return [(process.returncode, said) for process, said in zip(ranks, errors, strict=True)]


def test_two_processes_agree(tmp_path: Path, root: Path) -> None:
    ended = two_ranks(TWO_RANKS, tmp_path, root)
    assert [code for code, _ in ended] == [0, 0], ended
    assert (tmp_path / "done0").exists()
    assert (tmp_path / "done1").exists()


# -- ranks that fail --------------------------------------------------------------------------------------------------


def test_rank_0_tells_the_others_of_its_failure_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(dist, "from_main", said.append)
    with pytest.raises(UserError), dist.main_first():
        raise UserError("no disk")
    with pytest.raises(ZeroDivisionError):
        dist.by_main(lambda: 1 / 0)
    assert [(type(one), str(one)) for one in said] == [(UserError, "no disk"), (UserError, "ZeroDivisionError")]


def test_a_failure_that_cannot_be_told_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(dist, "from_main", gone)
    with pytest.raises(UserError, match="no disk"), dist.main_first():
        raise UserError("no disk")


def test_others_do_not_begin_where_rank_0_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_main", lambda: False)
    monkeypatch.setattr(dist, "from_main", lambda _: UserError("no disk"))
    with pytest.raises(PeerLost, match="rank 0 has failed: no disk"), dist.main_first():
        raise AssertionError("begun")
    with pytest.raises(PeerLost, match="rank 0 has failed: no disk"):
        dist.by_main(lambda: pytest.fail("made"))


LEFT_ALONE = """
import os, signal, torch
from utils import dist, errors

errors.FOLLOWING = 0.1
@errors.exits_cleanly
def main():
    with dist.group(torch.device("cpu")):
        dist.by_main(lambda: None)
        if dist.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.mean(torch.ones(1))
main()
"""


def test_a_rank_that_is_left_alone_says_so_in_one_line(tmp_path: Path, root: Path) -> None:
    (code, said), (killed, _) = two_ranks(LEFT_ALONE, tmp_path, root)
    assert (code, killed) == (1, -9)
    assert said.startswith("error: another rank has ended")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("[pair.cc:537] Connection closed by peer [127.0.0.1]:40391", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_the_echo_of_anothers_end_is_told_from_errors(text: str, echo: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_distributed", lambda: True)
    with pytest.raises(PeerLost if echo else RuntimeError, match=r"another rank|mat1"), dist.lost_peers():
        raise RuntimeError(text)
    monkeypatch.setattr(dist, "is_distributed", lambda: False)
    with pytest.raises(RuntimeError), dist.lost_peers():
        raise RuntimeError(text)
