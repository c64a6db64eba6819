"""How many training images a second reach a device, ready to be trained on: drawn by loaders, or by the device.

    python benchmarks/feeding.py --data coco128.yaml --imgsz 640 --batch-size 16 64 --device 0

All ways read the same pack and draw the same scenes of one recipe; a pass is a whole epoch, until the device is done
with the last batch and its pixels are floating-point numbers there. Nothing is trained meanwhile. A GPU needs a data
set of some thousand images: of a short pass, much is the wait for its first batch.

- *loader*: what a run does with `--cache packed --augment-on cpu`.
- *device*: what it does with `--augment-on device`; what a batch shows is copied out of the pack and sent.
- *device, pack there*: likewise, with the whole pack on the device, as it is by itself where that takes little of a
  GPU's memory.

Speeds are medians over rounds in which every way runs once; ratios are to the loader, above 1 where the device is
faster. On a CPU the device is that CPU, and slower: there, the figures say that the benchmark works. The pack is a file
beside the folder of images; name a copy of the data set where nothing may be written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import machine, markdown, rounds
from data.device_loader import DeviceLoader, draws_on_device
from data.loader import TrainLoader, train_loader
from data.spec import DataSpec, read_data
from engine.options import Options
from engine.precision import choose_device
from utils.errors import exits_cleanly
from utils.hyp import DEFAULT, Hyp, read_hyp

WAYS = ("loader", "device", "device, pack there")
Case = tuple[int, int]  # image size, batch size


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    data, hyp = read_data(options.data), read_hyp(*options.hyp)
    device = choose_device(options.device)
    cases = [(size, batch_size) for size in options.imgsz for batch_size in options.batch_size]
    speeds = {case: measure(data, hyp, case, device, options) for case in cases}
    print(report(speeds, device, options, words))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True)
    made.add_argument("--hyp", nargs="+", default=[DEFAULT])
    made.add_argument("--imgsz", type=int, nargs="+", default=[320, 640])
    made.add_argument("--batch-size", type=int, nargs="+", default=[16, 64])
    made.add_argument("--workers", type=int, default=Options().workers, help="processes of the loader, in every way")
    made.add_argument("--device", default="")
    made.add_argument("--rounds", type=int, default=3)
    return made


def measure(
    data: DataSpec, hyp: Hyp, case: Case, device: torch.device, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Way -> images a second, of every round.

    Raises:
        UserError: the recipe cannot be drawn by a device, or there is no room for the pack.
    """
    size, batch_size = case
    given: dict[str, Any] = {"image_size": (size, size), "batch_size": batch_size, "stride": 32, "seed": 0}
    loader = train_loader(data, hyp, workers=options.workers, cache="packed", pin_memory=device.type == "cuda", **given)
    draws_on_device(loader, "device", device, quad=False)
    ways = (loader, DeviceLoader(loader, device, resident=False), DeviceLoader(loader, device, resident=True))
    jobs: dict[str, Callable[[], float]] = {name: Passes(way, device) for name, way in zip(WAYS, ways, strict=True)}
    return rounds(jobs, options.rounds)


class Passes:
    """Passes over a loader; every one is a new epoch."""

    def __init__(self, loader: TrainLoader, device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self.epoch = 0

    def __call__(self) -> float:
        """Images a second."""
        self.loader.set_epoch(self.epoch)
        self.epoch += 1
        started = time.perf_counter()
        images = sum(len(batch.to(self.device, torch.channels_last).images) for batch in self.loader)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return images / (time.perf_counter() - started)


# -- report ------------------------------------------------------------------------------------------------------------


def report(
    speeds: Mapping[Case, Mapping[str, Sequence[float]]],
    device: torch.device,
    options: argparse.Namespace,
    words: Sequence[str],
) -> str:
    lines = [
        f"Images a second, ready on {device}; {options.workers} loader processes.",
        "",
        table(speeds),
        "",
        f"Medians of {options.rounds} rounds. {machine('feeding.py', words)}",
    ]
    return "\n".join(lines)


def table(speeds: Mapping[Case, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: a row a size and batch, a column a way, and how many times faster than the loader it is."""
    others = WAYS[1:]
    rows = []
    for (size, batch_size), found in speeds.items():
        medians = {way: statistics.median(found[way]) for way in WAYS}
        ratios = [f"{medians[way] / medians[WAYS[0]]:.2f}" for way in others]
        rows.append([f"{size}", f"{batch_size}", *(f"{medians[way]:.0f}" for way in WAYS), *ratios])
    return markdown(["px", "batch", *WAYS, *(f"{way} / {WAYS[0]}" for way in others)], rows)


if __name__ == "__main__":
    main()
