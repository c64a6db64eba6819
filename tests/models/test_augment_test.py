"""Boxes found in smaller and mirrored images come out in pixels of the image as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.augment_test import _padded, _restored, augmented
from models.families import read_spec
from models.yolo import Model
from utils.types import Prediction


def test_restored_boxes_lie_where_they_lay():
    box = torch.tensor([[[30.0, 40.0, 10.0, 20.0, 0.9, 0.8]]])
    seen = box * torch.tensor([53 / 80, 40 / 60, 53 / 80, 40 / 60, 1, 1])
    torch.testing.assert_close(_restored(seen, (40, 53), (60, 80), False), box)
    mirrored = seen.clone()
    mirrored[..., 0] = 53 - seen[..., 0]
    torch.testing.assert_close(_restored(mirrored, (40, 53), (60, 80), True), box)


def test_padding_is_below_and_on_the_right():
    padded = _padded(torch.ones(1, 3, 53, 79), 32)
    assert padded.shape == (1, 3, 64, 96)
    assert (padded[..., :53, :79] == 1).all() and (padded[..., 53:, :] == 0.447).all()


class Spotter:
    """Sees the brightest pixel: one box a level, centred there, with the level and the image's width as score."""

    stride = 32

    class head:
        @staticmethod
        def decode(levels: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([level.flatten(1, 3) for level in levels], dim=1)

    def __call__(self, images: Tensor) -> Prediction:
        y, x = divmod(images[0].sum(dim=0).argmax().item(), images.shape[3])
        levels = [[x + 0.5, y + 0.5, 4.0, 4.0, float(level), float(images.shape[3])] for level in range(3)]
        return Prediction(tuple(torch.tensor(level).view(1, 1, 1, 1, 6) for level in levels))


@pytest.mark.parametrize("row, column", [(20, 30), (100, 10), (9, 180)])
def test_all_passes_agree_on_an_image_that_is_not_square(row, column):
    image = torch.zeros(1, 3, 128, 192)
    image[..., row - 4 : row + 5, column - 4 : column + 5] = 1
    image[..., row, column] = 3
    model = Spotter()
    found = augmented(model, image, model(image))[0]
    # the full size without its coarsest level, 0.83 with all, 0.67 without its finest
    assert found[:, 4].tolist() == [0, 1, 0, 1, 2, 1, 2]
    assert found[:, 5].tolist() == [192] * 2 + [160] * 3 + [128] * 2  # 159 and 128 pixels, padded
    assert (found[:, 0] - column - 0.5).abs().max() < 1.6
    assert (found[:, 1] - row - 0.5).abs().max() < 1.6


def test_a_model_augments_and_gives_the_features_of_the_unscaled_pass(small):
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        decoded, features = small(image, augment=True, extra_features=[17])
        plain, expected = small(image, extra_features=[17])
        assert torch.equal(features[0], expected[0])
        assert torch.equal(small.predict(image, augment=True), decoded)
        full = small.head.decode(plain.levels)
    # 64x96: 53x79 -> 64x96, 42x64 -> 64x64; without the coarsest and the finest
    cells = [8 * 12 + 4 * 6, 8 * 12 + 4 * 6 + 2 * 3, 4 * 4 + 2 * 2]
    assert decoded.shape == (2, 3 * sum(cells), 8)
    assert torch.equal(decoded[:, : 3 * cells[0]], full[:, : 3 * cells[0]])


@pytest.mark.parametrize("keys", [{}, {"end2end": True, "reg_max": 1}], ids=["one branch", "two branches"])
def test_a_model_without_anchors_augments(anchor_free_cfg, keys):
    model = Model(read_spec(str(anchor_free_cfg(**keys))), 2).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        whole, several = model.predict(image), model.predict(image, augment=True)
    cells = [8 * 12 + 4 * 6, 8 * 12 + 4 * 6 + 2 * 3, 4 * 4 + 2 * 2]
    assert several.shape == (2, sum(cells), 7)
    assert torch.equal(several[:, : cells[0]], whole[:, : cells[0]])
    assert (several[..., 4] == 1).all()


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov3-tiny", "yolov3-slim"])
def test_every_family_augments_and_gives_features(name):
    model = Model(read_spec(name), 3).eval()
    image = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        whole = model.predict(image)
        several, (feature,) = model(image, augment=True, extra_features=[4])
    assert several.shape[2] == 8 and several.shape[1] > whole.shape[1]
    assert feature.shape[:2] == (1, model.feature_info[4].channels)
    levels = sum(rows.shape[1:4].numel() for rows in model(image).levels[:-1])
    assert torch.equal(several[:, :levels], whole[:, :levels])  # the largest cells of the full size are left out


def test_auxiliary_levels_are_no_part_of_it(auxiliary):
    image = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        several = auxiliary(image, augment=True)
        layers = auxiliary.fuse()(image, augment=True)
    torch.testing.assert_close(several, layers, rtol=1e-3, atol=1e-3)
