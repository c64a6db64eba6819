"""Where published weights are had."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils import dist
from utils.errors import UserError, nearest
from utils.files import ROOT

PATIENCE = 3600.0  # seconds that other ranks wait for a download

log = logging.getLogger(__name__)


class Release(NamedTuple):
    address: str
    sha256: str | None = None  # None where we do not know it from several who have the file; the publisher names none


_YOLOV3 = "https://github.com/ultralytics/yolov3/releases/download/v9.6.0"  # GPL-3.0 / AGPL-3.0 of their authors
_YOLOV7 = "https://github.com/WongKinYiu/yolov7/releases/download/v0.1"  # GPL-3.0 of its authors
_YOLOV5 = "https://github.com/ultralytics/yolov5/releases/download/v7.0"  # GPL-3.0 / AGPL-3.0 of their authors
_ULTRALYTICS = "https://github.com/ultralytics/assets/releases/download"  # AGPL-3.0 of their authors


def _without_anchors() -> dict[str, Release]:
    """YOLOv8 and later, and the anchor-free v5 and v3: all lie beside one another."""
    names = [f"yolov8{scale}" for scale in "nsmlx"] + [f"yolov9{scale}" for scale in "tsmce"]
    names += [f"yolov10{scale}" for scale in "nsmblx"]
    names += [f"yolo{version}{scale}" for version in (11, 12) for scale in "nsmlx"]
    names += [f"yolov5{scale}{level}u" for level in ("", "6") for scale in "nsmlx"]
    names += ["yolov3u", "yolov3-sppu", "yolov3-tinyu"]
    releases = {f"{name}.pt": Release(f"{_ULTRALYTICS}/v8.3.0/{name}.pt") for name in names}
    latest = {f"yolo26{scale}.pt": Release(f"{_ULTRALYTICS}/v8.4.0/yolo26{scale}.pt") for scale in "nsmlx"}
    latest["yolo26n.pt"] = latest["yolo26n.pt"]._replace(
        sha256="9b09cc8bf347f0fc8a5f7657480587f25db09b34bf33b0652110fb03a8ad4fef"
    )
    return releases | latest


RELEASES = {
    "yolov5n.pt": Release(f"{_YOLOV5}/yolov5n.pt", "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3"),
    "yolov5s.pt": Release(f"{_YOLOV5}/yolov5s.pt", "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee"),
    "yolov5m.pt": Release(f"{_YOLOV5}/yolov5m.pt", "61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56"),
    "yolov5l.pt": Release(f"{_YOLOV5}/yolov5l.pt"),
    "yolov5x.pt": Release(f"{_YOLOV5}/yolov5x.pt"),
    "yolov5n6.pt": Release(f"{_YOLOV5}/yolov5n6.pt"),
    "yolov5s6.pt": Release(f"{_YOLOV5}/yolov5s6.pt"),
    "yolov5m6.pt": Release(f"{_YOLOV5}/yolov5m6.pt"),
    "yolov5l6.pt": Release(f"{_YOLOV5}/yolov5l6.pt"),
    "yolov5x6.pt": Release(f"{_YOLOV5}/yolov5x6.pt"),
    "yolov3.pt": Release(f"{_YOLOV3}/yolov3.pt"),
    "yolov3-spp.pt": Release(f"{_YOLOV3}/yolov3-spp.pt"),
    "yolov3-tiny.pt": Release(f"{_YOLOV3}/yolov3-tiny.pt"),
    "yolov7.pt": Release(f"{_YOLOV7}/yolov7.pt"),
    "yolov7x.pt": Release(f"{_YOLOV7}/yolov7x.pt"),
    "yolov7-tiny.pt": Release(f"{_YOLOV7}/yolov7-tiny.pt"),
    "yolov7-w6.pt": Release(f"{_YOLOV7}/yolov7-w6.pt"),
    "yolov7-e6.pt": Release(f"{_YOLOV7}/yolov7-e6.pt"),
    "yolov7-d6.pt": Release(f"{_YOLOV7}/yolov7-d6.pt"),
    "yolov7-e6e.pt": Release(f"{_YOLOV7}/yolov7-e6e.pt"),
    **_without_anchors(),
}


def resolve_weights(name: str) -> Path:
    """An existing file, or the file of a published name (`yolov5s.pt`, also `weights/yolov5s.pt`), downloaded there.

    A relative path is looked up in the working directory, then in this repository.

    Raises:
        UserError: no such file and no such name, or the download failed; it says where to put the file.
    """
    path = Path(name)
    for place in (path, ROOT / path):
        if place.exists():
            return place
    release = RELEASES.get(path.name)
    if release is None:
        hint = nearest(path.name, RELEASES) or ";"
        raise UserError(f"no weights file {name}{hint} these are downloaded: {', '.join(RELEASES)}")
    if dist.local_rank() == 0:
        _download(release, path)
    else:
        _wait_for(path)
    return path


def _wait_for(path: Path) -> None:
    """Until the first rank of this machine has the file.

    Not a barrier: a rank that comes late finds the file there and would never reach it. When the first rank fails,
    torchrun ends the others.
    """
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path} did not arrive in {PATIENCE / 60:.0f} minutes")
        time.sleep(0.2)


def _download(release: Release, path: Path) -> None:
    log.info("downloading %s to %s", release.address, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # into a temporary file beside it, then renamed
        torch.hub.download_url_to_file(release.address, str(path), hash_prefix=release.sha256, progress=True)
    except (OSError, RuntimeError) as error:  # no network, no such address, disk full; a wrong checksum
        raise UserError(
            f"{path.name} could not be downloaded ({error}); get it from {release.address} and put it at {path}"
        ) from error
