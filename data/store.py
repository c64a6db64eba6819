"""Images of a data set at the size they are trained or evaluated at: decoded anew, or kept in memory or on disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.geometry import GREY, fitted_size, resize
from data.images import read_image
from data.picture import Image, Size
from utils.dist import is_main
from utils.errors import UserError
from utils.files import write_atomically

log = logging.getLogger(__name__)

CACHES = ("", "ram", "disk")
SMALL = 512e6  # bytes of pixels that are kept in memory without being asked
SPARE = 1.2  # of the free memory or disk, this much must remain for each byte of cache


class Loaded(NamedTuple):
    """An image, resized to fit, and what it was."""

    image: Image  # BGR
    original: Size
    readable: bool = True  # False: the file went bad since it was checked; the image is grey


class ImageStore:
    """`store.load(index)`. The cache is filled before workers are forked, so they share its pages.

    Args:
        shapes: (n, 2) height and width of the originals.
        size: height and width to fit into.
        smooth: average areas when shrinking (evaluation) instead of bilinear (training).
        cache: 'ram', 'disk' (decoded originals as .npy beside the images), or '' (in memory if that takes little).
    """

    def __init__(
        self, paths: Sequence[str], shapes: NDArray[np.int32], size: Size, smooth: bool, cache: str, where: str
    ) -> None:
        if cache not in CACHES:
            raise UserError(f"--cache {cache}: expected ram or disk")
        self.paths = paths
        self.shapes = shapes
        self.size = size
        self.smooth = smooth
        self.on_disk = cache == "disk" and self._disk_suffices(where)
        self._pixels = np.empty(0, dtype=np.uint8)  # of all images, one after the other
        self._offsets = np.zeros(1, dtype=np.int64)  # (n + 1,) where an image begins
        self._filled = np.zeros(len(paths), dtype=np.bool_)
        if cache == "ram" or not cache:
            self._fill(where, asked=cache == "ram")

    def load(self, index: int) -> Loaded:
        """The image; a view into the cache where there is one: not to be written into."""
        if self._filled[index]:
            height, width = self.shapes[index].tolist()
            inner = fitted_size((height, width), self.size)
            start = self._offsets[index]
            pixels = self._pixels[start : start + inner[0] * inner[1] * 3]
            return Loaded(pixels.reshape(*inner, 3), (height, width))
        return self._read(index)

    def _read(self, index: int) -> Loaded:
        image = self._original(index)
        if image is None:
            height, width = self.shapes[index].tolist()
            log.warning("%s: cannot be read any more; a grey image takes its place", self.paths[index])
            grey = np.full((*fitted_size((height, width), self.size), 3), GREY, dtype=np.uint8)
            return Loaded(grey, (height, width), readable=False)
        original = (image.shape[0], image.shape[1])
        return Loaded(resize(image, fitted_size(original, self.size), self.smooth), original)

    # -- memory --------------------------------------------------------------------------------------------------------

    def _fill(self, where: str, asked: bool) -> None:
        inner = np.array([fitted_size((h, w), self.size) for h, w in self.shapes.tolist()], dtype=np.int64)
        offsets = np.concatenate(([0], np.cumsum(inner.prod(axis=1) * 3)))
        total, free = int(offsets[-1]), free_memory()
        if not asked and total > SMALL:
            return
        if free is not None and total * SPARE > free:
            if asked:
                log.warning("%s: --cache ram needs %.1f GB of %.1f GB that are free; nothing is cached",
                            where, total / 1e9, free / 1e9)  # fmt: skip
            return
        self._pixels, self._offsets = np.empty(total, dtype=np.uint8), offsets
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            done = pool.map(self._fill_one, range(len(self.paths)))
            title = f"{where}: loading {total / 1e6:.0f} MB"
            bar = tqdm(done, title, len(self.paths), delay=1, disable=not is_main())
            self._filled = np.fromiter(bar, dtype=np.bool_, count=len(self.paths))
        log.info("%s: images are kept in memory, %.0f MB", where, total / 1e6)

    def _fill_one(self, index: int) -> bool:
        loaded = self._read(index)
        start, stop = self._offsets[index], self._offsets[index + 1]
        fits = loaded.readable and loaded.original == tuple(self.shapes[index].tolist())
        if fits:
            self._pixels[start:stop] = loaded.image.ravel()
        return fits

    # -- disk ----------------------------------------------------------------------------------------------------------

    def _original(self, index: int) -> Image | None:
        path = self.paths[index]
        if not self.on_disk:
            return read_image(path)
        cached = Path(f"{path}.npy")
        try:
            if cached.stat().st_mtime_ns >= Path(path).stat().st_mtime_ns:
                return np.load(cached, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or half a file from elsewhere
        image = read_image(path)
        if image is not None:
            try:
                write_atomically(cached, lambda temporary: np.save(temporary, image))
            except OSError as error:
                log.debug("%s: not cached: %s", cached, error)
        return image

    def _disk_suffices(self, where: str) -> bool:
        needed = int(self.shapes.astype(np.int64).prod(axis=1).sum()) * 3
        folder = Path(self.paths[0]).parent
        if not os.access(folder, os.W_OK):
            log.warning("%s: --cache disk: %s cannot be written to; nothing is cached", where, folder)
            return False
        free = shutil.disk_usage(folder).free
        if needed * SPARE > free:
            log.warning("%s: --cache disk needs %.1f GB of %.1f GB that are free; nothing is cached",
                        where, needed / 1e9, free / 1e9)  # fmt: skip
        return needed * SPARE <= free


def free_memory() -> float | None:
    """Bytes that can still be taken, within the limits of a container; None where the system does not say."""
    limits = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(float(lines["MemAvailable"].split()[0]) * 1024)
        group = Path("/sys/fs/cgroup")
        limits.append(float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):  # another system, another version of cgroups, or "max"
        pass
    return min(limits) if limits else None
