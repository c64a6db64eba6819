"""What `benchmarks/validation.py` asks of YOLOv5 in its own Python: to score weights, to run the parts behind them."""

SNIPPET = """
import os, time
from pathlib import Path
import numpy as np
import torch
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the file is the one that `convert` writes
np.trapz = getattr(np, "trapz", None) or np.trapezoid  # which it asks for; numpy 2 has renamed it
import yolov5
from yolov5 import val
from yolov5.models.yolo import Model
from yolov5.utils.general import non_max_suppression
from yolov5.utils.metrics import ap_per_class
(Path(os.environ["YOLOV5_CONFIG_DIR"]) / "Arial.ttf").touch()  # a font that it would fetch, for figures not drawn here
torch.set_num_threads(THREADS)

def convert(state, cfg, names, file):
    model = Model(str(Path(yolov5.__file__).parent / "models" / cfg), nc=len(names))
    model.load_state_dict(torch.load(state))
    model.nc, model.names = len(names), dict(enumerate(names))
    torch.save({"model": model, "ema": None, "epoch": -1}, file)

def whole(**options):
    started = time.perf_counter()
    (precision, recall, map50, average, *_), *_ = val.run(
        half=False, plots=False, verbose=False, project=os.getcwd(), name="val", exist_ok=True, **options
    )
    return time.perf_counter() - started, float(average)

def read(folder):
    global decoded, labels
    decoded = [torch.from_numpy(np.load(file)) for file in sorted(Path(folder).glob("decoded*.npy"))]
    labels = [torch.from_numpy(np.load(file)) for file in sorted(Path(folder).glob("labels*.npy"))]

def parts(names, conf, iou, max_det):
    with torch.inference_mode():
        times, found = [time.perf_counter()], []
        for batch in decoded:
            found += non_max_suppression(batch, conf, iou, multi_label=True, max_det=max_det)
        times.append(time.perf_counter())
        levels = torch.linspace(0.5, 0.95, 10)
        right = [
            val.process_batch(own, marked, levels) if len(own) and len(marked)
            else torch.zeros(len(own), 10, dtype=torch.bool)
            for own, marked in zip(found, labels)
        ]
        times.append(time.perf_counter())
        stats = [(some, own[:, 4], own[:, 5], marked[:, 0]) for some, own, marked in zip(right, found, labels)]
        joined = [torch.cat(column).numpy() for column in zip(*stats)]
        average = ap_per_class(*joined, plot=False, names=dict(enumerate(names)))[5]
        times.append(time.perf_counter())
    return [after - before for before, after in zip(times, times[1:])], float(average.mean()), sum(map(len, found))
"""
