"""What a model scores on a data set, and how fast."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from engine.classes import shared_classes
from engine.precision import autocast, cpu_has_bf16
from models.inference import for_inference
from utils.boxes import clip, to_original, xywh_to_xyxy
from utils.matching import Metric, match
from utils.metrics import ConfusionMatrix, Evaluation, evaluate
from utils.nms import confident_rows, finite_rows, highest_scores, suppressed
from utils.types import Batch, DecodedRows, Prediction

if TYPE_CHECKING:
    from models.yolo import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detections:
    """What a model found in one image, beside what is there; boxes xyxy in pixels of the original image."""

    path: str
    height: int  # of the original image
    width: int
    found: NDArray[np.float32]  # (n, 6) box, confidence, class; the most confident first
    labels: NDArray[np.float32]  # (m, 5) class, box


@dataclass(frozen=True)
class Report:
    """What an evaluation came to."""

    evaluation: Evaluation
    speed_ms: tuple[float, float, float]  # pre-processing, inference, suppression; of one image
    losses: dict[str, float] | None  # mean of each term over the images, where a criterion was given
    confusion: ConfusionMatrix
    images: int
    detections: tuple[Detections, ...] = ()  # of every image, where they were asked for


class Evaluator:
    """Scores models on one loader: `evaluator(model)` returns a `Report`.

    What runs is a copy of the model in its form for inference, as it would be deployed (`models.inference`). Detections
    are matched in pixels of the original images. A model that knows other classes than the data is scored on those
    whose names agree.

    Args:
        loader: yields `Batch` with frames.
        conf, iou, max_det: of the non-maximum suppression; `iou` None is what each model's family is scored with.
            Models that need no suppression (`head.nms_free`) have none, unless passes of several sizes are merged.
        half: float16 on CUDA, bfloat16 on CPUs that have it; the head's last convolutions and decoding stay in float32.
        augment: test-time augmentation.
        single_class: every object is of class 0, whatever the model calls it.
        names: the classes of the data.
        metric: how mAP is counted, see `utils.metrics`: as in the family of the student, for whatever is beside it.
        collect: keeps the detections of every image in the report.
    """

    def __init__(
        self,
        loader: Any,
        device: torch.device,
        *,
        conf: float = 0.001,
        iou: float | None = 0.6,
        max_det: int = 300,
        half: bool = False,
        augment: bool = False,
        single_class: bool = False,
        names: Sequence[str],
        metric: Metric = "yolov5",
        collect: bool = False,
    ) -> None:
        self.loader = loader
        self.device = device
        self.conf = conf
        self.iou = iou
        self.max_det = max_det
        self.precision = _half_precision(device) if half else None
        self.augment = augment
        self.single_class = single_class
        self.names = tuple(names)
        self.metric = metric
        self.collect = collect

    def __call__(self, model: nn.Module, criterion: nn.Module | None = None, progress: bool = True) -> Report:
        """Scores the model, which must be on the device, and leaves it as it was.

        Args:
            criterion: its terms are averaged over the images into `Report.losses`.
            progress: shows a bar.

        Raises:
            UserError: the classes of the model and of the data have nothing to do with each other.
        """
        if criterion is not None and self.augment:
            raise ValueError("a loss is of one pass, not of an augmented one")
        detector = cast("Model", model)
        known = None if self.single_class else shared_classes(detector.names, detector.named, self.names)
        with torch.no_grad():
            running = for_inference(copy.deepcopy(detector).eval(), self.device, self.precision)
            return self._run(running, known, criterion, progress)

    def _run(
        self, model: Model, known: list[tuple[int, int]] | None, criterion: nn.Module | None, progress: bool
    ) -> Report:
        tally = _Tally(self.names, self.metric)
        clock = _Clock(self.device)
        overlap: float | None = model.spec.nms_iou if self.iou is None else self.iou
        if model.head.nms_free and not self.augment:
            overlap = None
        losses: dict[str, float] = {}
        images, not_finite, kept = 0, 0, []
        with tqdm(self.loader, desc="evaluating", disable=not progress, dynamic_ncols=True, unit="batch") as bar:
            for batch in bar:
                clock.start(len(batch.images))
                moved = batch.to(self.device, torch.channels_last)
                clock.lap(0)
                decoded, terms = self._forward(model, moved, criterion)
                clock.lap(1)
                not_finite += len(decoded.image[~finite_rows(decoded)].unique())
                found = self._select(decoded, known, overlap)
                clock.lap(2)

                for name, value in terms.items():
                    losses[name] = losses.get(name, 0.0) + float(value) * len(batch.images)
                images += len(batch.images)
                detections = list(self._in_originals(batch, found))
                tally.add(list(compress(detections, batch.labelled.tolist())))
                if self.collect:
                    kept += detections
                bar.set_postfix_str(f"{1000 / max(sum(clock.milliseconds), 1e-6):.1f} images/s", False)
        if not_finite:
            log.warning(
                "the model's output is not finite in %d of %d images; such boxes are ignored. %s",
                *(not_finite, images, "The weights hold inf or nan, or half precision overflows"),
            )
        return Report(
            evaluation=tally.evaluation(),
            speed_ms=clock.milliseconds,
            losses={name: total / images for name, total in losses.items()} if criterion is not None else None,
            confusion=tally.confusion,
            images=images,
            detections=tuple(kept),
        )

    def _forward(
        self, model: Model, batch: Batch, criterion: nn.Module | None
    ) -> tuple[DecodedRows, dict[str, Tensor]]:
        """The decoded rows that may count, and the criterion's terms."""
        with autocast(self.device, self.precision):
            if self.augment:
                return confident_rows(model.predict(batch.images, augment=True), self.conf), {}
            prediction = cast(Prediction, model(batch.images))
        prediction = prediction._replace(levels=tuple(level.float() for level in prediction.levels))
        head: Any = model.head
        decoded = head.decode_confident(prediction.levels, self.conf)
        return decoded, criterion(prediction, batch) if criterion is not None else {}

    def _select(self, decoded: DecodedRows, known: list[tuple[int, int]] | None, overlap: float | None) -> list[Tensor]:
        """Detections (n, 6) of each image in pixels of the tensor, on the CPU; classes are those of the data.

        Args:
            overlap: of suppression; None suppresses nothing.
        """
        if known is not None:
            columns = [0, 1, 2, 3, 4, *(5 + own for own, _ in known)]
            decoded = decoded._replace(rows=decoded.rows[:, columns])
        several = decoded.rows.shape[1] > 6
        if overlap is None:
            found = highest_scores(decoded, self.conf, self.max_det, multi_label=several and not self.single_class)
        else:
            found = suppressed(
                decoded, self.conf, overlap, self.max_det, multi_label=several, agnostic=self.single_class
            )
        found = [detections.cpu() for detections in found]
        for detections in found:
            if self.single_class:
                detections[:, 5] = 0
            elif known is not None:
                detections[:, 5] = torch.tensor([float(other) for _, other in known])[detections[:, 5].long()]
        return found

    def _in_originals(self, batch: Batch, found: Sequence[Tensor]) -> Iterator[Detections]:
        """Detections and labels of each image, in pixels of the original."""
        height, width = batch.images.shape[2:]
        targets = batch.targets.cpu()
        size = targets.new_tensor([width, height, width, height])
        corners = xywh_to_xyxy(targets[:, 2:6] * size)
        for index, (frame, path) in enumerate(zip(batch.frames, batch.paths, strict=True)):
            own = targets[:, 0] == index
            labels = torch.cat((targets[own, 1:2], to_original(corners[own], frame)), dim=1)
            # of a crop of the original, what lies beyond the tensor is not seen, though it is not beyond the original
            seen = clip(found[index][:, :4], (height, width))
            boxes = torch.cat((to_original(seen, frame), found[index][:, 4:]), dim=1)
            yield Detections(path, frame.height, frame.width, boxes.numpy(), labels.numpy())


