"""Image files: where they are, what is in their headers, their pixels.

Pixels are (H, W, 3) uint8 in OpenCV's order BGR until they become a tensor. Headers are read by Pillow, which
torchvision requires anyway: a hundred times faster than decoding.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from data import substitutes
from data.substitutes import MOST_SIDE
from utils.errors import shown
from utils.opencv import AVAILABLE, MOST_PIXELS, cv2

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".dng", ".exr", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm",
    ".pic", ".png", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp",
})  # fmt: skip
MOST_BYTES = 2_000_000_000  # of an image file
TOO_LARGE = f"more than {MOST_PIXELS / 1e6:.0f} million pixels, or than {MOST_SIDE} in a row; cut it into tiles"
JPEG = b"\xff\xd8"  # what its files begin with
ORIENTATION = 0x0112  # EXIF tag
TAGS = (b"\x01\x12", b"\x12\x01")  # the same as it is written
ORIENTATIONS = range(1, 9)  # its values
TURNED = (5, 6, 7, 8)  # of these, those that swap height and width
BYTE_ORDERS = (b"II*\0", b"MM\0*")  # what follows "Exif\0\0"


class BadImage(Exception):
    """This file holds no whole image; the message says why."""


def list_folder(folder: str | Path) -> list[str]:
    """All images under a folder, at any depth, sorted; hidden files are none. Links are followed, each folder once.

    Raises:
        OSError: the folder cannot be read; one in it that cannot is a warning.
    """

    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [str(folder)]  # and no `os.walk`, which in Python 3.11 cannot go 1000 folders deep
    while waiting:
        parent = waiting.pop()
        try:
            status = os.stat(parent)  # noqa: PTH116 - as the rest of the loop
            here = (status.st_dev, status.st_ino)
            if here in seen and status.st_ino:  # a link that leads back; some network disks number no folder
                continue
            seen.add(here)
            folders = []
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append(entry.path)
                    elif is_image(entry.name):
                        found.append(entry.path)
        except OSError as error:
            if parent == str(folder):
                raise
            log.warning("%s: cannot be read (%s); its images are left out", parent, error.strerror)
        else:
            waiting += reversed(folders)  # the first is looked at first, with all that is in it
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def is_image(name: str) -> bool:
    """By its name; `._photo.jpg`, which macOS leaves on foreign disks, is none."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122


def read_image(path: str | Path, reduction: int = 1) -> Image | None:
    """The pixels as people see them: EXIF orientation applied, grey as BGR, 16 bits scaled to 8, no alpha.

    Returns None for what OpenCV cannot decode. Reads the bytes itself, because `cv2.imread` fails on names outside
    the code page of Windows.

    Args:
        reduction: 1, 2, 4 or 8. A JPEG file is decoded at this fraction of its sides, rounded up, in a fraction of the
            time; other formats cannot be, and come whole.
    """
    if not AVAILABLE:
        decoded = substitutes.decode(path, reduction)
        return None if decoded is None else _to_bgr8(decoded)
    try:
        _check_file(path)
        raw = np.fromfile(path, dtype=np.uint8)
        is_jpeg = raw[:2].tobytes() == JPEG
        image = cv2.imdecode(raw, _reading(reduction if is_jpeg else 1)) if raw.size else None
        if image is None and raw.size:
            image = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    except (BadImage, OSError, cv2.error):
        return None
    return None if image is None else _to_bgr8(image)


def _reading(reduction: int) -> int:
    """OpenCV's flag."""
    flags: dict[int, int] = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    return flags[reduction]


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) as `read_image` would give it, mostly from the header alone.

    Raises:
        BadImage: there is no such file, it is no image, or it is cut short.
    """
    try:
        _check_file(path)
        with Pillow.open(path, formats=substitutes.formats()) as image:
            width, height = image.size
            if not substitutes.fits(width, height):
                raise BadImage(TOO_LARGE)
            is_jpeg = image.format in ("JPEG", "MPO")
            orientation = image.getexif().get(ORIENTATION) if is_jpeg else None
            turned = orientation in TURNED
            # whether other formats are turned depends on the version of OpenCV, which also reads what is no Exif
            exif = image.info.get("exif")
            # and where Pillow sees no orientation, for it is of the wrong type, OpenCV may
            known = orientation in ORIENTATIONS if orientation else not any(tag in (exif or b"") for tag in TAGS)
            sound = is_jpeg and (not exif or (exif[6:10] in BYTE_ORDERS and known))
            unsure = not sound and bool(exif or image.format == "TIFF")
            _check_whole(image, Path(path))
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except Pillow.DecompressionBombError:
        raise BadImage(TOO_LARGE) from None
    except Pillow.UnidentifiedImageError:
        return _decoded_size(path)  # OpenCV may know better
    except Exception as error:  # Pillow's plugins raise whatever their format runs into
        raise BadImage(f"corrupt image: {shown(str(error))}") from error
    if unsure:
        return _decoded_size(path)
    return (width, height) if turned else (height, width)


def _check_file(path: str | Path) -> None:
    """Raises BadImage of what no image can be: a pipe, which may have no end, or a file of gigabytes."""
    status = os.stat(path)  # noqa: PTH116 - a million times
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a file")
    if status.st_size > MOST_BYTES:
        raise BadImage(f"a file of {status.st_size / 1e9:.1f} GB")


def _check_whole(image: Pillow.Image, path: Path) -> None:
    """Raises where the file is cut short; decodes it only where its end looks odd."""
    if image.format in ("JPEG", "MPO"):
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            if file.read() == b"\xff\xd9":
                return
        image.load()
    elif image.format == "PNG":
        image.verify()  # checksums
    else:
        image.load()


def _decoded_size(path: str | Path) -> tuple[int, int]:
    image = read_image(path)
    if image is None:
        raise BadImage("not an image that OpenCV or Pillow can read")
    return image.shape[0], image.shape[1]


def _to_bgr8(image: NDArray) -> Image:
    """Any decoded array as (H, W, 3) uint8."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:  # floating point: [0, 1] by custom, otherwise by its largest value
        image = np.nan_to_num(image.astype(np.float32))
        image = np.clip(image * (255 / max(1.0, float(image.max(initial=0)))), 0, 255).astype(np.uint8)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels < 3:
        return np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])
