"""A run from the outside: folder, data, device, student, loop, final scores. Both training scripts are built on it."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from torch import nn

from data.anchors import check_anchors, kmeans_anchors
from data.loader import eval_loader, train_loader
from data.spec import DataSpec, read_data
from engine.callbacks import Callback, Outcome
from engine.evaluator import Evaluator, Report
from engine.loggers.console import Console
from engine.loggers.figures import Figures
from engine.loggers.table import CsvTable
from engine.loggers.tensorboard import TensorBoard
from engine.optim import Timetable, build_optimizer, choose, decay_scale
from engine.options import Options, options_from_file, recipe, resumed
from engine.precision import choose_device, choose_precision, describe
from engine.trainer import Plan, Trainer
from losses.anchor import AnchorLoss
from models.weights import load_model, read_checkpoint
from models.yolo import Model
from utils import dist
from utils.errors import UserError
from utils.files import ROOT, run_folder, write_text
from utils.hyp import Hyp, hyp_to_dict, write_hyp
from utils.reproduce import seed_everything

log = logging.getLogger(__name__)

OptionsT = TypeVar("OptionsT", bound=Options)

ANCHOR_RECALL = 0.98  # below this share of reachable boxes, anchors are estimated from the labels


@dataclass
class Session(Generic[OptionsT]):
    """What the stages of one run share."""

    options: OptionsT
    hyp: Hyp
    data: DataSpec
    device: torch.device
    precision: torch.dtype | None
    folder: Path
    resuming: bool
    image_size: tuple[int, int] = (0, 0)
    loader: Any = None
    evaluator: Evaluator | None = None
    anchors: Any = None  # (L, A, 2) pixels: what every student of this run gets, once decided

    # -- stages, in the order in which a script calls them -------------------------------------------------------------

    def student(self, folder: Path | None = None) -> Model:
        """The student as it starts: the same weights each time it is asked for (the seed is set anew).

        When resuming, it is built from the run's own last.pt, anchors included.
        """
        seed_everything(self.options.seed)
        last = (folder or self.folder) / "weights" / "last.pt"
        if self.resuming and last.exists():
            model, _ = load_model(str(last))
        else:
            anchors = self.anchors if self.anchors is not None else self.hyp.anchors
            model, report = load_model(
                self.options.weights,
                self.options.cfg or None,
                num_classes=self.data.num_classes,
                names=self.data.names,
                anchors=anchors,
                anchors_from_cfg=True,
            )
            if report is not None:
                log.info("%s: %s", self.options.weights, report.line())
        freeze(model, self.options.frozen_layers)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def load_data(self, stride: int) -> None:
        """Loaders and evaluator, with image sides rounded up to multiples of `stride`."""
        options, world = self.options, dist.world_size()
        self.image_size = rounded_size(options.imgsz, stride)
        if options.batch_size % world:
            raise UserError(
                f"--batch-size {options.batch_size} is shared by {world} ranks; choose a multiple of {world}"
            )
        common: dict[str, Any] = {
            "image_size": self.image_size,
            "stride": stride,
            "single_class": options.single_cls,
            "workers": options.workers,
            "cache": options.cache,
            "pin_memory": self.device.type == "cuda",
        }
        with dist.main_first():
            self.loader = train_loader(
                self.data,
                self.hyp,
                batch_size=options.batch_size // world,
                seed=options.seed,
                rank=dist.rank(),
                world_size=world,
                rect=options.rect,
                image_weights=options.image_weights,
                quad=options.quad,
                **common,
            )
        if dist.is_main():
            half = self.device.type == "cuda" and self.precision is not None
            validation = eval_loader(self.data, "val", batch_size=2 * options.batch_size // world, **common)
            self.evaluator = Evaluator(
                validation, self.device, half=half, single_class=options.single_cls, names=self.data.names
            )

    def fit_anchors(self, model: Model) -> None:
        """Estimates anchors from the labels where the model's reach too few of them, or none are given by shape."""
        head: Any = model.head
        hyp = self.hyp
        asked = isinstance(hyp.anchors, (int, float)) and self.anchors is None
        if self.resuming or (self.options.noautoanchor and not asked):
            return
        shapes, labels = self.loader.dataset.shapes, self.loader.dataset.labels
        check = check_anchors(labels, shapes, head.anchors_px.cpu().numpy(), self.image_size, hyp.anchor_t)
        log.info(
            "anchors: %.2f of %.4f best possible recall, %.2f anchors a box above the threshold",
            *(check.recall, 1.0, check.anchors_above_threshold),
        )
        if check.recall >= ANCHOR_RECALL and not asked:
            return
        count = head.num_levels * head.num_anchors
        found = kmeans_anchors(labels, shapes, count, self.image_size, hyp.anchor_t, seed=self.options.seed)
        found = found.reshape(head.num_levels, head.num_anchors, 2)
        better = check_anchors(labels, shapes, found, self.image_size, hyp.anchor_t)
        if better.recall <= check.recall and not asked:
            log.info("anchors: k-means found none better; kept")
            return
        head.set_anchors_px(torch.as_tensor(found, dtype=torch.float32))
        log.info(
            "anchors: estimated from the labels, best possible recall %.4f: %s", better.recall, found.round().tolist()
        )

    def criterion(self, model: Model) -> AnchorLoss:
        head: Any = model.head
        return AnchorLoss(head, self.hyp, self.image_size).to(self.device)

    def fit(self, task: nn.Module, folder: Path | None = None, callbacks: tuple[Callback, ...] = ()) -> Outcome:
        """Trains a task to its end, or continues it, or finds that it is complete already."""
        options, folder = self.options, folder or self.folder
        task = task.to(self.device)
        if options.sync_bn:
            task = self._synchronised(task)
        iterations = options.epochs * len(self.loader)
        chosen = choose(self.hyp.optimizer or "SGD", self.hyp, iterations, self.data.num_classes)
        decays = self.hyp.weight_decay * decay_scale(options.batch_size, self.hyp.nominal_batch)
        optimizer = build_optimizer(task, chosen, decays)
        plan = self.plan(folder, Timetable(chosen, self.hyp, options.lr_decay, options.batch_size))
        watchers = self.watchers(folder) + callbacks if dist.is_main() else ()
        trainer = Trainer(task, optimizer, self.loader, self.evaluator, plan, watchers)
        last = folder / "weights" / "last.pt"
        if self.resuming and last.exists():
            saved = read_checkpoint(last)
            if saved.training is None:
                log.info("%s is complete: nothing to resume", last)
                return Outcome(folder, folder / "weights" / "best.pt", last, -1, -1.0, 0, 0.0)
            trainer.resume(saved.state, saved.training)
            log.info("resuming %s at epoch %d of %d", last, trainer.start_epoch + 1, options.epochs)
        return trainer.fit()

    def score(self, weights: Path) -> tuple[Model, Report]:
        """The model of a weights file, and what it scores on val: fused, in float32, with its detections. Rank 0."""
        assert self.evaluator is not None, "rank 0 alone has an evaluator"
        model, _ = load_model(str(weights))
        log.info("scoring %s", weights)
        evaluator = copy.copy(self.evaluator)
        evaluator.fuse, evaluator.collect, evaluator.precision = True, True, None
        return model, evaluator(model.to(self.device))

    def plan(self, folder: Path, timetable: Timetable) -> Plan:
        options = self.options
        return Plan(
            folder=folder,
            epochs=options.epochs,
            device=self.device,
            precision=self.precision,
            timetable=timetable,
            stride=self.loader.stride,
            seed=options.seed,
            patience=options.patience,
            val_period=options.val_period,
            validate=not options.noval,
            save=not options.nosave,
            save_period=options.save_period,
            close_mosaic=options.close_mosaic,
            multi_scale=options.multi_scale,
            quad=options.quad,
            image_weights=options.image_weights,
            clip_gradient=options.clip_grad,
            options=options.to_dict(),
            hyp=hyp_to_dict(self.hyp),
        )

    def watchers(self, folder: Path) -> tuple[Callback, ...]:
        """Console, results.csv, TensorBoard and figures."""
        found: list[Callback] = [Console(), CsvTable(folder / "results.csv"), TensorBoard(folder)]
        if not self.options.noplots:
            found.append(Figures(folder, self.data.names))
        return tuple(found)

    def _synchronised(self, task: nn.Module) -> nn.Module:
        if self.device.type != "cuda" or not dist.is_distributed():
            log.info("--sync-bn: needs several CUDA ranks; batch norms stay as they are")
            return task
        return nn.SyncBatchNorm.convert_sync_batchnorm(task)


