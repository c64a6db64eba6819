"""Loaders: a data set's file in, batches out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import DataLoader, get_worker_info

from data.batch import Sample, collate, collate_quad
from data.dataset import EvalImages, LabelledImages, TrainImages
from data.labels import Labels, read_labels, require_boxes
from data.picture import Size
from data.sampler import EvalSampler, TrainSampler, rectangles, squares, weigh_images
from data.spec import DataSpec
from data.store import FORKS
from data.unlabelled import with_unlabelled
from data.view import View, open_images
from utils.allocator import settle
from utils.hyp import Hyp
from utils.interruption import leave_signals_to_parent
from utils.opencv import one_thread
from utils.types import Batch

log = logging.getLogger(__name__)


class Loader:
    """Yields `Batch`; as long as a pass over the data."""

    def __init__(
        self, dataset: LabelledImages, sampler: TrainSampler | EvalSampler, *, stride: int, image_size: Size,
        workers: int, pin_memory: bool, join: Callable[[Sequence[Sample]], Batch] = collate,
    ) -> None:  # fmt: skip
        self.dataset = dataset
        self.sampler = sampler
        self.stride = stride
        self.image_size = image_size
        self.workers = workers
        self._forked = False  # workers stay
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=partial(_handed_over, join),
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            # forked workers share labels and cached images with us; elsewhere they get copies
            multiprocessing_context="fork" if workers and FORKS else None,
            persistent_workers=workers > 0,
            # without its own generator a loader draws from torch's, and a run would depend on how often it is read
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self._joined()

    def _joined(self) -> Iterator[Any]:
        if self.workers and FORKS and not self._forked:
            settle()
            self._forked = True
        return iter(self._loader)


class TrainLoader(Loader):
    """Augmented batches; an epoch depends on the seed and its number alone."""

    dataset: TrainImages
    sampler: TrainSampler

    def set_epoch(self, epoch: int, mosaic: bool = True, first: int = 0) -> None:
        """To be called before each epoch.

        Args:
            mosaic: False (--close-mosaic) leaves mosaic, mixup and paste_in out.
            first: the batch to begin with, in an epoch that goes on; the length remains that of a whole one.
        """
        self.sampler.epoch = epoch
        self.sampler.mosaic = mosaic
        self.sampler.first = first

    def set_batch_size(self, batch_size: int) -> None:
        """Images a batch, of this rank; before the first batch is asked for."""
        labels, sampler = self.dataset.labels, self.sampler
        if sampler.rectangles is not None and batch_size != sampler.batch_size:
            sampler.rectangles = rectangles(
                labels.shapes, batch_size, self.image_size, self.stride, 0.0, labels.labelled
            )
        sampler.batch_size = batch_size
        groups = 2 if labels.unlabelled else 1  # labelled and unlabelled images have a pool each
        self.dataset.store.remember(groups * sampler.pool + batch_size if sampler.pool else 0)

    def set_image_weights(self, per_class: ArrayLike | None) -> None:
        """Draws images with replacement, those with heavy classes more often (--image-weights); None: each once.

        Args:
            per_class: (C,), such as (1 - mAP)²; it is divided by the number of boxes of each class.
        """
        weights = None if per_class is None else weigh_images(self.dataset.labels, np.asarray(per_class, np.float64))
        self.sampler.weights = weights


def train_loader(
    spec: DataSpec,
    hyp: Hyp,
    *,
    image_size: Size,
    batch_size: int,
    stride: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    cache: str = "",
    rect: bool = False,
    image_weights: bool = False,
    single_class: bool = False,
    quad: bool = False,
    augment: bool = True,
    unlabelled: bool = False,
    mosaic_pool: int = 0,
    pin_memory: bool = False,
) -> TrainLoader:
    """Batches of the training images.

    Args:
        image_size: height and width.
        batch_size: of this rank.
        rect: batches of similar images, padded no more than they need; without mosaic.
        image_weights: see `TrainLoader.set_image_weights`.
        quad: four images as one of twice the height and width.
        augment: False only letterboxes, or stretches.
        unlabelled: an epoch has the data set's unlabelled images too, if it has any; `Batch.labelled` tells them apart.
        mosaic_pool: images are mixed with so many that their process has lately loaded, see `Pools`; 0, and where
            nothing is mixed or no image is to be decoded again: with all.

    Raises:
        UserError: no usable image, or no box at all.
    """
    labels = _training_labels(spec, single_class, unlabelled)
    source = " ".join(spec.sources("train") + (spec.unlabelled if labels.unlabelled else ()))
    labels, store = open_images(
        labels, View.of(hyp), image_size, smooth=not augment, cache=cache, where="train", source=source
    )
    _tell_what_is_left_out(hyp, rect, image_weights)
    plan = rectangles(labels.shapes, batch_size, image_size, stride, 0.0, labels.labelled) if rect else None
    dataset = TrainImages(labels, store, spec.num_classes, hyp, size=image_size, seed=seed, augment=augment)
    mixes = hyp.mosaic > 0 and not (rect or image_weights or store.keeps_all)
    pool = mosaic_pool if mixes else 0
    sampler = TrainSampler(
        len(labels), batch_size, image_size, seed=seed, rank=rank, world_size=world_size, rectangles=plan,
        labelled=labels.labelled, pool=pool, processes=max(1, workers),
    )  # fmt: skip
    loader = TrainLoader(
        dataset, sampler, stride=stride, image_size=image_size, workers=workers, pin_memory=pin_memory,
        join=collate_quad if quad else collate,
    )  # fmt: skip
    loader.set_batch_size(batch_size)
    if image_weights and not rect:
        loader.set_image_weights(np.ones(spec.num_classes))
    return loader


def eval_loader(
    spec: DataSpec,
    split: str,
    *,
    image_size: Size,
    batch_size: int,
    stride: int,
    rect: bool = True,
    pad: float = 0.5,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    single_class: bool = False,
    cache: str = "",
    pin_memory: bool = False,
    hyp: Hyp | None = None,
) -> Loader:
    """Batches of 'train', 'val' or 'test' images with frames, each image once.

    Args:
        rect: images sorted by height / width; each batch is no larger than its images need, plus `pad` strides.
            Otherwise, and where a recipe stretches them, all images are of `image_size`.
        hyp: the recipe that the model was trained with: what it shows of an image holds here too.

    Raises:
        UserError: no such split, or no usable image in it.
    """
    labels = _labels(spec, split, single_class)
    if not len(labels.rows):
        log.warning("%s: not one box in %d images; scores will be 0", split, len(labels))
    view = View() if hyp is None else View.of(hyp)
    source = " ".join(spec.sources(split))
    labels, store = open_images(labels, view, image_size, smooth=True, cache=cache, where=split, source=source)
    if rect and not view.stretch:
        plan = rectangles(labels.shapes, batch_size, image_size, stride, pad)
    else:
        plan = squares(len(labels), batch_size, image_size)
    return Loader(
        EvalImages(labels, store, spec.num_classes, view),
        EvalSampler(plan, rank, world_size),
        stride=stride,
        image_size=image_size,
        workers=workers,
        pin_memory=pin_memory,
    )


def _tell_what_is_left_out(hyp: Hyp, rect: bool, image_weights: bool) -> None:
    if rect and image_weights:
        log.info("--image-weights: not with --rect, whose batches are fixed")
    if rect and (hyp.mosaic or hyp.paste_in):
        log.info("--rect: without mosaic, mixup and paste_in")
    if hyp.mosaic == 1 and not rect and (hyp.photometric or hyp.expand or hyp.min_iou_crop):
        log.info("photometric, expand and min_iou_crop: not for mosaics, and with mosaic 1 all images are")


def _labels(spec: DataSpec, split: str, single_class: bool) -> Labels:
    # before its first picture: a worker forked while OpenCV's own threads hold a lock waits for it for ever
    one_thread()
    images = spec.images(split)
    num_classes = None if single_class else spec.num_classes
    labels = read_labels(images, num_classes, " ".join(spec.sources(split)), split)
    return labels.as_single_class() if single_class else labels


def _training_labels(spec: DataSpec, single_class: bool, unlabelled: bool) -> Labels:
    labels = _labels(spec, "train", single_class)
    require_boxes(labels, "train")
    if not spec.unlabelled:
        return labels
    if unlabelled:
        return with_unlabelled(labels, spec)
    log.info("unlabelled: the images of %s are not used; they take a teacher", ", ".join(spec.unlabelled))
    return labels


def _handed_over(join: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> Any:
    """What `join` makes of samples, in shared memory if a worker has made it.

    There it would go anyway, in a thread of the worker's. Where there is no room, that thread only prints a traceback,
    and the batch is waited for without end; here it is an error that reaches the main process.
    """
    joined = join(samples)
    if get_worker_info() is not None:
        batch: Batch = getattr(joined, "batch", joined)
        for tensor in (batch.images, batch.targets, batch.labelled):
            if tensor.numel():
                tensor.share_memory_()
    return joined


def _start_worker(_: int) -> None:
    """A worker is one of several: it takes one core."""
    leave_signals_to_parent()
    one_thread()
    torch.set_num_threads(1)
