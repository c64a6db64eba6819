"""Images of a data set at the size they are trained or evaluated at: decoded anew, or kept in memory or on disk."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.arrays import read_array
from data.geometry import GREY, fitted_size, resize
from data.images import read_image
from data.lost import Lost
from data.pack import pack_key, pack_path, read_pack, write_pack
from data.picture import Image, Size
from utils.dist import is_main
from utils.errors import UserError
from utils.files import remove_leftovers, write_atomically
from utils.memory import free_memory

log = logging.getLogger(__name__)

CACHES = ("", "ram", "disk", "packed")
SMALL = 512e6  # bytes of pixels that are kept in memory without being asked
REDUCTIONS = (2, 4, 8)  # at which JPEG files can be decoded
FORKS = sys.platform == "linux"  # loader processes are forks, which share memory with us; elsewhere they get copies
TAKEN_AT_ONCE = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0) if FORKS else 0
SPARE = 1.2  # of the free memory or disk, this much must remain for each byte of cache


class Loaded(NamedTuple):
    """An image, resized to fit, and what it was."""

    image: Image  # BGR
    original: Size
    readable: bool = True  # False: the file went bad since it was checked; the image is grey


class Cached(NamedTuple):
    """All n images of a store in one array."""

    pixels: NDArray[np.uint8]  # BGR, one image after the other; in a pack, then one pixel of grey
    offsets: NDArray[np.int64]  # (n + 1,) bytes at which an image begins
    sizes: NDArray[np.int64]  # (n, 2) height, width
    readable: NDArray[np.bool_]  # (n,) False: the file went bad since it was checked; the image is grey

    def image(self, index: int) -> Image:
        height, width = self.sizes[index].tolist()
        return self.pixels[self.offsets[index] : self.offsets[index + 1]].reshape(height, width, 3)


class ImageStore:
    """`store.load(index)`. What is kept in memory is shared with workers that are forked, and decoded when it is first
    asked for, by whoever asks: a run begins at once, and every image is decoded once. Where workers are no forks,
    all is decoded before they begin.

    Args:
        shapes: (n, 2) height and width of the originals.
        size: height and width to fit into.
        smooth: average areas when shrinking (evaluation) instead of bilinear (training).
        cache: 'ram', 'disk' (decoded originals as .npy beside the images), 'packed' (one file beside their folder, see
            `data/pack.py`), or '' (in memory if that takes little).
        source: what the images were named by; a pack is named after it.
    """

    def __init__(
        self, paths: Sequence[str], shapes: NDArray[np.int32], size: Size, smooth: bool, cache: str, where: str,
        source: str = "",
    ) -> None:  # fmt: skip
        if cache not in CACHES:
            raise UserError(f"--cache {cache}: expected ram, disk or packed")
        self.paths = paths
        self.shapes = shapes
        self.size = size
        self.smooth = smooth
        self.on_disk = cache == "disk" and self._disk_suffices(where)
        self._lost = Lost(paths, where, shared_memory(len(paths)).view(np.bool_) if FORKS else None)
        self._pixels = np.empty(0, dtype=np.uint8)  # of all images, one after the other
        self._offsets = np.zeros(1, dtype=np.int64)  # (n + 1,) where an image begins
        self._filled = np.zeros(len(paths), dtype=np.bool_)
        self._recent: OrderedDict[int, Loaded] = OrderedDict()  # the latest last
        self._remembered = 0
        self._pack: tuple[Path, str] | None = None  # its file and its key
        self._keeping = False  # in memory, whatever is asked for
        self._writes = True  # to the disk, as long as it can be written to
        # what was asked for, and not what memory or disk allowed: samples must not depend on the machine
        self.keeps_all = cache in ("ram", "packed") or (not cache and self._place_all() <= SMALL)
        if cache == "ram" or not cache:
            self._keep_in_memory(where, asked=cache == "ram")
        elif cache == "packed":
            self._fill_pack(where, source)

    def load(self, index: int) -> Loaded:
        """The image; a view into the cache where there is one: not to be written into."""
        if self._filled[index]:
            self._lost.found(index)
            height, width = self.shapes[index].tolist()
            return Loaded(self._cached().image(index), (height, width))
        loaded = self._recent.pop(index, None) or self._read(index)
        if self._keeping:
            self._keep(index, loaded)
        if self._remembered:
            self._recent[index] = loaded  # as the latest
            if len(self._recent) > self._remembered:
                self._recent.popitem(last=False)
        return loaded

    def remember(self, count: int) -> None:
        """Keeps so many images that are decoded anew, those that were asked for last; each process its own."""
        self._remembered = count

    def _cached(self) -> Cached:
        return Cached(self._pixels, self._offsets, self.sizes, self._filled)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) height and width of the images as they are loaded."""
        # of a million images most are alike
        different, which = np.unique(self.shapes.astype(np.int64) @ (2**31, 1), return_inverse=True)
        fitted = [fitted_size(divmod(shape, 2**31), self.size) for shape in different.tolist()]
        return np.array(fitted, dtype=np.int64).reshape(-1, 2)[which]

    def _read(self, index: int) -> Loaded:
        image, original = self._image(index)
        if image is None:
            height, width = self.shapes[index].tolist()
            self._lost.missed(index)
            grey = np.full((*fitted_size((height, width), self.size), 3), GREY, dtype=np.uint8)
            return Loaded(grey, (height, width), readable=False)
        self._lost.found(index)
        return Loaded(resize(image, fitted_size(original, self.size), self.smooth), original)

    def _image(self, index: int) -> tuple[Image | None, Size]:
        """Decoded, as small as the file allows where that does for training, and the size of the whole."""
        height, width = self.shapes[index].tolist()
        reduction = self._reduction(index)
        if reduction > 1:
            image = read_image(self.paths[index], reduction)
            reduced = -(-height // reduction), -(-width // reduction)
            if image is not None and image.shape[:2] in (reduced, (height, width)):
                return image, (height, width)
        image = self._original(index)  # also where the file is not what it was
        return image, (0, 0) if image is None else (image.shape[0], image.shape[1])

    def _reduction(self, index: int) -> int:
        """At which fraction of its size an image may be decoded: never smaller than it is needed.

        Evaluation takes them whole, since published scores depend on it, and so does what is kept on disk.
        """
        if self.smooth or self.on_disk:
            return 1
        height, width = self.shapes[index].tolist()
        return largest_reduction((height, width), fitted_size((height, width), self.size))

    # -- memory --------------------------------------------------------------------------------------------------------

    def _keep_in_memory(self, where: str, asked: bool) -> None:
        total, free = self._place_all(), free_memory()
        if not asked and total > SMALL:
            return
        if free is not None and total * SPARE > free:
            if asked:
                log.warning("%s: --cache ram needs %.1f GB of %.1f GB that are free; nothing is cached",
                            where, total / 1e9, free / 1e9)  # fmt: skip
            return
        if FORKS:
            self._pixels, filled = shared_memory(total), shared_memory(len(self.paths))
            self._filled = filled.view(np.bool_)
            self._keeping = True
        else:
            self._filled = self._fill_all(np.empty(total, dtype=np.uint8), f"{where}: loading {total / 1e6:.0f} MB")
        log.info("%s: images are kept in memory, %.0f MB", where, total / 1e6)

    def _place_all(self) -> int:
        """Decides where every image begins, where all are in one array; gives its size in bytes."""
        self._offsets = np.concatenate(([0], np.cumsum(self.sizes.prod(axis=1) * 3)))
        return int(self._offsets[-1])

    def _fill_all(self, pixels: NDArray[np.uint8], title: str) -> NDArray[np.bool_]:
        """Decodes all images into `pixels`; says which of them could be read."""
        self._pixels = pixels
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            done = pool.map(self._fill_one, range(len(self.paths)))
            bar = tqdm(done, title, len(self.paths), delay=1, disable=not is_main())
            return np.fromiter(bar, dtype=np.bool_, count=len(self.paths))

    def _fill_one(self, index: int) -> bool:
        self._keep(index, self._read(index))
        if not self._filled[index]:
            self._pixels[self._offsets[index] : self._offsets[index + 1]] = GREY
        return bool(self._filled[index])

    def _keep(self, index: int, loaded: Loaded) -> None:
        """Writes an image into its place, if it is what it should be."""
        if loaded.readable and loaded.original == tuple(self.shapes[index].tolist()):
            self._pixels[self._offsets[index] : self._offsets[index + 1]] = loaded.image.ravel()
            self._filled[index] = True  # last: another process may be about to read it

    # -- packed --------------------------------------------------------------------------------------------------------

    def settings(self) -> str:
        """What decides about the pixels of an image, besides its file."""
        return f"{self.size} {self.smooth}"

    @property
    def packed(self) -> Cached | None:
        """The pack, memory-mapped and read-only; None where there is none."""
        return None if self._pack is None else self._cached()

    def _fill_pack(self, where: str, source: str) -> None:
        settings, total = self.settings(), self._place_all()
        path, key = pack_path(self.paths, source, self.size, settings), pack_key(self.paths, settings)
        found = read_pack(path, key, len(self.paths), total)
        remove_leftovers(path)  # a packing that was killed has left all its pixels
        if found is None and room_for(path.parent, total, f"{where}: --cache packed"):
            title = f"{where}: packing {total / 1e6:.0f} MB"
            try:
                write_pack(path, key, total, lambda pixels: self._fill_all(pixels, title))
                found = read_pack(path, key, len(self.paths), total)
            except OSError as error:
                log.warning("%s: --cache packed: %s: %s; nothing is cached", where, path, error.strerror)
        self._pixels, self._filled = np.empty(0, dtype=np.uint8), np.zeros(len(self.paths), dtype=np.bool_)
        if found is not None:
            self._pack, (self._pixels, self._filled) = (path, key), found
            log.info("%s: images are packed in %s, %.0f MB", where, path, total / 1e6)

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are not forked map the pack anew: they are sent its name, not its pixels."""
        return self.__dict__ if self._pack is None else self.__dict__ | {"_pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._pack is not None:
            found = read_pack(*self._pack, len(self.paths), int(self._offsets[-1]))
            if found is None:
                raise UserError(f"{self._pack[0]}: changed while it was in use; start again")
            self._pixels = found.pixels

    # -- disk ----------------------------------------------------------------------------------------------------------

    def _original(self, index: int) -> Image | None:
        path = self.paths[index]
        if not self.on_disk:
            return read_image(path)
        cached, shape = Path(f"{path}.npy"), (*self.shapes[index].tolist(), 3)
        try:
            if cached.stat().st_mtime_ns >= Path(path).stat().st_mtime_ns:
                return read_array(cached, np.uint8, shape)
        except Exception as error:  # not there yet, half a file, or whatever one comes to that somebody else has made
            log.debug("%s: not taken (%s)", cached, error)
        image = read_image(path)
        if image is not None and image.shape == shape and self._writes:  # of another shape, it would not be taken
            try:
                write_atomically(cached, lambda temporary: np.save(temporary, image), durable=False)
            except OSError as error:
                self._writes = False
                log.warning("--cache disk: %s: %s; nothing more is cached", cached, error.strerror or error)
        return image

    def _disk_suffices(self, where: str) -> bool:
        needed = int(self.shapes.astype(np.int64).prod(axis=1).sum()) * 3
        return room_for(Path(self.paths[0]).parent, needed, f"{where}: --cache disk")


def shared_memory(size: int) -> NDArray[np.uint8]:
    """Zeros that processes forked from this one read and write, too.

    They are taken from the system at once: what has been promised counts as used when the next one asks what is free.
    """
    return np.frombuffer(mmap.mmap(-1, max(size, 1), flags=TAKEN_AT_ONCE), dtype=np.uint8, count=size)


def largest_reduction(original: Size, size: Size) -> int:
    """The largest of 1, 2, 4, 8 by which both sides may be divided without falling below a size."""
    factor = min(original[0] // size[0], original[1] // size[1])
    return max((reduction for reduction in REDUCTIONS if reduction <= factor), default=1)


def room_for(folder: Path, needed: int, what: str) -> bool:
    """Whether so many bytes may be written there; a warning says so where they may not."""
    if not os.access(folder, os.W_OK):
        log.warning("%s: %s cannot be written to; nothing is cached", what, folder)
        return False
    free = shutil.disk_usage(folder).free
    if needed * SPARE > free:
        log.warning("%s needs %.1f GB of %.1f GB that are free; nothing is cached", what, needed / 1e9, free / 1e9)
    return needed * SPARE <= free
