"""What the command line says of this run. Imports no torch, so that `--help` and a mistyped flag answer at once.

Every flag is a field of a frozen record, where its default stands. Dashes and underscores are the same, and the
spellings that people bring from YOLOv5 and YOLOv7 work; those of features that are not here are answered by name.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from engine.command_line import parse, spelling
from utils.config import from_mapping, to_mapping, write_mapping
from utils.errors import UserError
from utils.files import ROOT
from utils.hyp import read_hyp
from utils.yaml_file import read_yaml

log = logging.getLogger(__name__)

# what runs where the user names neither a model nor data; one flag of theirs replaces one entry
DEMO: Mapping[str, Any] = MappingProxyType(
    {
        "weights": "",
        "cfg": "yolov5p",
        "data": "demo.yaml",
        "hyp": ("hyp/demo.yaml",),
        "imgsz": (192, 192),
        "epochs": 13,
        "batch_size": 8,
        "workers": 0,  # its pictures are in memory: a worker would take more from the training than it gives
        "val_period": 4,
        "name": "demo",
        "t_weights": (str(ROOT / "weights" / "demo-teacher.pt"),),
        "d_feature": (),
        "baseline": False,
    }
)
# any of these: not the demo
_OWN_MATTER = frozenset({"weights", "cfg", "data", "t_weights", "t_cfg", "t_kind", "resume"})
# the rest of a resumed run's options is its own; a teacher may have moved
_RESUME_TAKES = frozenset(
    {
        "allow_download_scripts",
        "resume",
        "project",
        "device",
        "t_device",
        "workers",
        "cache",
        "augment_on",
        "compile",
        "amp",
        "verbose",
        "noplots",
        "save_interval",
        "t_weights",
    }
)


# -- the records ------------------------------------------------------------------------------------------------------


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


@dataclass(frozen=True)
class _Record:
    """What all scripts share."""

    data: str = ""
    batch_size: int = 16  # over all ranks
    imgsz: tuple[int, int] = (640, 640)  # height, width; rounded to the model's stride later
    single_cls: bool = False
    device: str = ""
    workers: int = field(default_factory=_default_workers)  # a rank
    project: str = "runs"
    name: str = "exp"
    exist_ok: bool = False
    noplots: bool = False
    verbose: bool = False
    allow_download_scripts: bool = False
    demo: bool = False  # the embedded default runs
    explicit: frozenset[str] = frozenset()  # fields that the command line names

    @property
    def runs_scripts(self) -> bool:
        """Whether scripts of the data set's file may be run: this command line must say so, an opt.yaml cannot."""
        return "allow_download_scripts" in self.explicit

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as opt.yaml and checkpoints hold it."""
        values = to_mapping(self)
        del values["explicit"], values["allow_download_scripts"]
        return values

    def save(self, path: Path | str) -> Path:
        return write_mapping(path, self.to_dict())


@dataclass(frozen=True)
class _Teachers:
    """What every script that has teachers shares."""

    t_weights: tuple[str, ...] = ()
    t_cfg: tuple[str, ...] = ()

    def teachers(self) -> list[tuple[str, str]]:
        """(weights, architecture) of each; '' where it is not given."""
        count = max(len(self.t_weights), len(self.t_cfg))
        cfgs = self.t_cfg if len(self.t_cfg) != 1 else self.t_cfg * count  # one is said of all
        return [(_at(self.t_weights, index), _at(cfgs, index)) for index in range(count)]


@dataclass(frozen=True)
class Options(_Record):
    """Of train.py."""

    weights: str = "yolov5s.pt"  # '' is from scratch
    cfg: str = ""
    hyp: tuple[str, ...] = ()  # the family's (`utils/family.py`)
    epochs: int = 100
    rect: bool = False
    multi_scale: bool = False
    quad: bool = False
    image_weights: bool = False
    cache: str = ""  # '', ram, disk, packed
    mosaic_pool: int = 64  # lately decoded images that mosaics are made of, where they are decoded anew; 0: all
    augment_on: str = "auto"  # auto, cpu, device
    optimizer: str | None = None  # None: the recipe's, else the family's
    lr_decay: str = "linear"  # linear, cosine, poly
    label_smoothing: float | None = None  # None: the recipe's
    close_mosaic: int | None = None  # None: the recipe's, else the family's
    freeze: tuple[int, ...] = ()  # as given; see `frozen_layers`
    noautoanchor: bool = False
    anchors: str = ""  # auto, predicted
    patience: int = 100  # 0 is never
    clip_grad: float = 10.0
    amp: str = "auto"  # auto, on, off, bf16, fp16
    sync_bn: bool = False
    compile: bool = False
    seed: int = 0
    noval: bool = False
    val_period: int = 1
    nosave: bool = False
    save_period: int = 0  # 0 is never
    save_interval: float = 10.0  # minutes; 0 is never
    resume: str | None = None  # '' is the most recent run of the project
    project: str = "runs/train"

    @property
    def frozen_layers(self) -> tuple[int, ...]:
        """`--freeze 10` is the first ten layers, `--freeze 3 5` those two."""
        return tuple(range(self.freeze[0])) if len(self.freeze) == 1 else self.freeze


@dataclass(frozen=True)
class DistillOptions(_Teachers, Options):
    """Of train_distill.py."""

    weights: str = ""
    t_kind: str | None = None  # None: the recipe's, else frozen
    t_device: str = ""  # '' is the student's
    t_imgsz: tuple[int, ...] = ()  # () is the student's
    d_output: tuple[str, ...] | None = None  # names; () and None: the recipe's, else the default
    d_feature: tuple[str, ...] | None = None  # names; (): the recipe's, else the default; None: none
    baseline: bool = False
    project: str = "runs/distill"


@dataclass(frozen=True)
class ValOptions(_Teachers, _Record):
    """Of val.py."""

    weights: tuple[str, ...] = ()
    cfg: str = ""
    batch_size: int = 16  # small: rectangular batches pad less, and the reference scores were recorded with it
    task: str = "val"  # train, val, test, speed
    conf_thres: float = 0.001
    iou_thres: float | None = None  # None: what the model's family is scored with
    max_det: int = 300
    rect: bool = True
    augment: bool = False
    nms: bool = False
    metric: str = ""  # yolov5, ultralytics; '' is what the first weights' family is scored with
    half: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_json: bool = False
    project: str = "runs/val"


R = TypeVar("R", bound=_Record)


# -- the scripts' doors -----------------------------------------------------------------------------------------------


def train_options(argv: Sequence[str] | None = None) -> Options:
    """Options of train.py; without any model or data, those of the embedded demo.

    Raises:
        UserError: an unknown or contradictory flag, a value out of range, no data.
    """
    options = _parse("train.py", Options, argv)
    if "cfg" in options.explicit and "weights" not in options.explicit:
        options = dataclasses.replace(options, weights="")
    if options.resume is None:
        _need(options, weights=True)
    return options


def distill_options(argv: Sequence[str] | None = None) -> DistillOptions:
    """Options of train_distill.py; without any model or data, those of the embedded demo.

    Raises:
        UserError: as `train_options`, or no teacher.
    """
    options = _parse("train_distill.py", DistillOptions, argv)
    if options.resume is None:
        if not options.t_weights:
            from engine.recipe import teacher_roles  # which imports this file

            teacher_roles(options, read_hyp(*options.hyp))  # some teachers need none
        _need(options, weights=True)
    return options


def val_options(argv: Sequence[str] | None = None) -> ValOptions:
    """Options of val.py.

    Raises:
        UserError: an unknown flag, a value out of range, no weights, no data.
    """
    options = _parse("val.py", ValOptions, argv)
    if not any(options.weights) and not options.t_weights:
        raise UserError("--weights is missing: name one or several checkpoints, such as --weights yolov5s.pt")
    _need(options, weights=False)
    return options


def _parse(script: str, record: type[R], argv: Sequence[str] | None) -> R:
    given = parse(script, sys.argv[1:] if argv is None else argv, record())
    explicit = frozenset(given)
    if issubclass(record, Options) and not explicit & _OWN_MATTER:
        fields = {item.name for item in dataclasses.fields(record)}
        embedded = {name: value for name, value in DEMO.items() if name in fields} | {"demo": True}
        if "d_output" in explicit:  # on its own it asks for outputs only
            embedded.pop("d_feature", None)
        given = embedded | given
    return record(**given, explicit=explicit)


def _at(values: tuple[str, ...], index: int) -> str:
    return values[index] if index < len(values) else ""


def _need(options: Options | ValOptions, weights: bool) -> None:
    if weights and not options.weights and not options.cfg:
        raise UserError(
            "--weights is missing: name a checkpoint, such as --weights yolov5n.pt, or an architecture to start "
            "from scratch, such as --cfg yolov5n"
        )
    if not options.data:
        raise UserError("--data is missing: name the YAML file of a data set, such as --data coco128.yaml")


# -- resuming ---------------------------------------------------------------------------------------------------------


def options_from_file(path: Path | str, record: type[R]) -> R:
    """The options of a run from its opt.yaml; `path` is that file, the run's folder, or weights in it."""
    path = Path(path)
    tried = [path / "opt.yaml", path.parent / "opt.yaml", path.parent.parent / "opt.yaml"]
    file = path if path.suffix in (".yaml", ".yml") else next((file for file in tried if file.is_file()), None)
    if file is None:
        raise UserError(f"{path}: no opt.yaml beside it; --resume continues a run folder of this repository")
    return options_from_dict(read_yaml(file), record, str(file))


