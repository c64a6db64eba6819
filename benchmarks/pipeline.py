"""How many training images a second one core prepares: decoded from disk, and kept in memory.

    python benchmarks/pipeline.py --data bccd.yaml --imgsz 640 --peer yolov5=PYTHON ultralytics=PYTHON

Every side yields batches of augmented uint8 images with their targets, in this process (no workers) and on one thread,
under the same recipe; of the recipe, what the peers know too: mosaic, mixup, hsv, the warp, flips. Peers whose Python
has further augmentation installed (albumentations) would run that as well.

- *disk*: every image is decoded anew whenever it is needed. Its file is in the system's memory after the first round.
- *ram*: images are decoded beforehand and kept at the size of training.
- *here*: as a run has it by default. From the disk, a mosaic's other images are among those that the process decoded
  last (--mosaic-pool); the column after it does without, as the peers do.
- *decoding alone*: reading and decoding as many files as a mosaic has, and nothing else: what "disk" could reach if
  all the rest took no time, every file were decoded whole, and none were kept.

Seconds are of processor time, which says what a core can do even where a side used more than one, or another program
took it away for a while. *cores* is processor time over time: 1 where neither happened. Ratios are of medians over
rounds in which every side runs once, above 1 where this repository is faster.

Peers write a file `<split>.cache` beside the labels; name a copy of the data set where it must stay as it is.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import NONE, Peer, machine, markdown, read_peers, rounds
from data import store
from data.images import read_image
from data.loader import TrainLoader, train_loader
from data.spec import DataSpec, read_data
from engine.options import Options
from utils.errors import UserError, exits_cleanly
from utils.hyp import DEFAULT, Hyp, read_hyp

CACHES = ("disk", "ram")
OURS, WITHOUT_POOL, LIMIT = "here", "here, --mosaic-pool 0", "decoding alone"
TILES = 4  # images of a mosaic
# of a recipe, what all sides know under one name
AUGMENTATION = (
    "mosaic", "mixup", "copy_paste", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear",
    "perspective", "flipud", "fliplr",
)  # fmt: skip

COMMON = """
import itertools, time
import cv2, torch
torch.set_num_threads(1)
cv2.setNumThreads(0)
loaders = {}
def passed(cache, batches):
    loader, count = loaders[cache], 0
    started, busy = time.perf_counter(), time.process_time()
    for batch in itertools.islice(iter(loader), batches):
        count += len(batch["img"] if isinstance(batch, dict) else batch[0])
    return count, time.perf_counter() - started, time.process_time() - busy
"""
YOLOV5 = """
from yolov5.utils.dataloaders import create_dataloader
def prepare(cache, images, names, hyp, size, batch_size, workers=0):
    loaders[cache] = create_dataloader(
        images, size, batch_size, 32, hyp=hyp, augment=True, cache="ram" if cache == "ram" else None,
        workers=workers, shuffle=True,
    )[0]
"""
ULTRALYTICS = """
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
def prepare(cache, images, names, hyp, size, batch_size, workers=0):
    settings = get_cfg(overrides={**hyp, "task": "detect", "imgsz": size, "cache": "ram" if cache == "ram" else False})
    data = {"names": dict(enumerate(names)), "nc": len(names), "channels": 3}
    dataset = build_yolo_dataset(settings, images, batch_size, data, mode="train", rect=False, stride=32)
    loaders[cache] = build_dataloader(dataset, batch_size, workers, shuffle=True, rank=-1, pin_memory=False)
"""
SNIPPETS = {"yolov5": YOLOV5 + COMMON, "ultralytics": ULTRALYTICS + COMMON}  # theirs first: they set threads too


class Pass(NamedTuple):
    """Some batches, or files."""

    images: int
    seconds: float
    busy: float  # processor time, seconds

    @property
    def speed(self) -> float:
        """Images a second of processor time, on however many cores it was spent."""
        return self.images / self.busy


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    peers = read_peers(options.peer)
    data, hyp = read_data(options.data), read_hyp(*options.hyp)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        print(report(measure(data, hyp, options, peers), hyp, options, words))
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True)
    made.add_argument("--hyp", nargs="+", default=[DEFAULT])
    made.add_argument("--imgsz", type=int, default=640)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--batches", type=int, default=12, help="a round, at most a pass over the data")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    return made


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(
    data: DataSpec, hyp: Hyp, options: argparse.Namespace, peers: Mapping[str, str]
) -> dict[tuple[str, str], list[Pass]]:
    """(side, cache) -> a pass a round."""
    with ExitStack() as stack:
        jobs: dict[Any, Callable[[], Pass]] = {}
        for side, cache, pool in ((OURS, "disk", Options.mosaic_pool), (WITHOUT_POOL, "disk", 0), (OURS, "ram", 0)):
            given = {"size": (options.imgsz, options.imgsz), "batch_size": options.batch_size, "mosaic_pool": pool}
            jobs[side, cache] = Ours(own_loader(data, hyp, cache, **given), options.batches)
        count = options.batches * options.batch_size
        jobs[LIMIT, "disk"] = lambda: decoded(jobs[OURS, "disk"].loader.dataset.paths, count)  # type: ignore[attr-defined]
        for name, python in peers.items():
            peer = stack.enter_context(Peer(name, python, SNIPPETS[name]))
            for cache in CACHES:
                given = {"images": _only_source(data), "names": data.names, "hyp": augmentation(hyp)}
                peer.ask("prepare", cache=cache, size=options.imgsz, batch_size=options.batch_size, **given)
                jobs[name, cache] = _Asked(peer, cache, options.batches)
        return rounds(jobs, options.rounds)


class Ours:
    """Passes over our loader; every one is a new epoch."""

    def __init__(self, loader: TrainLoader, batches: int) -> None:
        self.loader = loader
        self.batches = batches
        self.epoch = 0

    def __call__(self) -> Pass:
        self.loader.set_epoch(self.epoch)
        self.epoch += 1
        return timed(len(batch.images) for batch in itertools.islice(iter(self.loader), self.batches))


class _Asked:
    """Passes over a peer's loader."""

    def __init__(self, peer: Peer, cache: str, batches: int) -> None:
        self.peer, self.cache, self.batches = peer, cache, batches

    def __call__(self) -> Pass:
        return Pass(*self.peer.ask("passed", cache=self.cache, batches=self.batches))


