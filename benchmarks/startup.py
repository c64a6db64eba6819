"""How long one waits: from a command to the first step of the optimizer, for `--help`, for imports.

    python benchmarks/startup.py --data bccd.yaml --imgsz 320 --batch-size 16 --peer yolov5=PYTHON ultralytics=PYTHON

Every figure is of a new process, timed from before it is started:

- *help*: `train.py --help`, until it has ended;
- *import*: everything that training imports and nothing else, until it has ended; *import torch* the same of torch;
- *first step*: a training of the smallest model from scratch, on the CPU and with a warm cache of labels, until the
  optimizer has stepped once; *behind torch* is what of this is left when torch has been imported. It includes the work
  of that step, whose time is told beside it by *first batch*: from the model's first call on a full batch to the step.

`--demo` takes the demonstration instead of that training, as a user meets it who starts train.py without arguments.

Medians over rounds in which every side runs once, after one that warms caches. A ratio above 1 says that this
repository is faster. Peers write a file `<split>.cache` beside the labels; name a copy of the data set where it must
stay as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import NONE, machine, markdown, ratio, read_peers, rounds
from data.spec import DataSpec, read_data
from engine.options import DEMO
from utils.errors import UserError, exits_cleanly
from utils.files import ROOT

OURS = "here"
SIDES = (OURS, "yolov5", "ultralytics")
FIGURES = ("help", "import", "first step", "behind torch", "first batch")
PATIENCE = 600.0  # seconds for one process

# Tells when the optimizer has stepped for the first time, and ends the process there and then. The first call of a
# module on as many images as a batch has is where the first batch begins: models are built and measured on fewer.
WATCHED = """
import json, os, sys, time
batch_size = BATCH
import torch
times = {"torch": time.time()}
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
def called(module, inputs):
    if "batch" not in times and module.training and inputs and getattr(inputs[0], "shape", [0])[0] == batch_size:
        times["batch"] = time.time()
def stepped(*_):
    times["step"] = time.time()
    with open(RECORD, "w") as file:
        json.dump(times, file)
    os._exit(0)
register_module_forward_pre_hook(called)
register_optimizer_step_post_hook(stepped)
"""

TRAIN = {
    OURS: """
sys.path.insert(0, {root!r})
sys.argv = ["train.py", *{words!r}]
import train
train.main()
""",
    "yolov5": """
sys.argv = ["train.py", *{words!r}]
import runpy
runpy.run_module("yolov5.train", run_name="__main__")
""",
    "ultralytics": """
