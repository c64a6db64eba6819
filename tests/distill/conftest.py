"""Small detectors with the interface of `models.yolo.Model`, and what tests need around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from distill.classes import match_classes
from distill.outputs import OUTPUTS, OutputLoss
from distill.outputs.base import Sides
from tests.distill.heads import ANCHORS, Gains, TinyHead, three_levels
from utils.registry import build
from utils.types import Batch, FeatureInfo, Prediction


class TinyDetector(nn.Module):
    """Layer 0 of stride 4, then one layer a stride of the head, each feeding it."""

    def __init__(
        self,
        channels: int = 4,
        num_classes: int = 3,
        strides: Sequence[int] = (8, 16, 32),
        names: Sequence[str] | None = None,
        anchors: dict[int, list] | None = None,
    ) -> None:
        super().__init__()
        all_strides = [4, *strides]
        steps = [4] + [after // before for before, after in zip(all_strides, strides, strict=False)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels, 3, step, 1), nn.BatchNorm2d(channels), nn.SiLU())
            for c, step in zip([3] + [channels] * len(strides), steps, strict=True)
        )
        self.head = TinyHead(channels, strides, num_classes, anchors or ANCHORS)
        self.feature_info = tuple(FeatureInfo(i, channels, stride) for i, stride in enumerate(all_strides))
        self.head_inputs = tuple(range(1, len(all_strides)))
        self.auxiliary_layers = frozenset()
        self.num_classes, self.named = num_classes, names is not None
        self.names = tuple(names or (str(index) for index in range(num_classes)))
        self.calls: list[int] = []  # how many layers each pass ran, head included

    def forward(self, x: Tensor, augment: bool = False, profile: bool = False, extra_features: Sequence[int] = ()):
        maps = self.features(x, range(len(self.layers)))
        self.calls[-1] += 1
        prediction = self.head(maps[1:])
        return (prediction, [maps[index] for index in extra_features]) if extra_features else prediction

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        maps = []
        for layer in self.layers[: max(layers) + 1]:
            x = layer(x)
            maps.append(x)
        self.calls.append(len(maps))
        return [maps[index] for index in layers]

    def fuse(self) -> TinyDetector:
        """Keeps its BatchNorm, so that tests can watch it."""
        return self


class SumOfSquares(nn.Module):
    """Stands in for the detection loss."""

    def forward(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        return {"box": 1e-3 * torch.stack([level.float().square().mean() for level in prediction.levels]).sum()}


@pytest.fixture
def detector() -> Callable[..., TinyDetector]:
    return TinyDetector


@pytest.fixture
def criterion() -> nn.Module:
    return SumOfSquares()


@pytest.fixture
def gains() -> Gains:
    return Gains()


@pytest.fixture
def loss_of(detector, gains) -> Callable[..., OutputLoss]:
    """An output loss between two heads, by default equal ones, of the classes `own` and `other`."""
    names = ("cat", "dog", "bird")

    def make(name, own=names, other=names, strides=((8, 16, 32), (8, 16, 32)), **options):
        heads = [detector(num_classes=len(c), strides=s).head for c, s in zip((own, other), strides, strict=True)]
        classes = match_classes(own, other, len(own), len(other))
        return build("output loss", name, OUTPUTS, Sides(*heads, classes, three_levels(gains)), options=options)

    return make


@pytest.fixture
def draw_batch() -> Callable[..., Batch]:
    def draw(images: int = 2, size: int = 64, empty: bool = False) -> Batch:
        targets = torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.3], [images - 1, 0, 0.2, 0.7, 0.1, 0.1]])
        return Batch(
            images=torch.rand(images, 3, size, size),
            targets=targets[:0] if empty else targets,
            labelled=torch.ones(images, dtype=torch.bool),
        )

    return draw


@pytest.fixture
def draw_prediction() -> Callable[..., Prediction]:
    """Raw levels of a TinyHead for 64 px: as wide apart as those of a trained head."""

    def draw(num_classes: int = 3, images: int = 2, strides: Sequence[int] = (8, 16, 32)) -> Prediction:
        shapes = [(images, 2, 64 // stride, 64 // stride, 5 + num_classes) for stride in strides]
        return Prediction(tuple(3 * torch.randn(shape) for shape in shapes))

    return draw


@pytest.fixture
def one_rank() -> Iterator[None]:
    """DDP without a second process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
