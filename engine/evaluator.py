"""What a model scores on a data set, and how fast."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from engine.classes import shared_classes
from engine.precision import autocast, cpu_has_bf16
from engine.tally import Clock, Tally, joined
from models.inference import for_inference
from utils import dist
from utils.boxes import clip, to_original, xywh_to_xyxy
from utils.matching import Metric
from utils.metrics import ConfusionMatrix, Evaluation
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
    # of every image, where they were asked for; on other ranks than the first, of the images that these have seen
    detections: tuple[Detections, ...] = ()


class Evaluator:
    """Scores models on one loader: `evaluator(model)` returns a `Report`.

    What runs is a copy of the model in its form for inference, as it would be deployed (`models.inference`). Detections
    are matched in pixels of the original images. A model that knows other classes than the data is scored on those
    whose names agree.

    Several ranks share the work: all call it, and all get the report that one rank would have come to.

    Args:
        loader: yields `Batch` with frames; under several ranks those of its turns, see `data.sampler.EvalSampler`.
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
            own = self._run(running, known, criterion, progress and dist.is_main())
        shares = dist.to_main(own)
        whole = own if shares is None else joined(shares)
        report = dist.by_main(lambda: self._report(whole, criterion is not None))
        return replace(report, detections=whole.detections())  # which are not sent back to the other ranks

    def _run(
        self, model: Model, known: list[tuple[int, int]] | None, criterion: nn.Module | None, progress: bool
    ) -> Tally:
        """What this rank's batches come to."""
        tally = Tally(len(self.names), self.metric)
        clock = Clock(self.device)
        overlap: float | None = model.spec.nms_iou if self.iou is None else self.iou
        if model.head.nms_free and not self.augment:
            overlap = None
        with tqdm(self.loader, desc="evaluating", disable=not progress, dynamic_ncols=True, unit="batch") as bar:
            for batch in bar:
                clock.start()
                moved = batch.to(self.device, torch.channels_last)
                clock.lap()
                decoded, terms = self._forward(model, moved, criterion)
                clock.lap()
                broken = len(decoded.image[~finite_rows(decoded)].unique())
                found = self._select(decoded, known, overlap)
                clock.lap()

                detections = list(self._in_originals(batch, found))
                tally.add(detections, batch.labelled.tolist(), terms, clock.laps, broken, self.collect)
                bar.set_postfix_str(f"{1000 / max(sum(tally.speed_ms()), 1e-6):.1f} images/s", False)
        return tally

    def _report(self, tally: Tally, with_losses: bool) -> Report:
        if tally.not_finite:
            log.warning(
                "the model's output is not finite in %d of %d images; such boxes are ignored. %s",
                *(tally.not_finite, tally.images, "The weights hold inf or nan, or half precision overflows"),
            )
        return Report(
            evaluation=tally.evaluation(self.names),
            speed_ms=tally.speed_ms(),
            losses=tally.losses() if with_losses else None,
            confusion=tally.confusion,
            images=tally.images,
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


def _half_precision(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    log.info("--half: this %s has no fast half precision; float32 is used", device.type)
    return None
