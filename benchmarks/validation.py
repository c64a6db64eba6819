"""What it takes to score a model: from images to mAP, and the parts behind the model.

    python benchmarks/validation.py --weights yolov5s.pt --data coco128.yaml --imgsz 640 --peer yolov5=PYTHON

*Images to mAP* is one call from files to scores: model and labels read (labels from their cache), images decoded,
letterboxed, run, suppressed, matched, averaged. Here twice: float32, and the half precision that `val.py --half` and
the trainer's default precision take on this device, both fused. The peer scores the same weights with its own function,
in float32.

*Parts* are timed on what our float32 model put out for these images: suppression, matching of detections with labels,
average precision, each over the whole split; both sides get the same tensors, and the scores that come of it are shown.

Medians over rounds in which every side runs once; a ratio above 1 says that this repository is faster. The peer writes
a file `<split>.cache` beside the labels; name a copy of the data set where it must stay as it is.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import NONE, Peer, machine, markdown, ratio, read_peers, rounds
from benchmarks.validation_peer import SNIPPET
from data.loader import eval_loader
from data.spec import DataSpec, read_data
from engine.evaluator import Evaluator
from engine.precision import choose_device
from engine.start import family_of
from models.weights import load_model
from models.yolo import Model
from utils.boxes import xywh_to_xyxy
from utils.config import write_mapping
from utils.errors import UserError, exits_cleanly
from utils.matching import match
from utils.metrics import evaluate
from utils.nms import non_max_suppression

CONF, IOU, MAX_DET = 0.001, 0.6, 300  # what mAP is scored with
PARTS = ("suppression", "matching", "average precision")
FULL, HALF, OURS, YOLOV5 = "here, float32", "here, half", "here", "yolov5"


class Whole(NamedTuple):
    """One call from images to mAP."""

    seconds: float
    map: float  # mAP50-95


class Parts(NamedTuple):
    """The parts, over a whole split."""

    seconds: list[float]  # as PARTS
    map: float
    detections: int


@dataclass(frozen=True)
class Recorded:
    """What a model put out, and what is there; pixels of the tensors."""

    decoded: list[Tensor]  # batches (B, N, 5 + C)
    labels: list[Tensor]  # images (m, 5) class, box

    def write(self, folder: Path) -> None:
        for index, batch in enumerate(self.decoded):
            np.save(folder / f"decoded{index:06}.npy", batch.numpy())
        for index, labels in enumerate(self.labels):
            np.save(folder / f"labels{index:06}.npy", labels.numpy())


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    peers = read_peers(options.peer)
    if others := sorted(peers.keys() - {YOLOV5}):
        raise UserError(
            f"--peer {others[0]}: validation is measured beside {YOLOV5} alone, whose models are of one kind"
        )
    with ExitStack() as stack:
        bench = Bench(options)
        peer = None
        if YOLOV5 in peers:
            snippet = SNIPPET.replace("THREADS", str(torch.get_num_threads()))
            peer = Theirs(stack.enter_context(Peer(YOLOV5, peers[YOLOV5], snippet)), bench)
        print(report(bench, peer, words))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--weights", required=True)
    made.add_argument("--cfg", default="", help="the architecture, where the weights do not say")
    made.add_argument("--data", required=True)
    made.add_argument("--task", default="val", choices=("train", "val", "test"))
    made.add_argument("--imgsz", type=int, default=640)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--workers", type=int, default=0, help="of both sides")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--device", default="cpu")
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    return made


class Bench:
    """Our side: `whole` and `parts`.

    Raises:
        UserError: weights or data are not to be found, or the weights' head needs no suppression.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = choose_device(options.device)
        self.data: DataSpec = read_data(options.data)
        self.model = self.load()
        if self.model.head.nms_free:
            raise UserError(f"{options.weights}: needs no suppression; name a model whose boxes are suppressed")
        self.metric = family_of(self.model.spec).metric
        self.halved = self.evaluator(True).precision
        self.recorded = record(self.model, self.loader())

    def load(self) -> Model:
        model, _ = load_model(self.options.weights, self.options.cfg or None)
        return model

    def loader(self) -> Any:
        options = self.options
        size = (options.imgsz, options.imgsz)
        given = {"image_size": size, "batch_size": options.batch_size, "workers": options.workers}
        return eval_loader(self.data, options.task, stride=self.model.stride, **given)

    def evaluator(self, half: bool, loader: Any = ()) -> Evaluator:
        given: Any = {"conf": CONF, "iou": IOU, "max_det": MAX_DET, "names": self.data.names}
        return Evaluator(loader, self.device, half=half, metric=family_of(self.model.spec).metric, **given)

    def whole(self, half: bool) -> Whole:
        started = time.perf_counter()
        model = self.load().to(self.device)
        found = self.evaluator(half, self.loader())(model, progress=False).evaluation.map
        return Whole(time.perf_counter() - started, found)

    def parts(self) -> Parts:
        """As the evaluator does it, without the way back to pixels of the original images."""
        several = self.model.num_classes > 1
        times, found = [time.perf_counter()], []
        for batch in self.recorded.decoded:
            found += non_max_suppression(batch, CONF, IOU, MAX_DET, multi_label=several)
        times.append(time.perf_counter())
        right, step = [], self.options.batch_size
        for first in range(0, len(found), step):
            several_images = slice(first, first + step)
            right += match(found[several_images], self.recorded.labels[several_images])
        times.append(time.perf_counter())
        stats = [
            (some, own[:, 4], own[:, 5], labels[:, 0])
            for some, own, labels in zip(right, found, self.recorded.labels, strict=True)
        ]
        score = evaluate(stats, self.data.names, self.metric).map
        times.append(time.perf_counter())
        spent = [after - before for before, after in itertools.pairwise(times)]
        return Parts(spent, score, sum(map(len, found)))


