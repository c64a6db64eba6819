from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from data.images import BadImage, image_size, read_image


def test_grey_images_have_three_equal_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6), 77, dtype=np.uint8))
    image = read_image(tmp_path / "a.png")
    assert image.shape == (4, 6, 3)
    assert (image == 77).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.full((4, 6, 3), 200 * 257, dtype=np.uint16))
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.dtype == np.uint8
    assert (image == 200).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_images_are_scaled_to_eight_bits(tmp_path, channels):
    cv2.imwrite(str(tmp_path / "a.tif"), np.full((4, 6, channels), 0.5, dtype=np.float32))
    image = read_image(tmp_path / "a.tif")
    assert image.shape == (4, 6, 3)
    assert (abs(image.astype(int) - 127) <= 1).all()


def test_transparency_is_dropped(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([np.full((4, 6, 3), 77), np.zeros((4, 6))]).astype(np.uint8))
    assert (read_image(tmp_path / "a.png") == 77).all()


def test_palettes_and_grey_with_alpha_are_read(tmp_path):
    for mode in ("P", "LA", "1"):
        Image.fromarray(np.full((4, 6), 255, dtype=np.uint8)).convert(mode).save(tmp_path / "a.png")
        assert (read_image(tmp_path / "a.png") == 255).all()
        assert image_size(tmp_path / "a.png") == (4, 6)


def test_names_of_any_script_are_read(tmp_path):
    path = tmp_path / "рисунок 図 ü.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((4, 6, 3), dtype=np.uint8))[1].tobytes())
    assert read_image(path).shape == (4, 6, 3)
    assert image_size(path) == (4, 6)


def test_images_are_turned_as_their_exif_says(tmp_path):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (32, 16, 3)
    assert image[:14].mean() > 240  # the upper half
    assert image[18:].mean() < 15


def test_what_is_no_image_is_none(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "b.jpg").touch()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        assert read_image(tmp_path / name) is None
        with pytest.raises(BadImage):
            image_size(tmp_path / name)


def test_bytes_behind_a_jpeg_do_not_make_it_corrupt(tmp_path, write_image):
    path = write_image(tmp_path / "a.jpg", (40, 60))
    path.write_bytes(path.read_bytes() + b"what some cameras append")
    assert image_size(path) == (40, 60)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_jpeg_files_are_decoded_at_a_fraction_of_their_size(tmp_path, reduction):
    """Sides are rounded up, and a file that is to be turned is turned."""
    ramp = np.linspace(0, 255, 101 * 203).reshape(101, 203)
    pixels = np.stack((ramp, ramp[::-1], np.full_like(ramp, 90)), axis=2).astype(np.uint8)
    for orientation, turned in ((1, False), (6, True)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
        whole, reduced = read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", reduction)
        high, wide = -(-101 // reduction), -(-203 // reduction)
        assert reduced.shape == ((wide, high, 3) if turned else (high, wide, 3))
        expected = cv2.resize(whole, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert abs(reduced.astype(int) - expected).mean() < 4


def test_other_formats_are_decoded_whole(tmp_path, write_image):
    for name in ("a.png", "a.bmp", "a.tif"):
        path = write_image(tmp_path / name, (40, 60))
        np.testing.assert_array_equal(read_image(path, 4), read_image(path))
