"""Score weights on a data set, or compare a student with its teacher.

    python val.py --weights yolov5s.pt --data coco128.yaml                        # scores, curves, confusion matrix
    python val.py --weights runs/train/exp/weights/best.pt --data my.yaml --task test --verbose
    python val.py --weights student.pt --t_weights teacher.pt --data my.yaml      # one table of both, and a picture
    python val.py --weights student.pt baseline.pt --t_weights teacher.pt --data my.yaml
    python val.py --weights yolov5s.pt --data coco.yaml --save-json               # pycocotools' scores beside ours
    python val.py --weights yolov5s.pt --data coco128.yaml --task speed --half --device 0
    python val.py --weights yolo26n.pt --data coco.yaml --nms                     # its other branch, with suppression
    torchrun --nproc_per_node 8 val.py ...                                        # same arguments, same scores

Who is who: the first of --weights is the student, --t_weights the teacher, and further --weights are baselines (the
student trained without a teacher). Without --t_weights the last of several --weights is the teacher.
The run folder holds metrics.json, figures and, where several weights are compared, comparison.txt and comparison.jpg.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.options import ValOptions, val_options
from utils.errors import UserError, exits_cleanly

if TYPE_CHECKING:
    import torch

    from data.spec import DataSpec
    from distill.compare import Contender
    from engine.evaluator import Detections, Evaluator, Report
    from models.yolo import Model
    from utils.hyp import Hyp
    from utils.metrics import Metric

FEW_CLASSES = 30  # up to which a table lists every class unasked
SPEED_CONF, SPEED_IOU = 0.25, 0.45  # --task speed: what a deployed model runs with


class Candidate(NamedTuple):
    """A weights file to score."""

    role: str
    weights: Path
    model: Model
    hyp: Hyp | None  # with which it was trained, where the file says so


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = val_options(argv)  # before torch is imported: --help and a mistyped flag answer at once
    validate(options)


def validate(options: ValOptions) -> list[Contender]:
    """Scores every weights file, prints the tables and fills the run folder."""
    from engine.precision import choose_device
    from utils import dist

    device = choose_device(options.device)
    with dist.group(device):
        return score(options, device)


def score(options: ValOptions, device: torch.device) -> list[Contender]:
    """As `validate`, by all ranks together; what came of it is rank 0's to tell."""
    from data.spec import read_data
    from distill.compare import conclude, contender, write_metrics
    from engine.precision import describe
    from engine.start import family_of
    from utils import dist
    from utils.files import run_folder

    data = read_data(options.data, options.runs_scripts)
    if options.single_cls:
        data = data.as_single_class()
    candidates = load(options, device)
    if not options.single_cls:  # then whatever is found counts
        refuse_strangers(candidates, data)
    stride = max(one.model.stride for one in candidates)
    metric: Any = options.metric or family_of(candidates[0].model.spec).metric
    evaluator = build_evaluator(options, data, device, stride, metric, shown_alike(candidates))
    folder = dist.by_main(lambda: run_folder(options.project, options.name, options.exist_ok))
    if dist.is_main():
        print(f"{describe(device, evaluator.precision)}, {options.task} images of {data.source}")

    contenders: list[Contender] = []
    found: dict[str, tuple[Detections, ...]] = {}
    for index, one in enumerate(candidates):
        report = evaluator(one.model)
        if not dist.is_main():
            continue
        contenders.append(contender(one.weights, one.role, one.model, report.evaluation, report.speed_ms[1]))
        found.setdefault(one.role, report.detections)  # of several baselines the first is shown
        tell(one, report, options.verbose or (len(candidates) == 1 and data.num_classes <= FEW_CLASSES))
        store(report, data.names, folder / f"{index}-{one.role}" if len(candidates) > 1 else folder, options)
    if len(contenders) > 1:
        picture = not options.noplots
        print(f"\n{conclude(contenders, found, data.names, folder, picture=picture, all_classes=options.verbose)}")
    elif contenders:
        write_metrics(folder / "metrics.json", contenders)
        print(f"\nresults: {folder}")
    return contenders


def tell(one: Candidate, report: Report, every_class: bool) -> None:
    """The table of one model."""
    from distill.compare import class_table

    rows = class_table(report.evaluation).splitlines()
    print(f"\n{one.role}: {one.weights}", *(rows if every_class else rows[:2]), sep="\n")
    print("an image takes {:.1f} ms to prepare, {:.1f} ms to run, {:.1f} ms to suppress".format(*report.speed_ms))


