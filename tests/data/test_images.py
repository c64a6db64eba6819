from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

import data.images
from data import substitutes
from data.images import BadImage, image_size, list_folder, read_image
from data.label_cache import load, save
from data.scan import scan
from utils.files import ROOT
from utils.opencv import MOST_PIXELS


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
    plain = [cv2.IMWRITE_TIFF_COMPRESSION, 1]  # OpenCV 4 would write colours as logarithms of eight bits
    cv2.imwrite(str(tmp_path / "a.tif"), np.full((4, 6, channels), 0.5, dtype=np.float32), plain)
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


# -- files that nobody means ------------------------------------------------------------------------------------------


def png_of(width, height, data=b""):
    """A PNG file whose header says so."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    chunks = (struct.pack(">I", len(p)) + kind + p + struct.pack(">I", zlib.crc32(kind + p)) for kind, p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])  # None: as other code may have set it
@pytest.mark.parametrize(
    "size", [(60000, 60000), (20000, 20000), (2**31 - 1, 2**31 - 1), (14000, 14000), (MOST_PIXELS + 1, 1),
             (13378, 13378), (1 << 21, 4)]
)  # fmt: skip
def test_bombs_are_told_by_their_header(tmp_path, monkeypatch, size, limit):
    decoded = []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(substitutes.ImageOps, "exif_transpose", decoded.append)
    (tmp_path / "a.png").write_bytes(png_of(*size))
    with pytest.raises(BadImage, match="more than 179 million pixels, or than 1000000 in a row; cut it into tiles"):
        image_size(tmp_path / "a.png")
    assert substitutes.decode(tmp_path / "a.png") is None and not decoded


@pytest.mark.parametrize(("size", "fits"), [((10**6, 1), True), ((1, 10**6), True), ((10**6 + 1, 1), False)])
def test_what_is_checked_can_be_read(tmp_path, size, fits):
    """OpenCV has a limit for the sides, too."""
    width, height = size
    (tmp_path / "a.png").write_bytes(png_of(width, height, zlib.compress((b"\0" + bytes(3 * width)) * height)))
    assert (read_image(tmp_path / "a.png") is not None) == fits
    if fits:
        assert image_size(tmp_path / "a.png") == (height, width)


def test_a_large_image_is_left_out_and_the_cache_is_taken(tmp_path, monkeypatch, write_image):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "large.png").write_bytes(png_of(14000, 14000))
    images = [str(tmp_path / "large.png"), str(write_image(tmp_path / "small.png"))]
    found = scan(images, 1, "train")
    assert found.kept.tolist() == [1] and "cut it into tiles" in str(found.problems[0])
    save(tmp_path / "x.npz", images, "key", found)
    assert load(tmp_path / "x.npz", images, "key", 1) is not None


def test_opencv_decodes_no_bombs_either(tmp_path):
    """What Pillow cannot read is its business alone."""
    rows = zlib.compress(bytes(60001) * 2, 9)
    (tmp_path / "a.png").write_bytes(png_of(20000, 20000, rows))
    code = f"""
import os
from data.images import read_image
from utils.opencv import LIMIT
assert LIMIT not in os.environ
assert read_image({str(tmp_path / "a.png")!r}) is None
import cv2, numpy
try:
    cv2.imdecode(numpy.fromfile({str(tmp_path / "a.png")!r}, dtype=numpy.uint8), cv2.IMREAD_COLOR)
except cv2.error as error:
    assert "PIXELS" in str(error), error
else:
    raise AssertionError("decoded")
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_postscript_is_no_image_whatever_its_name(tmp_path, monkeypatch):
    """Pillow would start Ghostscript."""

    def started(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(BadImage, match="not an image that OpenCV or Pillow can read"):
        image_size(path)
    assert substitutes.decode(path) is None


def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="not a file"):
        image_size(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg") is None


@pytest.mark.parametrize("kind", ["CMYK", "L", "LA", "I;16"])
def test_other_colours_are_read_alike_with_and_without_opencv(tmp_path, monkeypatch, kind):
    grey = Image.fromarray(np.full((16, 24), 77, dtype=np.uint8))
    path = tmp_path / ("a.jpg" if kind == "CMYK" else "a.png")
    (grey.convert("RGB") if kind == "CMYK" else grey).convert(kind).save(path)
    expected = 0 if kind == "I;16" else 77  # Pillow keeps the number, of 65535
    assert image_size(path) == (16, 24)
    for available in (True, False):
        monkeypatch.setattr(data.images, "AVAILABLE", available)
        image = read_image(path)
        assert image.shape == (16, 24, 3) and abs(image.astype(int) - expected).max() <= 3, available


def test_animations_are_their_first_image(tmp_path):
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("white", "black")]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50)
        assert image_size(tmp_path / name) == (16, 24)
        assert read_image(tmp_path / name).mean() > 250


QUARTER = b"\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # what says that the image is to be turned


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "value",
    [
        b"II*\0" + b"\xff" * 8,
        b"MM\0*" + QUARTER,
        b"MM\0*" + QUARTER.replace(b"\x12\0\x03", b"\x12\x01\x03"),  # a number of another type
        b"\0M\0*" + QUARTER,
        b"",
    ],
)
def test_what_is_no_exif_turns_no_image_in_one_place_only(tmp_path, value):
    Image.new("RGB", (24, 16)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + value)
    assert image_size(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").shape[:2]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, write_image, monkeypatch, caplog):
    for folder in ("a", "b"):
        write_image(tmp_path / folder / "0.png")
    closed, scandir = [str(tmp_path / "b")], os.scandir

    def refuse(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_folder(tmp_path) == [str(tmp_path / "a" / "0.png")]
    assert f"{tmp_path / 'b'}: cannot be read (Permission denied); its images are left out" in caplog.text
    closed.append(str(tmp_path))
    with pytest.raises(PermissionError):
        list_folder(tmp_path)


def test_folders_are_followed_however_deep(tmp_path):
    """`os.walk` of Python 3.11 calls itself for each, and `shutil.rmtree`, which is to remove them, does, too."""
    depth, here = sys.getrecursionlimit() + 100, os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("0.png", os.O_CREAT, dir_fd=here))
    try:
        (found,) = list_folder(tmp_path)
        assert found == str(tmp_path) + "/a" * depth + "/0.png"
    finally:
        os.unlink("0.png", dir_fd=here)
        for _ in range(depth):
            above = os.open("..", os.O_RDONLY, dir_fd=here)
            os.close(here)
            os.rmdir("a", dir_fd=above)
            here = above
        os.close(here)


def test_images_are_found_where_links_lead_each_once(tmp_path, write_image):
    image = write_image(tmp_path / "other/0.png")
    (tmp_path / "images/x.png").mkdir(parents=True)  # a folder, whatever its name
    write_image(tmp_path / "images/x.png/1.png")
    (tmp_path / "images/itself").symlink_to(tmp_path / "images/itself")
    (tmp_path / "images/nothing.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "images/linked").symlink_to(image.parent)
    found = [path.removeprefix(f"{tmp_path}/images/") for path in list_folder(tmp_path / "images")]
    assert found == ["linked/0.png", "nothing.png", "x.png/1.png"]
