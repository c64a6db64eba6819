"""What every test may ask for."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """As in a terminal Ctrl-C is heard, which what runs in the background is started to ignore. Where several processes
    share the cores, each and what it starts takes one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Iterator[Path]:
    """Real photographs and published checkpoints, which a user's clone does not have; left as they were."""
    folder = ROOT.parent / "shared"
    if not (folder / "weights").is_dir():
        pytest.skip("../shared is absent: no real photographs and no published checkpoints to test with")
    before = set(folder.rglob("*.cache.npz"))
    yield folder
    for cache in set(folder.rglob("*.cache.npz")) - before:
        cache.unlink(missing_ok=True)


@pytest.fixture
def anchor_free_cfg(tmp_path: Path) -> Callable[..., Path]:
    """Writes the file of a tiny model without anchors, of strides 8, 16 and 32; keyword arguments are keys of it."""

    def write(**keys: object) -> Path:
        path = tmp_path / "tiny-anchor-free.yaml"
        rows = [[-1, 1, "Conv", [width, 3, 2]] for width in (8, 8, 16, 16, 16)]
        content = {"nc": 2, "backbone": rows, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]], **keys}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No font, no telemetry, no check for updates: everything runs offline. A test that asks for a host fails, even
    if whoever asked bears the refusal."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def only_here(host: str | bytes | None, *rest: object, **more: object) -> list:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()):
            asked.append(str(name))
            raise socket.gaierror(socket.EAI_NONAME, "tests have no network")
        return look_up(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    yield
    assert not asked, f"asked for {', '.join(asked)}"


@pytest.fixture(autouse=True)
def same_chance() -> None:
    """Every test draws the same numbers, in whatever order tests run."""
    torch.manual_seed(0)