def options_from_dict(mapping: Mapping[str, Any], record: type[R], where: str) -> R:
    """The inverse of `to_dict`; `where` starts the errors."""
    distilled = "t_weights" in mapping and "epochs" in mapping
    if issubclass(record, Options) and distilled != issubclass(record, DistillOptions):
        script = "train_distill.py" if distilled else "train.py"
        raise UserError(f"{where}: a run of {script}; resume it there")
    return from_mapping(mapping, record, where)


def resumed(options: R, stored: R) -> R:
    """The stored options of a run, with those of the command line that may change when it goes on.

    Raises:
        UserError: the command line names another one.
    """
    for name in sorted(options.explicit - _RESUME_TAKES):
        raise UserError(f"--resume goes on with the run's own options: leave out {spelling(name)}")
    changed = options.explicit - {"project"}  # it only says where to look
    for name in sorted(changed & {"workers", "cache"}):
        if getattr(stored, "mosaic_pool", 0) and getattr(options, name) != getattr(stored, name):
            log.info(
                "%s is not that of the run so far: where images are decoded anew, its mosaics will be made of other "
                "images than without the interruption (--mosaic-pool)",
                spelling(name),
            )
    return dataclasses.replace(stored, explicit=options.explicit, **{name: getattr(options, name) for name in changed})