@contextmanager
def open_session(options: OptionsT) -> Iterator[Session[OptionsT]]:
    """Device, ranks, run folder, options and recipe on disk before the first step; leaves the process group at the end.

    With --resume, the options and the recipe are those of the run that goes on.
    """
    resumed_folder = None if options.resume is None else find_run(options.resume, options.project)
    if resumed_folder is not None:
        options = resumed(options, options_from_file(resumed_folder, type(options)))
        options = replace(options, hyp=str(resumed_folder / "hyp.yaml"))
    device = choose_device(options.device)
    dist.start(device)
    try:
        precision = choose_precision(device, options.amp)
        log.info("%s", describe(device, precision))
        hyp = recipe(options)
        with dist.main_first():
            data = read_data(options.data)
        if options.single_cls and data.num_classes != 1:
            data = replace(data, num_classes=1, names=("item",))
        made = resumed_folder or (
            run_folder(options.project, options.name, options.exist_ok) if dist.is_main() else None
        )
        folder = Path(str(dist.from_main(made)))
        if dist.is_main() and resumed_folder is None:
            options.save(folder / "opt.yaml")
            write_hyp(folder / "hyp.yaml", hyp)
            write_text(folder / "environment.yaml", yaml.safe_dump(environment(device), sort_keys=False))
        log.info("results go to %s", folder)
        yield Session(options, hyp, data, device, precision, folder, resumed_folder is not None)
    finally:
        dist.stop()


