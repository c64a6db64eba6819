"""The same training step in the packages that users come from: code that their own Python runs, see `peers.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.step import Job
from data.spec import DataSpec
from utils.types import Batch

# What both peers are asked, whatever `make` gives: a model, its loss, and an average of its weights.
COMMON = """
import sys, time
import numpy, torch

held = {}

def now(device):
    # on a GPU a mark on its own time line, so that nobody waits within a step
    if not device.startswith("cuda"):
        return time.perf_counter()
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark

def wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()

def between(before, after):
    return after - before if isinstance(after, float) else before.elapsed_time(after) / 1000

def resident():
    with open("/proc/self/status") as file:
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.startswith("Vm")}
    return found["VmRSS"], found["VmHWM"]

def prepare(name, classes, file, device, threads):
    held.clear()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch = numpy.load(file)
    held["images"], held["targets"] = (torch.from_numpy(batch[key]) for key in ("images", "targets"))
    model, loss, average = make(name, classes, device, max(held["images"].shape[2:]))
    groups = {"weights": [], "norms": [], "biases": []}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "biases" if parameter_name.endswith("bias") else "norms" if parameter.ndim < 2 else "weights"
            groups[kind].append(parameter)
    decays = [{"params": found, "weight_decay": 5e-4 * (kind == "weights")} for kind, found in groups.items()]
    held["optimizer"] = torch.optim.SGD(decays, lr=1e-5, momentum=0.9, nesterov=True)
    held["scaler"] = torch.amp.GradScaler(device.split(":")[0], enabled=device.startswith("cuda"))
    held.update(model=model, loss=loss, average=average, device=device)

def step():
    model, optimizer, scaler, device = (held[name] for name in ("model", "optimizer", "scaler", "device"))
    wait(device)
    marks = [now(device)]
    images = held["images"].to(device, non_blocking=True).float() / 255
    with torch.autocast(device.split(":")[0], enabled=device.startswith("cuda"), dtype=torch.float16):
        prediction = model(images)
        marks.append(now(device))
        loss = held["loss"](prediction, images, held["targets"].to(device))
    marks.append(now(device))
    scaler.scale(loss).backward()
    marks.append(now(device))
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    marks.append(now(device))
    held["average"].update(model)
    marks.append(now(device))
    wait(device)
    names = ("forward", "loss", "backward", "optimizer", "average")
    parts = {name: between(before, after) for name, before, after in zip(names, marks, marks[1:])}
    return {"step": between(marks[0], marks[-1]), "teacher": 0.0, **parts}

def peak(count, **options):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # what the imports took for a moment is no peak of a step
    before = resident()[0]
    prepare(**options)
    for _ in range(count):
        step()
    if options["device"].startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resident()[1] - before
"""

SNIPPETS = {
    # gains as its published hyper-parameters, scaled as it says: by levels, classes and image size
    "yolov5": COMMON
    + """
import pathlib
import yolov5
from yolov5.models.yolo import Model
from yolov5.utils.loss import ComputeLoss
from yolov5.utils.torch_utils import ModelEMA

def make(name, classes, device, size):
    folder = pathlib.Path(yolov5.__file__).parent / "models"
    model = Model(str(folder / f"{name}.yaml"), ch=3, nc=classes).to(device).train()
    model.hyp = {
        "box": 0.05, "cls": 0.5 * classes / 80, "obj": (size / 640) ** 2, "cls_pw": 1.0, "obj_pw": 1.0,
        "anchor_t": 4.0, "fl_gamma": 0.0, "label_smoothing": 0.0,
    }
    compute = ComputeLoss(model)
    return model, lambda prediction, images, targets: compute(prediction, targets)[0].sum(), ModelEMA(model)
""",
    "ultralytics": COMMON
    + """
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import ModelEMA

def make(name, classes, device, size):
    model = DetectionModel(f"{name}.yaml", nc=classes, verbose=False).to(device).train()
    model.args = get_cfg()
    def loss(prediction, images, targets):
        batch = {"img": images, "batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:]}
        return model.loss(batch, prediction)[0].sum()
    return model, loss, ModelEMA(model)
""",
}


def publisher(model: str, peers: Sequence[str]) -> str:
    """Which of these peers has this architecture; '' for none."""
    wanted = "yolov5" if re.fullmatch(r"yolov5[nsmlx]", model) else "ultralytics"
    known = wanted == "yolov5" or re.fullmatch(r"yolo(v8|11|12|26)[nsmlx]|yolov9[tsmce]|yolov10[nsmblx]", model)
    return wanted if wanted in peers and known else ""


def wishes(job: Job, batch: Batch, data: DataSpec) -> dict[str, Any]:
    """What a peer needs to make the same step, the batch in a file."""
    file = job.folder / "batch.npz"
    np.savez(file, images=batch.images.numpy(), targets=batch.targets.numpy())
    return {
        "name": job.model,
        "classes": data.num_classes,
        "file": str(file),
        "device": str(job.device),
        "threads": torch.get_num_threads(),
    }
