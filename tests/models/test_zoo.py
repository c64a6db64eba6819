from __future__ import annotations

import hashlib
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


def test_weights_of_this_repository_are_found_from_any_folder(publisher, monkeypatch, tmp_path):
    monkeypatch.setattr("models.zoo.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "own.pt").write_bytes(b"ours")
    assert resolve_weights("own.pt").read_bytes() == b"ours" and not publisher


def test_offline_the_message_says_where_to_put_what(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    path = tmp_path / "yolov5m.pt"
    with pytest.raises(UserError) as caught:
        resolve_weights(str(path))
    assert RELEASES["yolov5m.pt"].address in str(caught.value) and f"put it at {path}" in str(caught.value)
    assert not path.exists()


def test_a_file_that_is_not_the_published_one_is_refused(monkeypatch, tmp_path):
    (tmp_path / "release").write_bytes(b"something else")
    address = (tmp_path / "release").as_uri()
    monkeypatch.setitem(RELEASES, "yolov5n.pt", RELEASES["yolov5n.pt"]._replace(address=address))
    with pytest.raises(UserError, match=r"yolov5n\.pt could not be downloaded \(invalid hash value"):
        resolve_weights(str(tmp_path / "weights" / "yolov5n.pt"))
    assert not list((tmp_path / "weights").iterdir())


def test_the_checksum_is_that_of_the_published_file(shared):
    content = (shared / "weights" / "yolov5n.pt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == RELEASES["yolov5n.pt"].sha256


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