sys.argv = ["yolo", "train", *{words!r}]
from ultralytics.cfg import entrypoint
entrypoint()
""",
}
HELP = {
    OURS: ["train.py", "--help"],
    "yolov5": ["-m", "yolov5.train", "--help"],
    "ultralytics": [
        "-c",
        "import sys; sys.argv = ['yolo', 'help']; from ultralytics.cfg import entrypoint; entrypoint()",
    ],
}
IMPORT = {
    OURS: "import engine.run, engine.task",
    "yolov5": "import yolov5.train",
    "ultralytics": "from ultralytics import YOLO; from ultralytics.models.yolo.detect import DetectionTrainer",
}


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if options.demo:
        options.data, options.imgsz, options.batch_size = DEMO["data"], DEMO["imgsz"][0], DEMO["batch_size"]
    pythons = {OURS: sys.executable, **read_peers([] if options.demo else options.peer)}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), read_data(options.data), options)
        figures = measure(bench, pythons, options.rounds)
    print(report(figures, options, words))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", default="demo.yaml")
    made.add_argument("--demo", action="store_true", help="the first step is that of `train.py` without arguments")
    made.add_argument("--imgsz", type=int, default=320)
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--workers", type=int, default=0, help="of all sides")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    return made


class Bench:
    """Processes, and what they are asked to do.

    Args:
        folder: temporary; runs and what peers write about themselves.
    """

    def __init__(self, folder: Path, data: DataSpec, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.data = folder / "data.yaml"
        sources: Any = {split: list(getattr(data, split)) or None for split in ("train", "val")}
        content = {"path": str(data.path), **sources, "nc": data.num_classes, "names": list(data.names)}
        self.data.write_text(yaml.safe_dump(content), encoding="utf-8")
        (folder / "Arial.ttf").touch()  # a font that peers would fetch, for figures that are not drawn here
        own = {"YOLO_CONFIG_DIR": str(folder), "YOLOV5_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
        self.environment = {**os.environ, **own, "WANDB_MODE": "disabled"}

    def training(self, side: str) -> list[str]:
        """Arguments of a training of the side's smallest model from scratch."""
        given = self.options
        if side == "ultralytics":
            pairs = {
                "model": "yolov8n.yaml", "data": self.data, "epochs": 1, "imgsz": given.imgsz, "plots": False,
                "batch": given.batch_size, "workers": given.workers, "device": "cpu", "project": self.folder,
                "pretrained": False, "val": False,
            }  # fmt: skip
            return [f"{name}={value}" for name, value in pairs.items()]
        batch = ["--imgsz", given.imgsz, "--batch-size", given.batch_size, "--workers", given.workers, "--noplots"]
        words = [
            "--weights",
            "",
            "--cfg",
            "yolov5n.yaml",
            "--data",
            self.data,
            "--epochs",
            1,
            "--device",
            "cpu",
            *batch,
        ]
        return [str(word) for word in (*words, "--project", self.folder / side)]

    def demonstration(self) -> list[str]:
        """Arguments of `train.py` for what it does without any, but for where its results go."""
        return ["--device", "cpu", "--project", str(self.folder)]

    def first_step(self, side: str, python: str) -> dict[str, float]:
        """Seconds of the three figures that a training gives."""
        record = self.folder / f"{side}.json"
        record.unlink(missing_ok=True)
        watched = WATCHED.replace("RECORD", repr(str(record))).replace("BATCH", str(self.options.batch_size))
        words = self.demonstration() if self.options.demo else self.training(side)
        code = watched + TRAIN[side].format(root=str(ROOT), words=words)
        started = time.time()
        error = self.run(side, [python, "-c", code])
        if not record.exists():
            raise UserError(f"{side}: its training ended before the first step{f': {error}' if error else ''}")
        times = json.loads(record.read_text(encoding="utf-8"))
        step = times["step"]
        batch = {"first batch": step - times["batch"]} if "batch" in times else {}
        return {"first step": step - started, "behind torch": step - times["torch"], **batch}

    def spent(self, side: str, words: Sequence[str]) -> float:
        """Seconds of a whole process.

        Raises:
            UserError: it failed.
        """
        started = time.perf_counter()
        error = self.run(side, words)
        if error:
            raise UserError(f"{side}: {error}")
        return time.perf_counter() - started

    def run(self, side: str, words: Sequence[str]) -> str:
        """Runs a process; says nothing, or the last line of its errors where it failed."""
        place = ROOT if side == OURS else self.folder
        given: Any = {"cwd": place, "env": self.environment, "stdin": subprocess.DEVNULL, "timeout": PATIENCE}
        done = subprocess.run(list(words), capture_output=True, text=True, check=False, **given)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return (lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""


# -- measuring and report ----------------------------------------------------------------------------------------------


def measure(bench: Bench, pythons: Mapping[str, str], count: int) -> dict[str, dict[str, list[float]]]:
    """side -> figure -> seconds of each round."""
    jobs: dict[Any, Any] = {}
    for side, python in pythons.items():
        jobs[side, "import torch"] = lambda s=side, p=python: bench.spent(s, [p, "-c", "import torch"])
        jobs[side, "import"] = lambda s=side, p=python: bench.spent(s, [p, "-c", IMPORT[s]])
        jobs[side, "help"] = lambda s=side, p=python: bench.spent(s, [p, *HELP[s]])
        jobs[side, "training"] = lambda s=side, p=python: bench.first_step(s, p)
    found: dict[str, dict[str, list[float]]] = {side: {} for side in pythons}
    for (side, name), values in rounds(jobs, count).items():
        if name != "training":
            found[side][name] = values
            continue
        for figure in values[0]:
            found[side][figure] = [value[figure] for value in values]
    return found


def report(
    figures: Mapping[str, Mapping[str, Sequence[float]]], options: argparse.Namespace, words: Sequence[str]
) -> str:
    absent = ", ".join(side for side in SIDES if side not in figures)
    what = "The demonstration" if options.demo else "The smallest model from scratch"
    workers = "" if options.demo else f", {options.workers} workers"
    return "\n".join([
        f"{what}, {options.imgsz} px, batches of {options.batch_size}{workers}.",
        "",
        table(figures),
        "",
        f"Medians of {options.rounds} rounds.{f' Not measured: {absent}.' if absent else ''} "
        f"{machine('startup.py', words)}",
    ])  # fmt: skip


def table(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: a row a figure; seconds, and for peers how many times faster we are."""
    peers = [side for side in figures if side != OURS]
    rows = []
    for figure in ("import torch", *FIGURES):
        cells = [f"{statistics.median(found[figure]):.2f}" if figure in found else NONE for found in figures.values()]
        faster = [
            f"{ratio(figures[peer][figure], figures[OURS][figure]):.2f}" if figure in figures[peer] else NONE
            for peer in peers
        ]
        rows.append([figure, *cells, *faster])
    return markdown(["seconds", *figures, *(f"{peer} / here" for peer in peers)], rows)


if __name__ == "__main__":
    main()
