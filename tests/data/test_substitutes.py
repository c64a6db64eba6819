"""What stands in for OpenCV, beside OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

import data.dataset
import data.draw
import data.geometry
import data.images
from data.dataset import to_tensor
from data.geometry import letterbox, resize
from data.images import ORIENTATION, image_size, read_image
from data.substitutes import decode


@pytest.fixture
def photograph():
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (12, 17, 3), dtype=np.uint8), (90, 61), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def without(monkeypatch):
    """Calls a function as if there were no OpenCV."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            for module in (data.draw, data.geometry, data.images):
                patch.setattr(module, "AVAILABLE", False)
                patch.setattr(module, "cv2", None)
            return function(*arguments)

    return call


@pytest.mark.parametrize("kind", ["colour", "grey", "alpha", "palette", "sixteen", "grey sixteen"])
def test_a_png_has_the_pixels_that_opencv_reads(tmp_path, photograph, without, kind):
    path = tmp_path / "image.png"
    grey = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
    if kind == "palette":
        Pillow.fromarray(np.ascontiguousarray(photograph[..., ::-1])).quantize(64).save(path)
    else:
        stored = {
            "colour": photograph,
            "grey": grey,
            "alpha": np.dstack((photograph, grey)),
            "sixteen": photograph.astype(np.uint16) * 257,
            "grey sixteen": grey.astype(np.uint16) * 257,
        }[kind]
        assert cv2.imwrite(str(path), stored)
    np.testing.assert_array_equal(without(read_image, path), read_image(path))


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_says(tmp_path, photograph, without, turn):
    path = tmp_path / "image.jpg"
    exif = Pillow.Exif()
    exif[ORIENTATION] = turn
    Pillow.fromarray(np.ascontiguousarray(photograph[..., ::-1])).save(path, exif=exif, quality=95)
    found, expected = without(read_image, path), read_image(path)
    assert found.shape[:2] == without(image_size, path) == image_size(path)
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 0.5  # decoders round as they like
    assert difference.max() <= 8


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_jpeg_is_decoded_at_a_fraction_as_by_opencv(tmp_path, photograph, without, turn, reduction):
    path = tmp_path / "image.jpg"
    exif = Pillow.Exif()
    exif[ORIENTATION] = turn
    Pillow.fromarray(np.ascontiguousarray(photograph[..., ::-1])).save(path, exif=exif, quality=95)
    found, expected = without(read_image, path, reduction), read_image(path, reduction)
    assert found.shape == expected.shape
    assert found.shape[0] == -(-read_image(path).shape[0] // reduction)
    assert np.abs(found.astype(int) - expected).mean() < 0.5


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\nhalf"])
def test_what_is_no_image_is_none(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert decode(path) is None
    assert decode(tmp_path / "missing.png") is None


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("size", [(61, 45), (30, 90), (17, 23), (122, 180), (70, 40), (1, 1), (60, 89)])
def test_resizing_is_that_of_opencv(photograph, without, size, smooth):
    found, expected = (call(resize, photograph, size, smooth) for call in (without, lambda f, *a: f(*a)))
    assert found.shape == expected.shape == (*size, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_letterbox_is_that_of_opencv(photograph, without):
    for size in ((64, 64), (96, 64), (61, 90)):
        (found, placement), (expected, other) = without(letterbox, photograph, size), letterbox(photograph, size)
        assert placement == other
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_planes_are_those_of_opencv(photograph, without):
    np.testing.assert_array_equal(without(to_tensor, photograph).numpy(), to_tensor(photograph).numpy())
