from __future__ import annotations

import threading
import time
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from models.zoo import RELEASES, resolve_weights
from utils.errors import UserError


@pytest.fixture
def publisher(monkeypatch):
    """Downloads become a copy of these bytes; the addresses asked for are listed."""
    asked = []

    def download(url, dst, hash_prefix=None, progress=True):
        asked.append(url)
        Path(dst).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def test_a_known_name_is_downloaded_where_it_was_asked_for(publisher, tmp_path):
    path = resolve_weights(str(tmp_path / "weights" / "yolov5n6.pt"))
    assert path.read_bytes() == b"weights" and path.parent.name == "weights"
    assert publisher == [RELEASES["yolov5n6.pt"].address]
    assert publisher[0].endswith("/v7.0/yolov5n6.pt")


def test_a_file_that_is_there_is_not_downloaded(publisher, tmp_path):
    (tmp_path / "yolov5s.pt").write_bytes(b"mine")
    assert resolve_weights(str(tmp_path / "yolov5s.pt")).read_bytes() == b"mine" and not publisher


def test_offline_the_message_says_where_to_put_what(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    path = tmp_path / "yolov5m.pt"
    with pytest.raises(UserError) as caught:
        resolve_weights(str(path))
    assert RELEASES["yolov5m.pt"].address in str(caught.value) and f"put it at {path}" in str(caught.value)
    assert not path.exists()


def test_unknown_names_are_told(publisher):
    with pytest.raises(UserError, match=r"no weights file nowhere/yolov5z\.pt; did you mean 'yolov5\w\.pt'"):
        resolve_weights("nowhere/yolov5z.pt")
    assert not publisher


def test_other_ranks_wait_for_the_first_of_their_machine(publisher, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    path = tmp_path / "yolov5s.pt"

    def arrive():
        time.sleep(0.4)
        path.write_bytes(b"late")

    threading.Thread(target=arrive).start()
    assert resolve_weights(str(path)).read_bytes() == b"late" and not publisher
