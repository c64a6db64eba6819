"""Samples -> batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.types import Batch, Frame


class Sample(NamedTuple):
    """One image on its way into a batch."""

    image: Tensor  # (3, H, W) uint8 RGB
    targets: Tensor  # (n, 5) class, x, y, w, h in [0, 1]
    path: str
    frame: Frame | None = None
    coin: float = 0.0  # in [0, 1); chance for what is done to a whole batch
    labelled: bool = True  # False: nothing is known of it, not even that it is empty


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as a batch."""
    numbers = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s.targets) for s in samples]))
    targets = torch.cat([sample.targets for sample in samples])
    frames = tuple(sample.frame for sample in samples if sample.frame is not None)
    return Batch(
        images=in_one_piece([sample.image for sample in samples]),
        targets=torch.cat((numbers[:, None].to(targets.dtype), targets), dim=1),
        labelled=torch.tensor([sample.labelled for sample in samples], dtype=torch.bool),
        paths=tuple(sample.path for sample in samples),
        frames=frames,
    )


def in_one_piece(images: Sequence[Tensor]) -> Tensor:
    """(B, 3, H, W); images that are all of one tensor, in its order, are that tensor and not copied."""
    whole = images[0]._base
    if whole is None or whole.ndim != 4 or len(whole) != len(images):
        return torch.stack(list(images))
    in_order = all(image.data_ptr() == own.data_ptr() for image, own in zip(images, whole, strict=True))
    return whole if in_order else torch.stack(list(images))


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
