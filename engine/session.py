"""The stages of a run: student, data, batch, anchors, loss, training, scores. Both training scripts are built on it."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from data.device_loader import DeviceLoader, draws_on_device
from data.loader import eval_loader, train_loader
from data.spec import DataSpec
from engine.anchors import fit_anchors
from engine.auto_batch import settle_batch
from engine.callbacks import Callback, Outcome
from engine.compiled import compile_networks
from engine.evaluator import Evaluator, Report
from engine.faults import Peaks
from engine.loggers.console import Console
from engine.loggers.dispensable import Dispensable
from engine.loggers.figures import Figures
from engine.loggers.table import CsvTable
from engine.loggers.tensorboard import TensorBoard
from engine.optim import Timetable, build_optimizer, choose, decay_scale
from engine.options import Options, ValOptions
from engine.plan import Plan
from engine.runs import fits, forget_earlier_run
from engine.start import family_of
from engine.trainer import Trainer
from losses.build import build_criterion
from models.summary import describe as summary
from models.summary import layer_table
from models.weights import Checkpoint, load_model, read_checkpoint
from models.yolo import Model
from utils import dist
from utils.allocator import settled
from utils.errors import UserError
from utils.family import ANCHORS, Family, for_family
from utils.hyp import Hyp, hyp_to_dict
from utils.reproduce import seed_everything

log = logging.getLogger(__name__)

OptionsT = TypeVar("OptionsT", bound=Options)


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
    start: Checkpoint | None = None  # what is in the file of --weights, where it was read already
    family: Family = ANCHORS  # of the student
    image_size: tuple[int, int] = (0, 0)
    loader: Any = None
    evaluator: Evaluator | None = None
    anchors: list[list[float]] | None = None  # rows of pixels: what every student of this run gets, once decided
    begun: bool = False  # something was trained: the folder is worth keeping
    peaks: Peaks = field(default_factory=Peaks)

    def continues(self, folder: Path | None = None) -> bool:
        """Whether what is trained in this folder (of the run, or of its baseline) was begun before."""
        return self.resuming and ((folder or self.folder) / "weights" / "last.pt").exists()

    # -- stages, in the order in which a script calls them -------------------------------------------------------------

    def student(self, folder: Path | None = None) -> Model:
        """The student as it starts: the same weights each time it is asked for (the seed is set anew).

        When resuming, it is built from the run's own last.pt, anchors included.
        """
        seed_everything(self.options.seed)
        if self.continues(folder):
            model, _ = load_model(str((folder or self.folder) / "weights" / "last.pt"))
        else:
            model, report = load_model(
                self.options.weights if self.start is None else self.start,
                self.options.cfg or None,
                num_classes=self.data.num_classes,
                names=self.data.names if self.data.named else None,
                anchors=self.hyp.anchors if self.anchors is None else self.anchors,
                anchors_from_cfg=True,
            )
            if report is not None:
                level = logging.INFO if 2 * report.taken >= report.total else logging.WARNING
                log.log(level, "%s: %s", self.options.weights, report.line())
        if dist.is_main():
            log.info("%s", layer_table(model) if self.options.verbose else summary(model))
        freeze(model, self.options.frozen_layers)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def load_data(self, stride: int, unlabelled: bool = False) -> None:
        """Loaders and evaluator, with image sides rounded up to multiples of `stride`.

        Args:
            unlabelled: whether the data set's images without labels join in.
        """
        options, world = self.options, dist.world_size()
        self.image_size = rounded_size(options.imgsz, stride)
        if max(self.image_size) == stride:
            raise UserError(f"--imgsz {stride} leaves the coarsest map a single cell; train with at least {2 * stride}")
        batch_size = self._shared_batch(world)
        common: dict[str, Any] = {
            "image_size": self.image_size,
            "stride": stride,
            "single_class": options.single_cls,
            "workers": options.workers,
            "cache": options.cache,
            "pin_memory": self.device.type == "cuda",
        }
        with dist.main_first():
            loader = train_loader(
                self.data,
                self.hyp,
                batch_size=batch_size // world,
                seed=options.seed,
                rank=dist.rank(),
                world_size=world,
                rect=options.rect,
                image_weights=options.image_weights,
                quad=options.quad,
                unlabelled=unlabelled,
                mosaic_pool=options.mosaic_pool,
                **common,
            )
            validation = eval_loader(
                self.data,
                "val",
                # of val.py's size: how rectangular batches are padded, and so the scores, depend on it
                batch_size=ValOptions.batch_size,
                rank=dist.rank(),
                world_size=world,
                hyp=self.hyp,
                **common,
            )
        on_device = draws_on_device(loader, options.augment_on, self.device, options.quad)
        self.loader = DeviceLoader(loader, self.device) if on_device else loader
        self.evaluator = Evaluator(
            validation,
            self.device,
            iou=None,
            half=self.device.type == "cuda" and self.precision is not None,
            single_class=options.single_cls,
            names=self.data.names,
            metric=self.family.metric,
        )

    def _shared_batch(self, world: int) -> int:
        """Images of a batch, over all ranks; of -1, which is settled when it is known what the steps are, some number:
        whatever stands here until then takes no memory."""
        wanted = self.options.batch_size
        if wanted < 0:
            return type(self.options).batch_size * world
        equal = wanted // world * world
        if equal != wanted and not (self.resuming and equal):
            raise UserError(f"--batch-size {wanted} is shared by {world} ranks; choose a multiple of {world}")
        if equal != wanted:  # machines have come or gone, and nobody is there to be asked
            if dist.is_main():
                log.warning("--batch-size %d cannot be shared by %d ranks: %d from here on", wanted, world, equal)
            self.options = replace(self.options, batch_size=equal)
        return equal

    def settle_batch(self, task: nn.Module) -> None:
        """Turns --batch-size -1 into a number, before anything is trained: for this task and what is trained beside."""
        if self.options.batch_size > 0:
            return
        size = settle_batch(self, task.to(self.device))
        self.options = replace(self.options, batch_size=size)
        self.loader.set_batch_size(size // dist.world_size())
        if dist.is_main():
            self.options.save(self.folder / "opt.yaml")  # so that --resume has it

    def fit_anchors(self, model: Model) -> None:
        """Checks the anchors of a student against the labels; what is estimated instead, later students get too.

        A head without anchors is passed over.
        """
        if model.spec.anchor_free or self.continues() or (self.options.noautoanchor and not model.head.provisional):
            return
        options, mode = self.options, self.options.anchors or "check"
        images, threshold = self.loader.dataset, self.hyp.anchor_t
        if fit_anchors(model, images, self.image_size, threshold, options.seed, mode, options.workers):
            self.anchors = model.head.anchors_px.flatten(1).tolist()

    def criterion(self, model: Model) -> Any:
        """The detection loss of a student, or of a teacher that learns along; its `gains` are the terms' weights."""
        hyp = for_family(self.hyp, family_of(model.spec))  # such a teacher may be of the other kind
        return build_criterion(model.head, hyp, self.image_size).to(self.device)

    def fit(
        self,
        task: Any,
        folder: Path | None = None,
        callbacks: tuple[Callback, ...] = (),
        hyp: Hyp | None = None,
    ) -> Outcome:
        """Trains a task to its end, or continues it, or finds that it is complete already.

        Args:
            hyp: instead of the session's; a baseline leaves out the phases.
        """
        task = task.to(self.device)
        self.settle_batch(task)
        options, folder, hyp = self.options, folder or self.folder, hyp or self.hyp
        if options.sync_bn:
            task = self._synchronised(task)
        iterations = options.epochs * len(self.loader)
        assert hyp.optimizer is not None, "`recipe` names one"
        chosen = choose(hyp.optimizer, hyp, iterations, self.data.num_classes)
        decays = hyp.weight_decay * decay_scale(options.batch_size, hyp.nominal_batch)
        optimizer = build_optimizer(task, chosen, decays)
        plan = self.plan(folder, Timetable(chosen, hyp, options.lr_decay, options.batch_size))
        watchers = self.watchers(folder) + callbacks if dist.is_main() else ()
        seed_everything(options.seed)  # whatever was done before, such as a baseline, leaves no trace in this training
        if options.compile:
            one_shape = not (options.multi_scale or options.rect)
            # graphs write gradients into memory of their own, so these must not wait for the next batch
            waits = round(hyp.nominal_batch / options.batch_size) > 1
            compile_networks(task.networks(), one_shape, graphs=one_shape and not waits)
        trainer = Trainer(task, optimizer, self.loader, self.evaluator, plan, watchers)
        if self.continues(folder):
            last = folder / "weights" / "last.pt"
            saved = read_checkpoint(last)
            if saved.training is None:
                log.info("%s is complete: nothing to resume", last)
                return Outcome(folder, folder / "weights" / "best.pt", last, -1, -1.0, 0, 0.0)
            with fits(last):
                trainer.resume(saved.state, saved.training)
            log.info("resuming %s at epoch %d of %d", last, trainer.start_epoch + 1, options.epochs)
        log.info("results go to %s", folder)
        if dist.is_main() and not (self.begun or self.resuming):
            forget_earlier_run(self.folder)
        self.begun = True
        with settled():  # reading many images and labels has taken more than training will
            return trainer.fit()

    def score(self, weights: Path, cfg: str = "") -> tuple[Model, Report]:
        """The model of a weights file, and what it scores on val: in float32, with its detections.

        All ranks call it; rank 0 reads the file, which it may just have written.
        """
        assert self.evaluator is not None, "`load_data` makes it"
        model, _ = load_model(dist.by_main(lambda: read_checkpoint(weights)), cfg or None)
        log.info("scoring %s", weights)
        evaluator = copy.copy(self.evaluator)
        evaluator.collect, evaluator.precision = True, None
        return model, evaluator(model.to(self.device))

    def plan(self, folder: Path, timetable: Timetable) -> Plan:
        options, hyp = self.options, timetable.hyp
        return Plan(
            folder=folder,
            epochs=options.epochs,
            device=self.device,
            precision=self.precision,
            timetable=timetable,
            stride=self.loader.stride,
            seed=options.seed,
            patience=0 if hyp.phases else options.patience,  # a phase without labels is no reason to stop
            val_period=options.val_period,
            validate=not options.noval,
            save=not options.nosave,
            save_period=options.save_period,
            save_interval=options.save_interval,
            close_mosaic=hyp.close_mosaic or 0,
            multi_scale=options.multi_scale,
            quad=options.quad,
            image_weights=options.image_weights,
            clip_gradient=options.clip_grad,
            compile=options.compile,
            options=options.to_dict(),
            hyp=hyp_to_dict(hyp),
        )

    def watchers(self, folder: Path) -> tuple[Callback, ...]:
        """Console, results.csv, TensorBoard and figures."""
        found: list[Callback] = [CsvTable(folder / "results.csv"), TensorBoard(folder)]
        if not self.options.noplots:
            found.append(Figures(folder, self.data.names))
        return Console(), self.peaks, *map(Dispensable, found)

    def _synchronised(self, task: nn.Module) -> nn.Module:
        if self.device.type != "cuda" or not dist.is_distributed():
            log.info("--sync-bn: needs several CUDA ranks; batch norms stay as they are")
            return task
        return nn.SyncBatchNorm.convert_sync_batchnorm(task)


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
        raise UserError(f"--freeze: layer {max(layers)} is to be frozen, but the model has layers 0 to {count - 1}")
    for layer in layers:
        model.model[layer].requires_grad_(False)
    if layers:
        log.info("frozen: layers %s", ", ".join(map(str, layers)))