class _Tally:
    """Collects what the scores are made of, image by image."""

    def __init__(self, names: Sequence[str], metric: Metric) -> None:
        self.names = tuple(names)
        self.metric = metric
        self.confusion = ConfusionMatrix(len(names))
        self.stats: list[tuple[Any, ...]] = []

    def add(self, images: Sequence[Detections]) -> None:
        found, labels = [one.found for one in images], [one.labels for one in images]
        for own, there, right in zip(found, labels, match(found, labels, metric=self.metric), strict=True):
            self.stats.append((right, own[:, 4], own[:, 5], there[:, 0]))
            self.confusion.update(own, there)

    def evaluation(self) -> Evaluation:
        return evaluate(self.stats, self.names, self.metric)


class _Clock:
    """Time of each stage. The first batch is left out where others follow: it warms the device up."""

    STAGES = 3  # as in Report.speed_ms

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batches: list[tuple[int, list[float]]] = []  # images, seconds a stage
        self.since = 0.0

    def start(self, images: int) -> None:
        self.batches.append((images, [0.0] * self.STAGES))
        self.since = self._now()

    def lap(self, stage: int) -> None:
        now = self._now()
        self.batches[-1][1][stage] += now - self.since
        self.since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @property
    def milliseconds(self) -> tuple[float, float, float]:
        """Of one image, a stage: the median over batches, which a disturbance does not move."""
        counted = self.batches[1:] or self.batches or [(1, [0.0] * self.STAGES)]
        pre, inference, suppression = (
            1000 * statistics.median(seconds[stage] / images for images, seconds in counted)
            for stage in range(self.STAGES)
        )
        return pre, inference, suppression


def _half_precision(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    log.info("--half: this %s has no fast half precision; float32 is used", device.type)
    return None
