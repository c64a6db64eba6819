"""Training batches that are drawn where the model is: the CPU decides what they show, the device makes the pixels.

Workers make scenes of keys, and numbers of scenes (`sketch`). A thread takes what they show out of the pack, unless the
whole pack is on the device, and has the device draw it (`draw`), on a stream of its own: while the training waits for
the device, the next batches are on their way.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Sample, collate
from data.dataset import TrainImages, to_targets
from data.device_draw import CPU_AT_ONCE, GPU_AT_ONCE, Sketch, Source, draw, moved, sketches
from data.loader import TrainLoader
from data.sampler import Key
from data.store import Cached
from utils.errors import UserError
from utils.opencv import AVAILABLE
from utils.types import Batch

log = logging.getLogger(__name__)

T = TypeVar("T")

GATHERERS = 4  # threads that copy pixels out of the pack: one alone does not fill the memory's bus
RESIDENT = 0.25  # of the device's free memory, so much may the pack take; the rest is the training's
MOVED_AT_ONCE = 1 << 26  # bytes of the pack


class Sketched(NamedTuple):
    """A batch before it has pixels."""

    sketches: list[Sketch]
    batch: Batch  # its images are of size 0


class Scenes(Dataset):
    """What samples show, instead of their pixels; a whole batch at a time, `at_once` as in `sketches`."""

    def __init__(self, images: TrainImages, at_once: int) -> None:
        self.images = images
        self.at_once = at_once

    def __getitems__(self, keys: Sequence[Key]) -> Sketched:
        images, blank = self.images, torch.empty((3, 0, 0), dtype=torch.uint8)
        scenes = [images.scene(key, images.rng(key)) for key in keys]
        samples = [
            Sample(
                blank,
                to_targets(scene.classes, scene.boxes, scene.size),
                images.paths[key.index],
                labelled=images.labelled(key.index),
            )
            for key, scene in zip(keys, scenes, strict=True)
        ]
        return Sketched(sketches(scenes, images.store.sizes, self.at_once), collate(samples))


def _as_it_is(sketched: Sketched) -> Sketched:
    return sketched


class DeviceLoader(TrainLoader):
    """The batches of another loader, drawn on a device.

    Args:
        loader: its images are packed, and its recipe composes scenes.
        resident: whether the whole pack is moved to the device; None: where that takes little of a GPU's memory.
    """

    def __init__(self, loader: TrainLoader, device: torch.device, resident: bool | None = None) -> None:
        images = _without_unreadable(loader.dataset)
        scenes = Scenes(images, GPU_AT_ONCE if device.type == "cuda" else CPU_AT_ONCE)
        super().__init__(
            scenes, loader.sampler, stride=loader.stride, image_size=loader.image_size, workers=loader.workers,
            pin_memory=False, join=_as_it_is,
        )  # fmt: skip
        self.dataset = images
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        assert images.store.packed is not None
        self._packed = images.store.packed
        resident = _has_room(device, len(self._packed.pixels)) if resident is None else resident
        self._pixels = _moved_whole(self._packed.pixels, device) if resident else None

    def __iter__(self) -> Iterator[Batch]:
        for batch, drawn in ahead(self._drawn(self._joined())):
            if drawn is not None:
                asking = torch.cuda.current_stream(self.device)
                asking.wait_event(drawn)
                for tensor in (batch.images, batch.targets, batch.labelled):
                    tensor.record_stream(asking)  # or a later drawing would take its memory while it is read
            yield batch

    def _drawn(self, batches: Iterable[Sketched]) -> Iterator[tuple[Batch, torch.Event | None]]:
        """Batches, each with what has happened on the device when it is there."""
        pixels, packed, pinned = self._pixels, self._packed, self.device.type == "cuda"
        with ThreadPoolExecutor(GATHERERS) as threads:
            for sketched in batches:
                if pixels is None:
                    sources = [gathered(sketch, packed, threads, pinned) for sketch in sketched.sketches]
                else:
                    sources = [Source(pixels, *in_pack(sketch, packed)) for sketch in sketched.sketches]
                yield self._draw(sketched, sources)

    def _draw(self, sketched: Sketched, sources: Sequence[Source]) -> tuple[Batch, torch.Event | None]:
        device, batch = self.device, sketched.batch
        with torch.cuda.stream(self._stream):  # of None it does nothing
            targets, labelled = (moved(tensor.numpy(), device) for tensor in (batch.targets, batch.labelled))
            parts = []
            for sketch, source in zip(sketched.sketches, sources, strict=True):
                there = source._replace(pixels=source.pixels.to(device, non_blocking=True))
                parts.append(draw(sketch, there).flip(-1))
            images = torch.cat(parts).permute(0, 3, 1, 2)  # channels last, as convolutions like them
            event = None if self._stream is None else self._stream.record_event()
        return Batch(images, targets, labelled, batch.paths), event


def draws_on_device(loader: TrainLoader, choice: str, device: torch.device, quad: bool) -> bool:
    """Whether batches are to be drawn by a `DeviceLoader`.

    Args:
        choice: of --augment-on; 'auto' is the device where that is a GPU and the cache is packed, or without OpenCV.

    Raises:
        UserError: the device is asked for, or there is no OpenCV, and the device cannot.
    """
    if AVAILABLE and (choice == "cpu" or (choice == "auto" and device.type != "cuda")):
        return False
    obstacle = "--augment-on cpu was asked for" if choice == "cpu" else _obstacle(loader.dataset, quad)
    if obstacle and not AVAILABLE:
        raise UserError(f"without OpenCV, images are drawn on the device, but {obstacle} (or install OpenCV)")
    if obstacle and choice == "device":
        raise UserError(f"--augment-on device: {obstacle}")
    if loader.dataset.store.packed is not None:
        log.info("training images are drawn on the %s", f"CPU: {obstacle}" if obstacle else f"device ({device})")
    return not obstacle


def _obstacle(images: TrainImages, quad: bool) -> str:
    if images.store.packed is None:
        return "it takes a pack, and there is none; add --cache packed"
    if quad:
        return "--quad joins images there; leave it out, or choose --augment-on cpu"
    if images.pixel_keys:
        keys = ", ".join(images.pixel_keys)
        return f"the recipe's {keys} cannot be drawn there; set to 0 what the run does without, or --augment-on cpu"
    return "" if images.composes else "without augmentation there is nothing to draw"


# -- pixels -----------------------------------------------------------------------------------------------------------


def gathered(sketch: Sketch, packed: Cached, threads: ThreadPoolExecutor, pinned: bool) -> Source:
    """What a sketch shows of its images, copied out of the pack, region by region.

    Args:
        pinned: the copy is in memory that a GPU can read while this process goes on.
    """
    shown = sketch.index >= 0
    sides = sketch.region[..., 2:] - sketch.region[..., :2]
    counts = np.where(shown, sides.prod(axis=-1), 0)
    ends = np.cumsum(counts).reshape(counts.shape)
    pixels = torch.empty((int(ends[-1, -1]) + 1, 3), dtype=torch.uint8, pin_memory=pinned)
    array = pixels.numpy()
    array[-1] = packed.pixels[-3:]
    origin = np.where(shown, ends - counts, len(array) - 1)

    def copy(at: tuple[int, int]) -> None:
        left, top, right, bottom = sketch.region[at].tolist()
        start, image = origin[at], packed.image(int(sketch.index[at]))
        array[start : start + counts[at]].reshape(bottom - top, right - left, 3)[...] = image[top:bottom, left:right]

    list(threads.map(copy, zip(*np.nonzero(shown), strict=True)))  # a list, so that a mistake in a thread is heard of
    return Source(pixels, origin, np.where(shown, sides[..., 0], 0))


def in_pack(sketch: Sketch, packed: Cached) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(L, S) pixels of the pack at which the regions of a sketch begin, and from one row to the next."""
    shown = sketch.index >= 0
    left, top = sketch.region[..., 0], sketch.region[..., 1]
    widths = np.where(shown, packed.sizes[sketch.index, 1], 0)
    starts = packed.offsets[sketch.index] // 3 + top * widths + left
    return np.where(shown, starts, len(packed.pixels) // 3 - 1), widths


def _moved_whole(packed: NDArray[np.uint8], device: torch.device) -> Tensor:
    pixels = torch.empty(len(packed), dtype=torch.uint8, device=device)
    for start in range(0, len(packed), MOVED_AT_ONCE):
        part = np.array(packed[start : start + MOVED_AT_ONCE])  # PyTorch takes no array that is read-only
        pixels[start : start + len(part)] = torch.from_numpy(part)
    return pixels.view(-1, 3)


def _has_room(device: torch.device, size: int) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    fits = size <= RESIDENT * free
    where = "moved to the device" if fits else "gathered batch by batch"
    log.info("%.1f GB of packed images, %.1f GB of the device are free: they are %s", size / 1e9, free / 1e9, where)
    return fits


def _without_unreadable(images: TrainImages) -> TrainImages:
    """The same images; those that went bad since they were checked are grey, and so have no labels."""
    packed, labels = images.store.packed, images.labels
    if packed is None or packed.readable.all():
        return images
    labels = labels.keep(packed.readable[labels.image_of_row])
    return TrainImages(
        labels, images.store, images.num_classes, images.hyp, size=images.size, seed=images.seed, augment=images.augment
    )


def ahead(items: Iterator[T], count: int = 2) -> Iterator[T]:
    """The same items; a thread makes the next ones while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, items, None) for _ in range(count))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item