def own_loader(
    data: DataSpec, hyp: Hyp, cache: str, size: tuple[int, int], batch_size: int, workers: int = 0,
    mosaic_pool: int = Options.mosaic_pool,
) -> TrainLoader:  # fmt: skip
    """A loader that keeps all images in memory ('ram') or none ('disk'), however few there are."""
    small = store.SMALL
    try:
        store.SMALL = 0.0
        given = {"image_size": size, "batch_size": batch_size, "stride": 32, "seed": 0, "workers": workers}
        loader = train_loader(data, hyp, cache="ram" if cache == "ram" else "", mosaic_pool=mosaic_pool, **given)
    finally:
        store.SMALL = small
    if cache == "ram":
        for index in range(len(loader.dataset)):
            loader.dataset.store.load(index)
    return loader


def decoded(paths: Sequence[str], count: int) -> Pass:
    """Decodes the files of `count` mosaics, for each of them `TILES`."""
    files = itertools.islice(itertools.cycle(paths), count * TILES)
    found = timed(int(read_image(path) is not None) for path in files)
    return found._replace(images=found.images // TILES)


def timed(counts: Iterable[int]) -> Pass:
    """Goes through something that says how many images each of its parts has."""
    started, busy = time.perf_counter(), time.process_time()
    images = sum(counts)
    return Pass(images, time.perf_counter() - started, time.process_time() - busy)


def augmentation(hyp: Hyp) -> dict[str, float]:
    """Of a recipe, what all sides know."""
    return {name: getattr(hyp, name) for name in AUGMENTATION}


def _only_source(data: DataSpec) -> str:
    """What peers read.

    Raises:
        UserError: there are several sources.
    """
    if len(data.train) != 1:
        raise UserError(f"{data.source}: train has {len(data.train)} sources; peers are measured on one")
    return data.train[0]


# -- report ------------------------------------------------------------------------------------------------------------


def report(
    passes: Mapping[tuple[str, str], Sequence[Pass]], hyp: Hyp, options: argparse.Namespace, words: Sequence[str]
) -> str:
    absent = ", ".join(name for name in SNIPPETS if not any(name == side for side, _ in passes))
    kept = ", ".join(f"{name} {value:g}" for name, value in augmentation(hyp).items() if value)
    lines = [
        f"Images a second on one core: {options.imgsz} px, batches of {options.batch_size}; {kept}.",
        "",
        table(passes),
        "",
        f"Medians of {options.rounds} rounds.{f' Not measured: {absent}.' if absent else ''} "
        f"{machine('pipeline.py', words)}",
    ]
    return "\n".join(lines)


def table(passes: Mapping[tuple[str, str], Sequence[Pass]]) -> str:
    """Markdown: a row a cache, a column a side, and for peers how many times faster we are."""
    sides = list(dict.fromkeys(side for side, _ in passes))
    peers = [side for side in sides if side not in (OURS, WITHOUT_POOL, LIMIT)]
    head = ["images from", *sides, *(f"here / {name}" for name in peers), "cores"]
    rows = []
    for cache in dict.fromkeys(cache for _, cache in passes):
        speeds = {side: statistics.median(one.speed for one in passes[side, cache]) for side in sides
                  if (side, cache) in passes}  # fmt: skip
        cells = [f"{speeds[side]:.0f}" if side in speeds else NONE for side in sides]
        ratios = [f"{speeds[OURS] / speeds[name]:.2f}" for name in peers]
        busy = [f"{statistics.median(one.busy / one.seconds for one in passes[side, cache]):.2f}" for side in speeds]
        rows.append([cache, *cells, *ratios, " ".join(busy)])
    return markdown(head, rows)


if __name__ == "__main__":
    main()
