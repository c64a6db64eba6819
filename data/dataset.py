"""Index -> tensor: what is drawn, in which order, with which chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import copy_paste, flip_left_right, flip_up_down, hsv, mixup, mosaic, paste_in
from data.geometry import fitted_size, letterbox, random_affine, resize
from data.labels import Labels
from data.picture import Image, Picture, Polygons, Size
from data.sampler import Key
from data.ssd import ssd
from data.store import ImageStore, Loaded
from data.view import View
from utils.hyp import Hyp
from utils.opencv import cv2
from utils.reproduce import sample_rng
from utils.types import Batch, Frame

PASTED_FROM = 4  # images whose objects `paste_in` may take: each has to be loaded


class Sample(NamedTuple):
    """One image on its way into a batch."""

    image: Tensor  # (3, H, W) uint8 RGB
    targets: Tensor  # (n, 5) class, x, y, w, h in [0, 1]
    path: str
    frame: Frame | None = None
    coin: float = 0.0  # in [0, 1); chance for what is done to a whole batch
    labelled: bool = True  # False: nothing is known of it, not even that it is empty


class LabelledImages(Dataset):
    """What training and evaluation share: images, their labels, and the way to both.

    Args:
        labels, store: of what `view` shows, see `open_images`.
    """

    def __init__(self, labels: Labels, store: ImageStore, num_classes: int, view: View | None = None) -> None:
        self.labels = labels
        self.store = store
        self.num_classes = num_classes
        self.view = view or View()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> Sequence[str]:
        return self.labels.paths

    @property
    def shapes(self) -> NDArray[np.int32]:
        """(n, 2) height and width of the images, before they are fitted into the size of training."""
        return self.labels.shapes

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """(C,) boxes of each class."""
        return self.labels.class_counts(self.num_classes)

    def picture(self, index: int) -> Picture:
        """An image fitted into the training size, or stretched to it, with its labels in pixels."""
        loaded = self.store.load(index)
        rows = self.labels[index] if loaded.readable else self.labels.rows[:0]
        return Picture(loaded.image, rows[:, 0], boxes_in_pixels(rows, loaded), self._polygons(index, loaded))

    def _polygons(self, index: int, loaded: Loaded) -> Polygons | None:
        """Outlines in pixels; the corners of the box stand for an object without one."""
        if not self.labels.has_polygons or not loaded.readable:
            return None
        scale = np.array(loaded.image.shape[1::-1], dtype=np.float32)
        outlines = self.labels.polygons(index)
        boxes = boxes_in_pixels(self.labels[index], loaded)
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        parts = [o * scale if len(o) else c for o, c in zip(outlines, corners, strict=True)]
        points = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.float32)
        return Polygons(points, np.array([len(part) for part in parts], dtype=np.int64))


class TrainImages(LabelledImages):
    """Augmented samples; a sample depends on the seed and its key alone."""

    def __init__(
        self, labels: Labels, store: ImageStore, num_classes: int, hyp: Hyp, *, size: Size, seed: int,
        augment: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(labels, store, num_classes, View.of(hyp))
        self.hyp = hyp
        self.size = size
        self.seed = seed
        self.augment = augment

    def __getitem__(self, key: Key) -> Sample:
        # a further showing of an image in the same epoch has numbers of its own
        rng = sample_rng(self.seed, key.epoch, key.index + key.repeat * len(self))
        picture = self.augmented(key, rng) if self.augment else self.view.fit(self.picture(key.index), key.size)
        image, targets = to_tensor(picture.image), to_targets(picture)
        return Sample(image, targets, self.paths[key.index], coin=rng.random(), labelled=self.labelled(key.index))

    def labelled(self, index: int) -> bool:
        return index < self.labels.labelled

    def augmented(self, key: Key, rng: Generator) -> Picture:
        """The picture of a key after every augmentation of the recipe."""
        hyp = self.hyp
        if key.mosaic and rng.random() < hyp.mosaic:
            picture = self._mosaic(key.index, rng)
            if rng.random() < hyp.mixup:
                picture = mixup(picture, self._mosaic(self._partners(key.index, 1, rng)[0], rng), rng)
        else:
            picture = random_affine(self._alone(key, rng), key.size, hyp, rng)
        # chance is drawn only where it decides something: recipes without this key stay as they were
        if key.mosaic and hyp.paste_in and self.labelled(key.index) and rng.random() < hyp.paste_in:
            sources = [self.picture(index) for index in self._partners(key.index, PASTED_FROM, rng)]
            picture = paste_in(picture, sources, rng)
        picture = picture._replace(image=hsv(picture.image, hyp.hsv_h, hyp.hsv_s, hyp.hsv_v, rng))
        if rng.random() < hyp.flipud:
            picture = flip_up_down(picture)
        if rng.random() < hyp.fliplr:
            picture = flip_left_right(picture)
        return picture

    def _alone(self, key: Key, rng: Generator) -> Picture:
        """This image by itself, at the size of training."""
        picture = ssd(self.picture(key.index), self.hyp, rng)
        # a canvas may be several times as large as the image
        picture = self.view.fit(picture, key.size, smooth=self.hyp.expand > 0)
        return copy_paste(picture, self.hyp.copy_paste, rng)

    def _mosaic(self, index: int, rng: Generator) -> Picture:
        """This image and three others, warped."""
        others = self._partners(index, 3, rng)
        pictures = [self.picture(i) for i in rng.permutation([index, *others]).tolist()]
        picture = copy_paste(mosaic(pictures, self.size, rng), self.hyp.copy_paste, rng)
        return random_affine(picture, self.size, self.hyp, rng)

    def _partners(self, index: int, count: int, rng: Generator) -> list[int]:
        """What an image is mixed with: like with like, so that a sample is wholly labelled or not at all."""
        first, last = (0, self.labels.labelled) if self.labelled(index) else (self.labels.labelled, len(self))
        partners: list[int] = rng.integers(first, last, size=count).tolist()
        return partners


class EvalImages(LabelledImages):
    """Images as they are, letterboxed or stretched; targets and frames are exact."""

    def __getitem__(self, key: tuple[int, Size]) -> Sample:
        index, size = key
        loaded = self.store.load(index)
        image, placement = letterbox(loaded.image, size, enlarge=False)
        rows = self.labels[index] if loaded.readable else self.labels.rows[:0]
        inner = np.array(placement.inner[::-1], dtype=np.float64)  # width, height
        whole = np.array(size[::-1], dtype=np.float64)
        targets = rows.astype(np.float64)
        targets[:, 1:3] = (targets[:, 1:3] * inner + (placement.left, placement.top)) / whole
        targets[:, 3:5] = targets[:, 3:5] * inner / whole
        frame = self.view.frame(loaded.original, placement)
        return Sample(to_tensor(image), torch.from_numpy(targets.astype(np.float32)), self.paths[index], frame)


def boxes_in_pixels(rows: NDArray[np.float32], loaded: Loaded) -> NDArray[np.float32]:
    """(n, 5) class and normalised xywh -> (n, 4) xyxy in pixels of the loaded image."""
    height, width = loaded.image.shape[:2]
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    return np.concatenate((centre - half, centre + half), axis=1) * np.array((width, height) * 2, dtype=np.float32)


def prepare(image: Image, size: Size, view: View | None = None) -> tuple[Tensor, Frame]:
    """Any BGR image as evaluation sees it: (3, height, width) uint8 RGB of `size`, and where it lies in it."""
    view = view or View()
    shown = view.show(image, size, smooth=True)
    fitted = resize(shown, fitted_size((shown.shape[0], shown.shape[1]), size), smooth=True)
    padded, placement = letterbox(fitted, size, enlarge=False)
    return to_tensor(padded), view.frame((image.shape[0], image.shape[1]), placement)


def to_tensor(image: Image) -> Tensor:
    """(H, W, 3) BGR -> (3, H, W) RGB."""
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    for channel in range(3):  # three times as fast as a transposed copy
        cv2.extractChannel(image, 2 - channel, planes[channel])
    return torch.from_numpy(planes)


def to_targets(picture: Picture) -> Tensor:
    """(n, 5) class, x, y, w, h in [0, 1]; boxes are cut at the borders of the image."""
    height, width = picture.size
    scale = np.array((width, height), dtype=np.float32)
    low, high = (np.clip(picture.boxes[:, part] / scale, 0, 1) for part in (slice(0, 2), slice(2, 4)))
    targets = np.concatenate((picture.classes[:, None], (low + high) / 2, high - low), axis=1)
    return torch.from_numpy(targets.astype(np.float32))


# -- batches ----------------------------------------------------------------------------------------------------------


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as a batch."""
    numbers = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s.targets) for s in samples]))
    targets = torch.cat([sample.targets for sample in samples])
    frames = tuple(sample.frame for sample in samples if sample.frame is not None)
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets=torch.cat((numbers[:, None].to(targets.dtype), targets), dim=1),
        labelled=torch.tensor([sample.labelled for sample in samples], dtype=torch.bool),
        paths=tuple(sample.path for sample in samples),
        frames=frames,
    )


