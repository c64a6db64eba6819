"""What labels cost in memory: a million of them, in the main process and in each loader worker.

    python benchmarks/workers.py --images 125000 --boxes 8 --peer yolov5=PYTHON ultralytics=PYTHON

The data set is simulated: one small picture under many names, each with a label file of its own. Workers are forked and
share what the main process holds, until somebody writes to it; in Python, looking at an object is writing, because its
references are counted in it. So the figure that matters is how a worker's own memory grows while it goes through the
data. Megabytes (10^6 bytes):

- *labels*: by how much the main process grew as it read the data set;
- *worker, warm* and *worker, one pass*: memory that a worker shares with nobody, the mean over workers, after a
  hundredth of a pass and after all images have been drawn once;
- *growth*: the difference, which every worker pays.

Linux only, whose /proc tells private memory.
"""

from __future__ import annotations

import argparse
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from tqdm import tqdm

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.memory import megabytes, require_linux
from benchmarks.peers import Peer, machine, markdown, read_peers
from benchmarks.pipeline import SNIPPETS as LOADERS
from benchmarks.pipeline import augmentation, own_loader
from data.spec import read_data
from utils.errors import exits_cleanly
from utils.hyp import DEFAULT, read_hyp

OURS = "here"
CLASSES = 80
LINKS = 50_000  # to one file: some file systems allow 65,000
KINDS = 1000  # of label files
PATIENCE = 3600.0  # seconds for one answer of a peer: it may have a quarter of a million files to check


class Memory(NamedTuple):
    """Megabytes."""

    labels: float  # growth of the main process
    first: float  # private memory of a worker after a hundredth of a pass, mean over workers
    last: float  # after a pass

    @property
    def growth(self) -> float:
        return self.last - self.first


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    require_linux()
    peers = read_peers(options.peer)
    with tempfile.TemporaryDirectory() as folder:
        file = simulated(Path(folder), options.images, options.boxes)
        found = {OURS: ours(file, options)}
        for name, python in peers.items():
            found[name] = theirs(name, python, file, options)
    print(report(found, options, words))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--images", type=int, default=125_000)
    made.add_argument("--boxes", type=int, default=8, help="labels an image")
    made.add_argument("--imgsz", type=int, default=64)
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    return made


def simulated(folder: Path, images: int, boxes: int, folders: int = 1, val: int = 0) -> Path:
    """A data set of one picture under many names; gives its YAML file.

    Args:
        boxes: labels an image.
        folders: that the training images are spread over.
        val: images of validation; 0: those of training.
    """
    rng = np.random.default_rng(0)
    texts = [_label_text(boxes, rng) for _ in range(KINDS)]
    picture = folder / "picture.jpg"
    cv2.imwrite(str(picture), rng.integers(0, 255, (48, 64, 3)).astype(np.uint8))
    names = [f"train/{index * folders // images:04}/{index:012}" for index in range(images)]
    names += [f"val/0000/{index:012}" for index in range(val)]
    for inner in {Path(name).parent for name in names}:
        for kind in ("images", "labels"):
            (folder / kind / inner).mkdir(parents=True)
    for index, name in enumerate(tqdm(names, desc="simulated files", leave=False)):
        if index % LINKS == 0:
            picture = Path(shutil.copy(picture, folder / f"picture{index}.jpg"))
        os.link(picture, folder / f"images/{name}.jpg")
        (folder / f"labels/{name}.txt").write_text(texts[index % len(texts)])
    file = folder / "data.yaml"
    splits = {"train": "images/train", "val": "images/val" if val else "images/train"}
    content = {"path": str(folder), **splits, "names": [str(index) for index in range(CLASSES)]}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def _label_text(boxes: int, rng: np.random.Generator) -> str:
    places = rng.uniform(0.3, 0.7, (boxes, 2)), rng.uniform(0.1, 0.5, (boxes, 2))
    rows = np.column_stack((rng.integers(0, CLASSES, boxes), *places))
    return "".join(f"{int(row[0])} {row[1]:.6f} {row[2]:.6f} {row[3]:.6f} {row[4]:.6f}\n" for row in rows.tolist())


# -- measuring: these functions run in peers' processes too, so they stand alone ---------------------------------------


def over_a_pass(loader: Any) -> tuple[float, float]:
    """Private memory of a worker, mean over workers: after a hundredth of a pass, and at its end."""
    import multiprocessing

    def mean() -> float:
        own = [megabytes(child.pid, "Private") for child in multiprocessing.active_children()]
        return sum(own) / max(len(own), 1)

    warm, first = len(loader) // 100, 0.0
    for number, _ in enumerate(loader):
        first = mean() if number == warm else first
    return first, mean()


THEIRS = f"""
from typing import Any
{inspect.getsource(megabytes)}
{inspect.getsource(over_a_pass)}
def measured(workers, **options):
    before = megabytes("self", "Rss")
    prepare("disk", workers=workers, **options)
    labels = megabytes("self", "Rss") - before
    return labels, *over_a_pass(loaders["disk"])
"""


def ours(file: Path, options: argparse.Namespace) -> Memory:
    data, hyp = read_data(file), read_hyp(DEFAULT)
    before = megabytes("self", "Rss")
    size = (options.imgsz, options.imgsz)
    loader = own_loader(data, hyp, "disk", size, options.batch_size, options.workers)
    return Memory(megabytes("self", "Rss") - before, *over_a_pass(loader))


def theirs(name: str, python: str, file: Path, options: argparse.Namespace) -> Memory:
    data, hyp = read_data(file), read_hyp(DEFAULT)
    given = {"images": data.train[0], "names": data.names, "hyp": augmentation(hyp), "size": options.imgsz}
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(name, python, LOADERS[name] + THEIRS, PATIENCE))
        return Memory(*peer.ask("measured", workers=options.workers, batch_size=options.batch_size, **given))


# -- report ------------------------------------------------------------------------------------------------------------


def report(found: Mapping[str, Memory], options: argparse.Namespace, words: Sequence[str]) -> str:
    absent = ", ".join(name for name in LOADERS if name not in found)
    return "\n".join([
        f"{options.images * options.boxes:,} labels in {options.images:,} images (simulated), {options.workers} "
        "workers.",
        "",
        table(found),
        "",
        f"{f'Not measured: {absent}. ' if absent else ''}{machine('workers.py', words)}",
    ])  # fmt: skip


def table(found: Mapping[str, Memory]) -> str:
    """Markdown: a row a side."""
    rows = [[side, *(f"{value:.0f}" for value in (*memory, memory.growth))] for side, memory in found.items()]
    return markdown(["MB", "labels", "worker, warm", "worker, one pass", "growth"], rows)


if __name__ == "__main__":
    main()
