"""The recipe: hyper-parameters of training, augmentation, losses and distillation, read from a YAML file in `hyp/`.

The names and meanings are YOLOv5's, so that its published files load unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config import choice, from_mapping, number, to_mapping, write_mapping
from utils.errors import UserError, nearest
from utils.files import ROOT, home
from utils.phases import Phase
from utils.recipe_names import KEYS, RECIPES, UNUSED
from utils.yaml_file import read_yaml

log = logging.getLogger(__name__)

OPTIMIZERS = ("SGD", "MuSGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSProp", "auto")
SCHEDULES = ("constant", "linear", "cosine")
ASSIGNMENTS = ("ratio", "iou")

FOLDER = ROOT / "hyp"
DEFAULT = "scratch-low"


@dataclass(frozen=True)
class Schedule:
    """Weight of all distillation terms over time: from 1 down to `end`, 0 in the last `off_epochs` epochs."""

    kind: str = choice("constant", SCHEDULES)
    end: float = number(0.1, low=0, high=1)
    within: str = choice("run", ("run", "epoch"))  # the way from 1 to `end` is walked once, or in each epoch
    warmup_epochs: float = number(0.0, low=0)  # in which it rises from 0
    off_epochs: int = number(0, low=0)
    deepest_first: int = number(0, low=0)  # epochs at the start in which only the deepest pair of layers is compared


@dataclass(frozen=True)
class TeacherRole:
    """How one of the teachers teaches."""

    # frozen; online: trained along, with its own detection loss; self: an average (EMA) of the student
    kind: str = choice("frozen", ("frozen", "online", "self"))
    weight: float | None = number(None, above=0)  # of its terms; None: one over the number of teachers
    # of the average of its weights that guides, 0 for the weights themselves; "self" needs one
    ema: float | None = number(None, low=0, below=1)
    layers: tuple[int, ...] | None = number(None, low=0)  # None: teacher_kd_layers

    def __post_init__(self) -> None:
        if self.kind == "self" and self.ema == 0:
            raise ValueError("ema 0 would make the student its own copy, from which there is nothing to learn")
        if self.kind == "frozen" and self.ema:
            raise ValueError(f"ema {self.ema:g} is for teachers that move; a frozen one has no average")


@dataclass(frozen=True)
class Balance:
    """Automatic weights: a term that falls more slowly than the detection loss gets more (dynamic weight averaging)."""

    kind: str = choice("none", ("none", "dwa"))
    temperature: float = number(5.0, above=0)
    momentum: float = number(0.9, low=0, below=1)  # of the weights, from one epoch to the next


@dataclass(frozen=True)
class Hyp:
    """A recipe. Every number is as its file says; nothing rescales it in place."""

    # learning rate and its company
    lr0: float = number(0.01, above=0)
    lrf: float = number(0.01, low=0, high=1)  # final learning rate = lr0 * lrf
    momentum: float = number(0.937, low=0, below=1)  # of Adam and its kin: beta 1
    weight_decay: float = number(5e-4, low=0)
    warmup_epochs: float = number(3.0, low=0)
    warmup_iterations: int | None = number(None, low=0)  # instead of warmup_epochs
    warmup_momentum: float = number(0.8, low=0, below=1)
    warmup_bias_lr: float = number(0.1, low=0)
    nominal_batch: int = number(64, low=1)  # smaller batches accumulate their gradients up to it
    optimizer: str | None = choice(None, OPTIMIZERS)  # None: the family's (`utils/family.py`); the flag wins

    # detection loss
    box: float | None = number(None, low=0)  # None: the family's; 1 or more is meant for heads without anchors
    cls: float = number(0.5, low=0)
    cls_pw: float = number(1.0, above=0)  # weight of positives in the class BCE
    obj: float = number(1.0, low=0)
    obj_pw: float = number(1.0, above=0)
    anchor_t: float = number(4.0, low=1)  # largest ratio of target side to anchor side
    loss_ota: int = number(0, low=0, high=1)  # 1: of these matches, targets choose by what is predicted (dynamic k)
    assign: str = choice("ratio", ASSIGNMENTS)  # what anchors answer by: the ratio of sides, or the IoU of shapes
    assign_iou: float = number(0.5, low=0, below=1)  # of assign: iou; anchors above it answer, and the best one always
    ignore_iou: float = number(0.7, above=0, high=1)  # of assign: iou; predictions above it are never background
    # anchors a level, fitted to the data (3.4 means 3), or the anchors themselves: pixels w,h,w,h..., a row a level
    anchors: int | float | tuple[tuple[float, ...], ...] | None = number(None, above=0)
    fl_gamma: float = number(0.0, low=0)  # focal loss; 0 is plain BCE
    label_smoothing: float = number(0.0, low=0, below=1)

    # detection loss of heads without anchors, beside box and cls
    dfl: float = number(1.5, low=0)  # of the distributions of the sides, or of their distance where there are none
    tal_topk: int = number(10, low=1)  # cells that a target asks for
    tal_alpha: float = number(0.5, low=0)  # powers of class score and overlap in what they are chosen by
    tal_beta: float = number(6.0, low=0)
    small_objects: bool = False  # objects smaller than the finest cells are widened before cells are looked for

    # augmentation
    hsv_h: float = number(0.015, low=0, high=1)
    hsv_s: float = number(0.7, low=0, high=1)
    hsv_v: float = number(0.4, low=0, high=1)
    degrees: float = number(0.0, low=0, high=180)
    translate: float = number(0.1, low=0, high=1)
    scale: float = number(0.5, low=0, below=1)
    shear: float = number(0.0, low=0, below=90)  # degrees
    perspective: float = number(0.0, low=0, high=0.01)  # a share a pixel: beyond a thousandth the image folds over
    flipud: float = number(0.0, low=0, high=1)
    fliplr: float = number(0.5, low=0, high=1)
    mosaic: float = number(1.0, low=0, high=1)
    mixup: float = number(0.0, low=0, high=1)
    copy_paste: float = number(0.0, low=0, high=1)
    paste_in: float = number(0.0, low=0, high=1)  # objects of other images, with or without outlines
    close_mosaic: int | None = number(None, low=0)  # epochs at the end without mosaic; None: the family's

    # what is shown of an image, in evaluation too
    fixed_crop: tuple[float, float, float, float] | None = number(None, low=0, high=1)  # left, top, right, bottom
    letterbox: bool = True  # False: stretched to the training size, whatever the ratio

    # augmentation of SSD, for samples that are no mosaics
    photometric: float = number(0.0, low=0, high=1)
    expand: float = number(0.0, low=0, high=1)
    expand_ratio: float = number(4.0, low=1)  # largest sides of the canvas, over the image's
    # smallest overlaps (IoU) of a crop with an object, one of which is drawn; () is no crop
    min_iou_crop: tuple[float, ...] = number((), above=0, below=1)

    # distillation; None takes the default, {} none
    student_kd_layers: tuple[int, ...] | None = number(None, low=0)
    teacher_kd_layers: tuple[int, ...] | None = number(None, low=0)
    outputs: Mapping[str, Mapping[str, Any]] | None = None
    features: Mapping[str, Mapping[str, Any]] | None = None
    schedule: Schedule = field(default_factory=Schedule)
    balance: Balance = field(default_factory=Balance)
    phases: tuple[Phase, ...] = ()
    teachers: tuple[TeacherRole, ...] = ()  # one a teacher; () means that all are frozen
    # 0: all images count alike; 1: an image counts as much as student and teacher disagree on it
    difficulty: float = number(0.0, low=0, high=4)
    # confidence above which the teacher's boxes are labels of unlabelled images; None: they have none
    pseudo_labels: float | None = number(None, above=0, below=1)

    def __post_init__(self) -> None:
        _check_anchors(self.anchors)
        if self.loss_ota and self.assign == "iou":
            raise ValueError(
                "assign: iou is not for loss_ota: 1, which chooses among matches by ratio; set loss_ota: 0"
            )
        _check_crop(self.fixed_crop)
        _check_layers(self.student_kd_layers, self.teacher_kd_layers, self.teachers)
        for kind, methods in (("outputs", self.outputs), ("features", self.features)):
            for name, options in (methods or {}).items():
                _check_weight(f"{kind}.{name}.weight", options.get("weight", 1.0))


DISTILLATION_KEYS = (
    "student_kd_layers",
    "teacher_kd_layers",
    "outputs",
    "features",
    "schedule",
    "balance",
    "phases",
    "teachers",
    "difficulty",
    "pseudo_labels",
)


def distillation_keys(hyp: Hyp) -> tuple[str, ...]:
    """The distillation keys that this recipe sets, in the order of the record."""
    return tuple(key for key in DISTILLATION_KEYS if getattr(hyp, key) != getattr(Hyp(), key))


# -- files ------------------------------------------------------------------------------------------------------------


def read_hyp(*names: str | Path) -> Hyp:
    """The recipe in a file, or under one of the names that `resolve_hyp` knows; of several, later ones override.

    Raises:
        UserError: no such recipe, or an unknown key, a wrong type or range, a contradiction in it.
    """
    merged: dict[str, Any] = {}
    files = []
    for path in map(resolve_hyp, names):
        content = read_yaml(path)
        hyp_from_dict(content, _shown(path))  # alone first, so that a mistake is answered with its file
        files.append(_shown(path))
        merged |= _own_keys(content, _shown(path))
    return hyp_from_dict(merged, " + ".join(files), quiet=True)


def hyp_from_dict(mapping: Mapping[str, Any], where: str, quiet: bool = False) -> Hyp:
    """The recipe in a mapping, such as a checkpoint's; unused keys of other trainers are named in the log."""
    unused: dict[str, list[str]] = {}
    for key in filter(UNUSED.__contains__, mapping):
        unused.setdefault(UNUSED[key], []).append(key)
    if unused and not quiet:
        log.info("%s: not used here: %s", where, "; ".join(f"{' '.join(keys)} ({why})" for why, keys in unused.items()))
    return from_mapping(_own_keys(mapping, where), Hyp, where)


