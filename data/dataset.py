"""Index -> tensor: what is drawn, in which order, with which chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import copy_paste, flip_left_right, flip_up_down, hsv, mixup, mosaic, paste_in
from data.batch import Sample
from data.compose import Composer
from data.draw import Easel, write_planes
from data.geometry import GREY, fitted_size, letterbox, place, random_affine, resize
from data.labels import Labels
from data.picture import Floats, Image, Picture, Polygons, Size, outlined
from data.sampler import EvalKey, Key
from data.scene import Scene
from data.ssd import ssd
from data.store import ImageStore, Loaded
from data.view import View
from utils.hyp import Hyp
from utils.reproduce import sample_rng
from utils.types import Frame

PASTED_FROM = 4  # images whose objects `paste_in` may take: each has to be loaded


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

    def __getitem__(self, key: Any) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Any]) -> list[Sample]:
        """The samples of keys of one size, drawn into one tensor, which `collate` then takes as it is."""
        size: Size = keys[0].size
        images, easel = torch.empty((len(keys), 3, *size), dtype=torch.uint8), Easel(size)
        return [self.sample(key, image, easel) for key, image in zip(keys, images, strict=True)]

    def sample(self, key: Any, image: Tensor, easel: Easel) -> Sample:
        """Draws what a key stands for into `image`, (3, H, W) uint8 RGB, which is the sample's."""
        raise NotImplementedError

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
        outlines = [outline * scale for outline in self.labels.polygons(index)]
        return outlined(outlines, boxes_in_pixels(self.labels[index], loaded))


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
        self._composer = Composer(labels, hyp, size)

    def sample(self, key: Key, image: Tensor, easel: Easel) -> Sample:
        rng = self.rng(key)
        found = self._drawn(key, rng, image, easel) if self.composes else None
        if found is None:
            rng = self.rng(key)  # from the beginning: the picture is the scene's, but for what went bad
            picture = self.augmented(key, rng) if self.augment else self.view.fit(self.picture(key.index), key.size)
            write_planes(picture.image, image.numpy())
            found = to_targets(picture.classes, picture.boxes, picture.size)
        return Sample(image, found, self.paths[key.index], coin=rng.random(), labelled=self.labelled(key.index))

    def rng(self, key: Key) -> Generator:
        """Chance of a sample: first its scene, or its picture, is drawn from it, then its coin."""
        # a further showing of an image in the same epoch has numbers of its own
        return sample_rng(self.seed, key.epoch, key.index + key.repeat * len(self))

    def labelled(self, index: int) -> bool:
        return index < self.labels.labelled

    @property
    def composes(self) -> bool:
        """Whether samples are drawn from scenes; otherwise, as pictures that go from augmentation to augmentation."""
        return self.augment and self._composer.suffices

    @property
    def pixel_keys(self) -> tuple[str, ...]:
        """The keys of the recipe for which it does not compose."""
        return self._composer.pixel_keys

    def scene(self, key: Key, rng: Generator) -> Scene:
        """What a sample shows, where the recipe `composes`; no image is read."""
        return self._composer.scene(key, rng)

    def _drawn(self, key: Key, rng: Generator, image: Tensor, easel: Easel) -> Tensor | None:
        """Draws a scene and gives its targets; None where a file went bad, so that its labels would be wrong."""
        scene = self.scene(key, rng)
        needed = {tile.index for layer in scene.layers for tile in layer.tiles}
        loaded = {index: self.store.load(index) for index in needed}
        if not all(one.readable for one in loaded.values()):
            return None
        easel.draw(scene, lambda index: loaded[index].image, image.numpy())
        return to_targets(scene.classes, scene.boxes, scene.size)

    def augmented(self, key: Key, rng: Generator) -> Picture:
        """The picture of a key after every augmentation of the recipe, one after the other."""
        hyp = self.hyp
        partners = self._composer.partners
        if key.mosaic and rng.random() < hyp.mosaic:
            picture = self._mosaic(key.index, key.pool, rng)
            if rng.random() < hyp.mixup:
                (other,) = partners(key.index, 1, key.pool, rng)
                picture = mixup(picture, self._mosaic(other, key.pool, rng), rng)
        else:
            picture = random_affine(self._alone(key, rng), key.size, hyp, rng)
        # chance is drawn only where it decides something: recipes without this key stay as they were
        if key.mosaic and hyp.paste_in and self.labelled(key.index) and rng.random() < hyp.paste_in:
            sources = [self.picture(index) for index in partners(key.index, PASTED_FROM, key.pool, rng)]
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

    def _mosaic(self, index: int, pool: Sequence[int], rng: Generator) -> Picture:
        """This image and three others, warped."""
        others = self._composer.partners(index, 3, pool, rng)
        pictures = [self.picture(i) for i in rng.permutation([index, *others]).tolist()]
        picture = copy_paste(mosaic(pictures, self.size, rng), self.hyp.copy_paste, rng)
        return random_affine(picture, self.size, self.hyp, rng)


class EvalImages(LabelledImages):
    """Images as they are, letterboxed or stretched; targets and frames are exact."""

    def sample(self, key: EvalKey, image: Tensor, easel: Easel) -> Sample:
        index, size = key
        loaded = self.store.load(index)
        placement = place((loaded.image.shape[0], loaded.image.shape[1]), size, enlarge=False)
        inner = resize(loaded.image, placement.inner, smooth=False)
        image.fill_(GREY)
        rows, columns = (slice(low, low + side) for low, side in zip(placement[1:3], placement.inner, strict=True))
        write_planes(inner, image.numpy()[:, rows, columns])
        rows = self.labels[index] if loaded.readable else self.labels.rows[:0]
        inner = np.array(placement.inner[::-1], dtype=np.float64)  # width, height
        whole = np.array(size[::-1], dtype=np.float64)
        targets = rows.astype(np.float64)
        targets[:, 1:3] = (targets[:, 1:3] * inner + (placement.left, placement.top)) / whole
        targets[:, 3:5] = targets[:, 3:5] * inner / whole
        frame = self.view.frame(loaded.original, placement)
        return Sample(image, torch.from_numpy(targets.astype(np.float32)), self.paths[index], frame)


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
    write_planes(image, planes)
    return torch.from_numpy(planes)


def to_targets(classes: Floats, boxes: Floats, size: Size) -> Tensor:
    """(n,) and (n, 4) xyxy pixels -> (n, 5) class, x, y, w, h in [0, 1]; boxes are cut at the image's borders."""
    height, width = size
    scale = np.array((width, height), dtype=np.float32)
    low, high = (np.clip(boxes[:, part] / scale, 0, 1) for part in (slice(0, 2), slice(2, 4)))
    return torch.from_numpy(np.concatenate((classes[:, None], (low + high) / 2, high - low), axis=1, dtype=np.float32))
