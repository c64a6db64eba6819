"""Training over several machines, of which one fails: torchrun starts it anew, and it ends as if nothing had been."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from data.drawn import CLASSES
from models.weights import read_checkpoint
from utils.config import write_mapping

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 150.0  # seconds
WORDS = (
    *("--imgsz", "64", "--epochs", "2", "--batch-size", "8", "--workers", "1"),
    *("--weights", "", "--cfg", "yolov5p", "--hyp", str(ROOT / "hyp/demo.yaml"), "--save-interval", "0.000001"),
    *("--noplots", "--device", "cpu"),
)
# what to write before a command that is to run on a host, the name of its network device, and its address
Host = tuple[Sequence[str], str, str]
HERE: Host = ((), "lo", "127.0.0.1")


def torchrun(project: Path, flags: Sequence[str], host: Host = HERE) -> subprocess.Popen:
    before, device, _ = host
    words = [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "train.py"), *WORDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": device}
    project.mkdir(exist_ok=True)
    with (project / "errors.txt").open("a") as file:
        return subprocess.Popen(
            [*before, *words, "--project", str(project), "--data", str(project.parent / "data.yaml")],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two: network namespaces where the rights allow it, else this machine twice."""
    names = [f"yolo{os.getpid()}{letter}" for letter in "ab"]
    made = [["ip", "netns", "add", name] for name in names]
    made.append(["ip", "link", "add", "first", "netns", names[0], "type", "veth", "peer", "second", "netns", names[1]])
    devices, addresses = ("first", "second"), ("10.77.0.1", "10.77.0.2")
    for name, device, address in zip(names, devices, addresses, strict=True):
        made.append(["ip", "-n", name, "address", "add", f"{address}/24", "dev", device])
        made += [["ip", "-n", name, "link", "set", one, "up"] for one in (device, "lo")]
    try:
        for command in made:
            subprocess.run(command, check=True, capture_output=True)
        inside = [["ip", "netns", "exec", name] for name in names]
        yield list(zip(inside, devices, addresses, strict=True))
    except (OSError, subprocess.CalledProcessError):
        yield [HERE, HERE]
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def waited(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_midway(last: Path, epoch: int) -> bool:
    """Whether a checkpoint is from amidst an epoch."""
    if not last.exists():
        return False
    training = read_checkpoint(last).training
    return training is not None and training["epoch"] == epoch and training["step"] > 2


def worker_of(agent: int) -> int:
    """A process that trains, started by this torchrun."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    children = {int(pid) for pid, parent, _ in rows if int(parent) == agent}
    return next(int(pid) for pid, parent, what in rows if int(pid) in children and "train.py" in what)


def test_two_hosts_one_of_which_loses_a_worker_end_as_one_undisturbed_group(tmp_path: Path, hosts: list[Host]) -> None:
    pictures = {"seed": 0, "train": 64, "val": 16, "test": 0, "size": [64, 96]}
    write_mapping(tmp_path / "data.yaml", {"draw": pictures, "names": list(CLASSES)})
    single = torchrun(tmp_path / "single", ["--nproc_per_node", "2", "--master_port", str(free_port())])
    assert single.wait(timeout=PATIENCE) == 0, (tmp_path / "single" / "errors.txt").read_text()[-3000:]

    flags = "--nnodes 2 --nproc_per_node 1 --max-restarts 3 --rdzv-id 7 --rdzv-backend c10d"
    flags += f" --rdzv-endpoint {hosts[0][2]}:{free_port()}"
    project = tmp_path / "hosts"
    agents: list[subprocess.Popen] = []
    try:
        for index, host in enumerate(hosts):  # whose names nobody resolves
            own = f"--local-addr {host[2]} --rdzv-conf is_host={int(not index)}"
            agents.append(torchrun(project, f"{flags} {own}".split(), host))
        waited(lambda: is_midway(project / "exp" / "weights" / "last.pt", epoch=1))
        os.kill(worker_of(agents[1].pid), signal.SIGKILL)
        ended = [agent.wait(timeout=PATIENCE) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    said = (project / "errors.txt").read_text()
    assert ended == [0, 0], said[-3000:]
    assert "started anew: going on with" in said
    assert [path.name for path in project.iterdir() if path.is_dir()] == ["exp"]
    tables = []
    for folder in (tmp_path / "single" / "exp", project / "exp"):
        with (folder / "results.csv").open(newline="") as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    for name in ("last.pt", "best.pt"):
        one, other = (read_checkpoint(tmp_path / run / "exp/weights" / name).state for run in ("single", "hosts"))
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