def roles(options: ValOptions) -> list[tuple[str, str, str]]:
    """(role, weights, architecture) of each file, as this script's first lines say."""
    files = list(filter(None, options.weights))
    named = [("student" if index == 0 else "baseline", name, options.cfg) for index, name in enumerate(files)]
    if options.t_weights:
        return [*named, *(("teacher", weights, cfg or options.cfg) for weights, cfg in options.teachers())]
    if len(named) > 1:
        named[-1] = ("teacher", files[-1], next(iter(options.t_cfg), options.cfg))
    return named


def load(options: ValOptions, device: torch.device) -> list[Candidate]:
    """The models, on the device. Weights that do not fill their model are said so."""
    from models.weights import load_model, read_checkpoint, resolve_weights
    from utils.hyp import hyp_from_dict

    candidates = []
    for role, weights, cfg in roles(options):
        path = resolve_weights(weights)
        checkpoint = read_checkpoint(path)
        model, transfer = load_model(checkpoint, cfg or None)
        if transfer is not None and transfer.skipped:
            logging.warning("%s: %s", path, transfer.line())
        if options.nms and model.spec.two_branches:
            model.head.use("one_to_many")
        trained = checkpoint.meta.get("hyp")
        hyp = None if trained is None else hyp_from_dict(trained, str(path), quiet=True)
        candidates.append(Candidate(role, path, model.to(device), hyp))
    return candidates


def shown_alike(candidates: Sequence[Candidate]) -> Hyp | None:
    """The recipe of the first, which says what is shown of an image; warns where another was trained otherwise."""
    from data.view import View
    from utils.hyp import Hyp

    first = candidates[0].hyp
    for other in candidates[1:]:
        if View.of(other.hyp or Hyp()) != View.of(first or Hyp()):
            logging.warning(
                "%s was trained with another fixed_crop or letterbox; all see images as %s did",
                *(other.weights, candidates[0].weights),
            )
    return first


def refuse_strangers(candidates: Sequence[Candidate], data: DataSpec) -> None:
    """Raises UserError for weights that know none of the data's classes, before anything is scored or written."""
    from engine import classes

    for _, weights, model, _ in candidates:
        try:
            classes.refuse_strangers(model.names, model.named, data.names)
        except UserError as error:
            raise UserError(f"{weights}: {error}") from error


def build_evaluator(
    options: ValOptions,
    data: DataSpec,
    device: torch.device,
    stride: int,
    metric: Metric = "yolov5",
    hyp: Hyp | None = None,
) -> Evaluator:
    """One evaluator for all models: the same images, shown as `hyp` says, the same batches, one way to count."""
    from data.loader import eval_loader
    from engine.evaluator import Evaluator
    from engine.session import rounded_size
    from utils import dist

    speed = options.task == "speed"
    with dist.main_first():
        loader = eval_loader(
            data,
            "val" if speed else options.task,
            image_size=rounded_size(options.imgsz, stride),
            batch_size=options.batch_size,
            stride=stride,
            rect=options.rect and not speed,
            workers=options.workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
            single_class=options.single_cls,
            hyp=hyp,
        )
    return Evaluator(
        loader,
        device,
        conf=SPEED_CONF if speed and "conf_thres" not in options.explicit else options.conf_thres,
        iou=SPEED_IOU if speed and "iou_thres" not in options.explicit else options.iou_thres,
        max_det=options.max_det,
        half=options.half,
        augment=options.augment,
        single_class=options.single_cls,
        names=data.names,
        metric=metric,
        collect=not speed,
    )


def store(report: Report, names: Sequence[str], folder: Path, options: ValOptions) -> None:
    """Figures and files of one model."""
    from engine.report import draw_report, save_json, save_txt

    if options.task == "speed":
        return
    if not options.noplots:
        draw_report(report, names, folder)
    if options.save_txt:
        print(f"label files in {save_txt(report.detections, folder / 'labels', options.save_conf)}")
    if options.save_json and (scores := save_json(report.detections, names, folder)):
        ours = report.evaluation
        print(f"mAP50-95 {ours.map:.4f} mAP50 {ours.map50:.4f} here")
        print(f"mAP50-95 {scores.map:.4f} mAP50 {scores.map50:.4f} by pycocotools, from {scores.source}")


if __name__ == "__main__":
    main()
