"""The flags of every script, as one table each: spelling, meaning, other spellings, and what values are right.

Defaults stand in the records of `engine/options.py`; `engine/command_line.py` turns a table into a parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from utils.config import Range, pick
from utils.errors import UserError
from utils.hyp import OPTIMIZERS


class Flag(NamedTuple):
    """One flag, as `argparse` takes it."""

    spelling: str  # as --help shows it
    help: str
    also: tuple[str, ...]  # other spellings
    arguments: Mapping[str, Any]

    @property
    def dest(self) -> str:
        return self.arguments.get("dest") or self.spelling.removeprefix("--").replace("-", "_")


Groups = tuple[tuple[str, tuple[Flag, ...]], ...]


def _flag(spelling: str, text: str, also: str = "", **arguments: Any) -> Flag:
    return Flag(spelling, text, tuple(also.split()), arguments)


def _switch(spelling: str, text: str, also: str = "", **arguments: Any) -> Flag:
    return _flag(spelling, text, also, action="store_true", **arguments)


def _number(kind: type, **limits: float) -> Callable[[str], Any]:
    """An argparse type: a number in a range."""
    noun, span = "a whole number" if kind is int else "a number", Range(**limits)

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value not in span:
            raise argparse.ArgumentTypeError(f"got '{text}', expected {noun} {span}")
        return value

    return convert


def _one_of(*choices: str) -> Callable[[str], str]:
    """An argparse type: one of a few words."""

    def convert(text: str) -> str:
        try:
            return pick(text, choices, "value")
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("value: ")) from error

    return convert


def _batch_size(text: str) -> int:
    return -1 if text == "-1" else int(_number(int, low=1)(text))


def _eval_batch_size(text: str) -> int:
    if text == "-1":
        raise argparse.ArgumentTypeError("-1 finds what training has room for; evaluation takes little: leave it out")
    return int(_number(int, low=1)(text))


def _save_period(text: str) -> int:
    return 0 if text == "-1" else int(_number(int, low=0)(text))  # -1 is YOLOv5's "never"


_IMGSZ = _flag(
    "--imgsz",
    "size in pixels, or height and width",
    also="--img --img-size --image-size",
    type=_number(int, low=32),
    nargs="+",
    metavar="N",
)
_HARDWARE = (
    _flag("--device", "cpu, 0, 0,1 (several: with torchrun); empty takes a GPU where there is one", metavar="D"),
    _flag("--workers", "loader processes a rank, 0 loads in the main process", type=_number(int, low=0), metavar="N"),
)
_SCRIPTS = _switch("--allow-download-scripts", "where images are absent, run the script that is `download:` of --data")
_RESULTS = (
    _flag("--project", "folder of the runs", metavar="DIR"),
    _flag("--name", "of this run's folder; a number is added where it is taken"),
    _switch("--exist-ok", "write into the folder even so"),
    _switch("--noplots", "no figures"),
    _switch("--verbose", "layer tables (the numbers that student_kd_layers means), every class"),
)

_TEACHERS = (
    _flag("--t_weights", "the teacher's checkpoint, or several", also="--teacher-weights", nargs="+", metavar="FILE"),
    _flag(
        "--t_cfg",
        "its architecture, where the file does not say",
        also="--teacher-cfg",
        nargs="+",
        metavar="CFG",
    ),
)

TRAIN_FLAGS: Groups = (
    (
        "what is trained, on what",
        (
            _flag("--weights", "checkpoint to start from, or a known name (yolov5s.pt); '' starts from scratch"),
            _flag("--cfg", "architecture: yolov5n ... yolov5x6, or a model YAML"),
            _flag("--data", "data set: a YAML file, or one of ours (coco, coco128, VOC, VisDrone, demo)"),
            _SCRIPTS,
            _switch("--single-cls", "treat all classes as one"),
            _flag("--freeze", "first N layers, or a list of layers", type=_number(int, low=0), nargs="+", metavar="N"),
            _flag("--resume", "go on with the last run, or with that of a last.pt or folder", nargs="?", const=""),
        ),
    ),
    (
        "recipe",
        (
            _flag(
                "--hyp",
                "hyper-parameters: files, or ours in hyp/ (finetune ...; default scratch-low, for models without"
                " anchors v8); of several, later ones override",
                nargs="+",
                metavar="FILE",
            ),
            _flag("--epochs", "passes over the training images", type=_number(int, low=1), metavar="N"),
            _flag(
                "--batch-size",
                "images a batch, over all GPUs; -1: what fits into memory, up to the recipe's nominal batch",
                also="--batch",
                type=_batch_size,
                metavar="N",
            ),
            _flag(
                "--optimizer",
                f"{', '.join(OPTIMIZERS)}; default the recipe's, else SGD, for models without anchors auto",
                type=_one_of(*OPTIMIZERS),
            ),
            _flag("--adam", "the same as --optimizer Adam", dest="optimizer", action="store_const", const="Adam"),
            _flag("--cos-lr", "cosine decay", dest="lr_decay", action="store_const", const="cosine"),
            _flag("--linear-lr", "linear decay (default)", dest="lr_decay", action="store_const", const="linear"),
            _flag("--poly-lr", "polynomial decay", dest="lr_decay", action="store_const", const="poly"),
            _flag("--label-smoothing", "default the recipe's", type=_number(float, low=0, below=1), metavar="E"),
            _flag(
                "--close-mosaic",
                "last N epochs without mosaic; default the recipe's, else 0, for models without anchors 10",
                type=_number(int, low=0),
                metavar="N",
            ),
            _flag("--patience", "stop after N epochs without gain, 0 never", type=_number(int, low=0), metavar="N"),
            _flag("--clip-grad", "largest norm of the gradient", type=_number(float, above=0), metavar="X"),
            _switch("--noautoanchor", "keep the anchors even if they fit the data badly"),
            _flag(
                "--anchors",
                "new ones: auto, from the labels; predicted, from the boxes that the starting weights predict",
                type=_one_of("auto", "predicted"),
                metavar="auto|predicted",
            ),
            _flag("--seed", "of all chance", type=_number(int, low=0), metavar="N"),
        ),
    ),
    (
        "images",
        (
            _IMGSZ,
            _switch("--rect", "batches of one aspect ratio instead of mosaic"),
            _switch("--multi-scale", "every batch at a random size, half to one and a half"),
            _switch("--quad", "a quarter of the images, each four times as large"),
            _switch("--image-weights", "draw images of badly detected classes more often"),
            _flag(
                "--cache",
                "keep decoded images in ram, on disk, or packed: in one file at the size of training",
                also="--cache-images",
                type=_one_of("ram", "disk", "packed"),
                nargs="?",
                const="ram",
                metavar="ram|disk|packed",
            ),
            _flag(
                "--mosaic-pool",
                "where images are decoded anew, mosaics are made of the last N that the worker decoded (64); 0: of all",
                type=_number(int, low=0),
                metavar="N",
            ),
            _flag(
                "--augment-on",
                "where training images are drawn: cpu, device, or auto (default): the device where that is a GPU and "
                "the cache is packed",
                type=_one_of("auto", "cpu", "device"),
                metavar="auto|cpu|device",
            ),
        ),
    ),
    (
        "hardware",
        (
            *_HARDWARE,
            _flag(
                "--amp",
                "mixed precision: auto, on, off, bf16, fp16",
                type=_one_of("auto", "on", "off", "bf16", "fp16"),
                nargs="?",
                const="on",
            ),
            _switch("--sync-bn", "batch statistics over all GPUs"),
            _switch("--compile", "compile student and teachers first: minutes that long runs on a GPU win back"),
        ),
    ),
    (
        "validation and results",
        (
            _switch("--noval", "validate after the last epoch only", also="--notest"),
            _flag("--val-period", "epochs between validations", type=_number(int, low=1), metavar="N"),
            _switch("--nosave", "save after the last epoch only"),
            _flag("--save-period", "keep every Nth epoch's weights, 0 none", type=_save_period, metavar="N"),
            _flag(
                "--save-interval",
                "minutes after which last.pt is written within an epoch, 0 never",
                type=_number(float, low=0),
                metavar="MINUTES",
            ),
            *_RESULTS,
        ),
    ),
)

DISTILL_FLAGS: Groups = (
    (
        "teacher",
        (
            *_TEACHERS,
            _flag(
                "--t_kind",
                "frozen (default), online: trained along, self: an average of the student; default the recipe's",
                type=_one_of("frozen", "online", "self"),
                metavar="frozen|online|self",
            ),
            _flag("--t_device", "of the teachers, where it is not the student's", metavar="D"),
            _flag(
                "--t_imgsz",
                "image size of the teachers, where it is not the student's",
                type=_number(int, low=32),
                nargs="+",
                metavar="N",
            ),
            _flag(
                "--d_output",
                "learn from outputs (default): these methods, or the recipe's; none for none",
                nargs="*",
                metavar="NAME",
            ),
            _flag(
                "--d_feature",
                "learn from features too: these methods, or the recipe's",
                nargs="*",
                metavar="NAME",
            ),
            _switch("--baseline", "first train the same student without a teacher, and compare"),
        ),
    ),
    *TRAIN_FLAGS,
)

VAL_FLAGS: Groups = (
    (
        "what is evaluated, on what",
        (
            _flag("--weights", "one checkpoint or several, compared in one table", nargs="+"),
            _flag("--cfg", "their architecture, where the file does not say"),
            *_TEACHERS,
            _flag("--data", "data set: a YAML file, or one of ours (coco, coco128, VOC, VisDrone, demo)"),
            _SCRIPTS,
            _flag("--task", "train, val, test: which images; speed", type=_one_of("train", "val", "test", "speed")),
            _switch("--single-cls", "treat all classes as one"),
        ),
    ),
    (
        "how",
        (
            _IMGSZ,
            _flag("--batch-size", "images a batch", also="--batch", type=_eval_batch_size, metavar="N"),
            _flag("--conf-thres", "least confidence", also="--conf", type=_number(float, low=0, high=1), metavar="P"),
            _flag(
                "--iou-thres",
                "overlap of suppression (default: 0.6, of YOLOv7 0.65, of models without anchors 0.7)",
                also="--iou",
                type=_number(float, low=0, high=1),
                metavar="P",
            ),
            _flag("--max-det", "detections an image", type=_number(int, low=1), metavar="N"),
            _switch("--rect", "batches of one aspect ratio (default)"),
            _flag("--no-rect", "square batches", dest="rect", action="store_false"),
            _switch("--augment", "test-time augmentation"),
            _switch("--nms", "of YOLOv10 and 26 the branch whose boxes overlap, with suppression"),
            _flag(
                "--metric",
                "how mAP is counted (default: as the scores of the first weights' family are published, yolov5 with "
                "anchors, ultralytics without)",
                type=_one_of("yolov5", "ultralytics"),
                metavar="WAY",
            ),
            _switch("--half", "half precision"),
        ),
    ),
    ("hardware", _HARDWARE),
    (
        "results",
        (
            _switch("--save-txt", "detections as one label file an image"),
            _switch("--save-conf", "with their confidence"),
            _switch("--save-json", "detections in COCO format, and pycocotools' figures beside ours"),
            *_RESULTS,
        ),
    ),
)

FLAGS: Mapping[str, Groups] = MappingProxyType(
    {"train.py": TRAIN_FLAGS, "train_distill.py": DISTILL_FLAGS, "val.py": VAL_FLAGS}
)

_NO_WANDB = "there is no Weights & Biases here; the run folder holds results.csv and TensorBoard events"
_NO_EVOLUTION = "there is no evolution of hyper-parameters here; name a recipe with --hyp"
_NUMBERS = "the run folder holds the numbers in results.csv and metrics.json"
# flags of the ancestors that are not here -> what to do instead
ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "--evolve": _NO_EVOLUTION,
        "--evolve-population": _NO_EVOLUTION,
        "--resume-evolve": _NO_EVOLUTION,
        "--bucket": "nothing is uploaded; copy the run folder where you want it",
        "--entity": _NO_WANDB,
        "--upload-dataset": _NO_WANDB,
        "--bbox-interval": _NO_WANDB,
        "--artifact-alias": _NO_WANDB,
        "--log-imgs": _NO_WANDB,
        "--log-artifacts": _NO_WANDB,
        "--ndjson-console": _NUMBERS,
        "--ndjson-file": _NUMBERS,
        "--local-rank": "start with torchrun --nproc_per_node N, which needs no such flag",
        "--v5-metric": "--metric yolov5 counts mAP as YOLOv5 does, and is the default with anchors",
        "--save-hybrid": "labels and detections are not mixed; use --save-txt",
        "--dnn": "weights run in PyTorch only; leave it out",
        "--no-trace": "models are never traced; leave it out",
        "--autobatch": "use --batch-size -1",
    }
)