def find_run(resume: str, project: str) -> Path:
    """The run folder that --resume means: of the newest last.pt under the project, or of a path in or to it."""
    if not resume:
        found = sorted(Path(project).glob("**/weights/last.pt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"--resume: no weights/last.pt under {project}; name a run folder or its last.pt")
        resume = str(found[-1])
    path = Path(resume)
    if not path.exists():
        raise UserError(f"--resume {resume}: no such file or folder; expected a run folder or its weights/last.pt")
    for folder in (path, *path.parents[:3]):  # the last of them: project/name/baseline/weights/last.pt
        if (folder / "opt.yaml").is_file():
            return folder
    raise UserError(f"--resume {resume}: no opt.yaml beside it; --resume continues a run folder of this repository")


def environment(device: torch.device) -> dict[str, str]:
    """What a run needs to be repeated, beside its options."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return "unknown"

    return {
        "command": " ".join(sys.argv),
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": str(len(git("status", "--porcelain").splitlines())),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "device": describe(device, None),
    }


def rounded_size(sides: tuple[int, int], stride: int) -> tuple[int, int]:
    """(height, width), each rounded up to a multiple of the stride, and said so."""
    height, width = sides
    size = (-(-height // stride) * stride, -(-width // stride) * stride)
    if size != (height, width):
        log.info("--imgsz %d %d: rounded up to %d %d, multiples of the stride %d", height, width, *size, stride)
    return size


def freeze(model: Model, layers: tuple[int, ...]) -> None:
    """Keeps these layers as they are."""
    count = len(model.model)
    if any(layer >= count for layer in layers):
        raise UserError(f"--freeze: the model has layers 0 to {count - 1}, got {max(layers)}")
    for layer in layers:
        model.model[layer].requires_grad_(False)
    if layers:
        log.info("frozen: layers %s", ", ".join(map(str, layers)))