class Theirs:
    """YOLOv5's side, with the same weights and the same outputs."""

    def __init__(self, peer: Peer, bench: Bench) -> None:
        self.peer, self.names = peer, list(bench.data.names)
        if bench.model.num_classes != bench.data.num_classes:
            raise UserError(f"{bench.options.weights}: other classes than the data; {YOLOV5} is measured on equal ones")
        spec, folder = bench.model.spec, peer.folder
        torch.save(bench.model.state_dict(), folder / "state.pt")
        given = {"state": str(folder / "state.pt"), "file": str(folder / "model.pt")}  # the state has the anchors
        peer.ask("convert", cfg=f"{spec.name}.yaml", names=self.names, **given)
        sources: Any = {split: list(getattr(bench.data, split)) or None for split in ("train", "val", "test")}
        write_mapping(folder / "data.yaml", {"path": str(bench.data.path), **sources, "names": self.names})
        bench.recorded.write(folder)
        peer.ask("read", folder=str(folder))
        options = bench.options
        self.options = {"data": str(folder / "data.yaml"), "weights": str(folder / "model.pt"), "task": options.task}
        self.options |= {"batch_size": options.batch_size, "imgsz": options.imgsz, "workers": options.workers}
        self.options |= {"conf_thres": CONF, "iou_thres": IOU, "max_det": MAX_DET, "device": options.device}

    def whole(self) -> Whole:
        return Whole(*self.peer.ask("whole", **self.options))

    def parts(self) -> Parts:
        return Parts(*self.peer.ask("parts", names=self.names, conf=CONF, iou=IOU, max_det=MAX_DET))


def record(model: Model, loader: Any) -> Recorded:
    """What a model puts out for every batch, float32, on the CPU."""
    decoded: list[Tensor] = []
    labels: list[Tensor] = []
    model.eval()
    for batch in loader:
        moved = batch.to(torch.device("cpu"), torch.contiguous_format)
        with torch.no_grad():
            decoded.append(model.predict(moved.images).float().contiguous())
        height, width = moved.images.shape[2:]
        boxes = xywh_to_xyxy(batch.targets[:, 2:6] * torch.tensor([width, height, width, height]))
        rows = torch.cat((batch.targets[:, 1:2], boxes), dim=1)
        labels += [rows[batch.targets[:, 0] == index] for index in range(len(batch.images))]
    return Recorded(decoded, labels)


# -- report ------------------------------------------------------------------------------------------------------------


def report(bench: Bench, peer: Theirs | None, words: Sequence[str]) -> str:
    calls: dict[str, Callable[[], Any]] = {FULL: lambda: bench.whole(False)}
    if bench.halved is not None:
        calls[HALF] = lambda: bench.whole(True)
    parts: dict[str, Callable[[], Any]] = {OURS: bench.parts}
    if peer is not None:
        calls[YOLOV5], parts[YOLOV5] = peer.whole, peer.parts
    count = bench.options.rounds
    images, options = len(bench.recorded.labels), bench.options
    wholes, pieces = rounds(calls, count), rounds(parts, count)
    half = "none here" if bench.halved is None else str(bench.halved).removeprefix("torch.")
    return "\n".join([
        f"{Path(options.weights).name} on {images} images ({options.task}), {options.imgsz} px, batches of "
        f"{options.batch_size}; half precision: {half}.",
        "",
        whole_table(wholes, images),
        "",
        parts_table(pieces, images),
        "",
        f"Medians of {count} rounds.{'' if peer else f' Not measured: {YOLOV5}.'} {machine('validation.py', words)}",
    ])  # fmt: skip


def whole_table(wholes: Mapping[str, Sequence[Whole]], images: int) -> str:
    """Markdown: a row a side."""
    peer = [one.seconds for one in wholes.get(YOLOV5, ())]
    rows = []
    for side, calls in wholes.items():
        seconds = [one.seconds for one in calls]
        faster = f"{ratio(peer, seconds):.2f}" if peer and side != YOLOV5 else NONE
        middle = statistics.median(seconds)
        rows.append([side, f"{middle:.2f}", f"{images / middle:.1f}", faster, f"{calls[0].map:.4f}"])
    return markdown(["images to mAP", "seconds", "images/s", f"faster than {YOLOV5}", "mAP50-95"], rows)


def parts_table(pieces: Mapping[str, Sequence[Parts]], images: int) -> str:
    """Markdown: a row a part, their sum, and what came of them."""
    sides = list(pieces)
    rows = []
    for index, part in enumerate((*PARTS, "all three")):
        seconds = {
            side: [sum(one.seconds) if index == len(PARTS) else one.seconds[index] for one in found]
            for side, found in pieces.items()
        }
        cells = [f"{1000 * statistics.median(seconds[side]) / images:.2f}" for side in sides]
        rows.append([part, *cells, f"{ratio(seconds[YOLOV5], seconds[OURS]):.2f}" if YOLOV5 in sides else NONE])
    rows.append(["mAP50-95", *(f"{pieces[side][0].map:.4f}" for side in sides), NONE])
    rows.append(["detections", *(f"{pieces[side][0].detections}" for side in sides), NONE])
    return markdown(["ms an image", *sides, f"faster than {YOLOV5}"], rows)


if __name__ == "__main__":
    main()