def _own_keys(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is ours, under our names."""
    for theirs, ours in KEYS.items():
        if theirs in mapping and ours in mapping:
            raise UserError(f"{where}: {theirs} and {ours} are the same; give one of them")
    return {KEYS.get(key, key): value for key, value in mapping.items() if key not in UNUSED}


def hyp_to_dict(hyp: Hyp) -> dict[str, Any]:
    """Plain data that `hyp_from_dict` reads back; keys without a value are left out."""
    return to_mapping(hyp)


def write_hyp(path: Path | str, hyp: Hyp) -> Path:
    """Writes a file that `read_hyp` reads back to an equal record."""
    return write_mapping(path, hyp_to_dict(hyp))


def resolve_hyp(name: str | Path) -> Path:
    """The file that is meant: an existing path, or a name of our recipes in any spelling people have in their notes.

    `scratch-low`, `hyp.scratch-low.yaml` and `data/hyps/hyp.scratch-low.yaml` all are `hyp/scratch-low.yaml`.
    """
    path = home(name)
    if path.is_file():
        return path
    known = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").lower().removeprefix("hyp.")
    stem = RECIPES.get(stem, stem)
    # a folder of the user's own that is misspelt must not turn into our recipe of that name
    if path.parent.name in ("", "hyp", "hyps", "data") and stem in known:
        if str(path) not in (stem, f"{stem}.yaml", f"hyp/{stem}.yaml"):
            log.info("--hyp %s: taking %s", name, _shown(known[stem]))
        return known[stem]
    if path.is_dir():
        raise UserError(f"--hyp {name}: is a folder, expected a YAML file")
    hint = nearest(stem, known) or ";"
    raise UserError(f"--hyp {name}: no such file{hint} our recipes: {', '.join(known)}")


def _shown(path: Path) -> str:
    """Our own files are shown from the root of the repository, others as given."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# -- contradictions ---------------------------------------------------------------------------------------------------


def _check_layers(
    student: tuple[int, ...] | None, teacher: tuple[int, ...] | None, roles: tuple[TeacherRole, ...] = ()
) -> None:
    own = [role.layers for role in roles if role.layers is not None]
    for layers in own:
        _check_layers(student, layers)
    if (student is None and teacher is None) or (own and teacher is None):
        return
    rule = "every student layer needs exactly one teacher layer"
    if student is None or teacher is None:
        given, absent = ("teacher", "student") if student is None else ("student", "teacher")
        raise ValueError(f"{given}_kd_layers is given and {absent}_kd_layers is not; {rule}")
    if len(student) != len(teacher):
        entries = "entry" if len(student) == 1 else "entries"
        raise ValueError(
            f"student_kd_layers has {len(student)} {entries} and teacher_kd_layers has {len(teacher)}; {rule}"
        )
    if not student:
        raise ValueError("student_kd_layers is empty; leave it out for the inputs of the head, or set features: {}")
    pairs = list(zip(student, teacher, strict=True))
    for index, pair in enumerate(pairs):
        if pair in pairs[:index]:
            raise ValueError(f"student layer {pair[0]} is paired with teacher layer {pair[1]} twice")


def _check_anchors(anchors: int | float | tuple[tuple[float, ...], ...] | None) -> None:
    if anchors is None:
        return
    if isinstance(anchors, (int, float)):
        if anchors < 1:
            raise ValueError(f"anchors: got {anchors}, expected a number of anchors a level of at least 1")
        return
    lengths = [len(row) for row in anchors]
    if not lengths or min(lengths) < 2 or lengths[0] % 2 or len(set(lengths)) > 1:
        raise ValueError(f"anchors: got rows of {lengths} numbers, expected rows of equal length: w, h, w, h ...")


def _check_crop(crop: tuple[float, float, float, float] | None) -> None:
    if crop is not None and not (crop[0] < crop[2] and crop[1] < crop[3]):
        raise ValueError(
            f"fixed_crop: got {list(crop)}, expected left, top, right, bottom as shares of the image, left below right "
            "and top below bottom"
        )


def _check_weight(where: str, weight: Any) -> None:
    several = isinstance(weight, list) and weight  # one a pair of layers
    for one in weight if several else (weight,):
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one < float("inf"):
            raise ValueError(f"{where}: got {weight!r}, expected a number of at least 0")