def collate_quad(samples: Sequence[Sample]) -> Batch:
    """Groups of four become one image of twice the height and width: the four side by side, or one of them enlarged.

    An incomplete group is enlarged one by one, so that nothing is lost. Of labelled and unlabelled samples the labelled
    come first, so that at most one group has both; of that group chance enlarges one: side by side, labelled ones would
    have to be taught as if nothing were known of them.
    """
    samples = sorted(samples, key=lambda sample: not sample.labelled)  # keeps their order otherwise
    merged = []
    for start in range(0, len(samples), 4):
        group = samples[start : start + 4]
        if len(group) < 4:
            merged += [_enlarged(sample) for sample in group]
        elif group[0].labelled != group[-1].labelled:
            merged.append(_enlarged(min(group, key=lambda sample: sample.coin)))
        else:
            merged.append(_enlarged(group[0]) if group[0].coin < 0.5 else _tiled(group))
    return collate(merged)


def _enlarged(sample: Sample) -> Sample:
    image = torch.nn.functional.interpolate(sample.image[None].float(), scale_factor=2.0, mode="bilinear")[0]
    return sample._replace(image=image.round().to(torch.uint8))


def _tiled(group: Sequence[Sample]) -> Sample:
    """Four images as two rows of two."""
    rows = [torch.cat([sample.image for sample in group[start : start + 2]], dim=2) for start in (0, 2)]
    targets = []
    for index, sample in enumerate(group):
        shift = torch.tensor((0, index % 2, index // 2, 0, 0))
        targets.append((sample.targets + shift) * torch.tensor((1, 0.5, 0.5, 0.5, 0.5)))
    return group[0]._replace(image=torch.cat(rows, dim=1), targets=torch.cat(targets))
