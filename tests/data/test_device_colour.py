"""The colours of tensors beside those of OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from data.augment import hsv_tables
from data.device_colour import shifted, to_bgr, to_hsv


def _tables(gains):
    """(k, 256, 3) of k pictures."""
    return np.stack([hsv_tables(one).T for one in gains])


@pytest.fixture(scope="module")
def colours():
    """(1024, 1024, 3) uint8: every eighth level of each channel with each, and as many nearly grey ones."""
    step = np.arange(256, dtype=np.uint8)
    grid = np.stack(np.meshgrid(step[::4], step[::4], step[::2], indexing="ij"), axis=-1).reshape(512, 1024, 3)
    rng = np.random.default_rng(0)
    greyish = rng.integers(0, 256, (512, 1024, 1)) + rng.integers(-9, 10, (512, 1024, 3))
    return np.concatenate((grid, greyish.clip(0, 255).astype(np.uint8)))


def test_hue_saturation_and_brightness_are_those_of_opencv(colours):
    found = to_hsv(torch.from_numpy(colours)).numpy()
    np.testing.assert_array_equal(found, cv2.cvtColor(colours, cv2.COLOR_BGR2HSV))


def test_the_way_back_is_that_of_opencv_but_for_the_last_bit():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (1024, 1024, 3)).astype(np.uint8)
    levels[..., 0] = rng.integers(0, 180, (1024, 1024))
    expected = cv2.cvtColor(levels, cv2.COLOR_HSV2BGR).astype(int)
    found = to_bgr(torch.from_numpy(levels)).numpy()
    assert np.abs(found - expected).max() <= 1
    # releases of OpenCV before 5 may round where this one cuts off
    assert (found != expected).mean() < 0.01 or cv2.__version__ < "5"


def test_grey_stays_grey():
    grey = torch.arange(256, dtype=torch.uint8).view(-1, 1).expand(-1, 3)
    assert torch.equal(to_bgr(to_hsv(grey).to(torch.uint8)), grey)


@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0), (1.015, 1.7, 1.4), (0.985, 0.3, 0.6), (1.9, 1.0, 0.0)])
def test_pictures_are_recoloured_as_on_the_cpu(colours, gains):
    levels = cv2.cvtColor(colours, cv2.COLOR_BGR2HSV).astype(np.float64) * gains
    levels[..., 0] %= 180
    expected = cv2.cvtColor(levels.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR).astype(int)
    found = shifted(torch.from_numpy(colours)[None], torch.from_numpy(_tables([gains])))[0].numpy()
    difference = np.abs(found - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.02 or cv2.__version__ < "5"


def test_every_picture_has_its_own_table(colours):
    gains = [(1.01, 0.5, 1.2), (0.99, 1.5, 0.8)]
    pair = torch.from_numpy(np.stack((colours, colours)))
    both = shifted(pair, torch.from_numpy(_tables(gains)))
    for index, one in enumerate(gains):
        assert torch.equal(both[index], shifted(pair[:1], torch.from_numpy(_tables([one])))[0])
    assert not torch.equal(both[0], both[1])


def test_levels_are_cut_off_at_white_and_hue_goes_round():
    (table,) = _tables([(1.5, 1.5, 0.5)])
    assert table[100].tolist() == [150, 150, 50]
    assert table[179].tolist() == [88, 255, 89]  # 268.5 - 180
