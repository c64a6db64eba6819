"""The parsers of foreign files, each with cases for it and the way in that a run takes.

A parser has done well if it returns, or says `UserError`, or what it calls a bad image or label file; and if what it
returns is what the rest relies on.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from benchmarks.fuzz_cases import LABELS, Files, array_file, changed, rezipped, yaml_text, zipped
from benchmarks.fuzz_weights import TINY, checkpoints, read_weights, safetensors
from data import substitutes
from data.archive import unpack
from data.images import BadImage, image_size, read_image
from data.label_file import BadLabels, parse, read
from data.labels import read_labels
from data.pack import MAGIC, read_pack, write_pack
from data.spec import read_data
from models.weights import load_model
from utils.errors import UserError
from utils.files import ROOT
from utils.hyp import read_hyp

MODEL_KEYS = (
    "nc", "backbone", "head", "anchors", "depth_multiple", "width_multiple", "scales", "scale", "activation", "reg_max",
    "max_channels", "end2end", "names",
)  # fmt: skip
DATA_KEYS = (
    "path", "train", "val", "test", "nc", "names", "download", "draw", "convert", "unlabelled", "address", "folder",
)  # fmt: skip
HYP_KEYS = (
    "lr0", "lrf", "box", "anchors", "outputs", "features", "schedule", "phases", "teachers", "balance", "fixed_crop",
    "student_kd_layers", "teacher_kd_layers", "weight", "kind", "nbs", "iou_t",
)  # fmt: skip
CLASSES = 3
SOURCE, CACHE, KEY = "images/train", "labels/train.cache.npz", "key"


class Target(NamedTuple):
    """A parser."""

    file: str  # what a case is called, in a folder of its own
    cases: SearchStrategy[bytes]
    read: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda folder: None  # puts into the folder what the parser wants beside the file


def run_case(target: Target, folder: Path, case: bytes) -> bool:
    """Whether the parser took the case; what else it does than return or refuse is raised.

    Raises:
        AssertionError: it refused without a reason that can be read in a line.
    """
    path = folder / target.file
    path.write_bytes(case)
    try:
        target.read(path)
    except (UserError, BadImage, BadLabels) as error:
        assert not isinstance(error.__cause__, MemoryError), "it ran out of memory"
        first = str(error).splitlines()[0] if str(error) else ""
        assert 0 < len(first) < 2000, f"a reason of {len(first)} letters: {first[:200]!r}"
        return False
    return True


@contextmanager
def opened(target: Target) -> Iterator[Path]:
    """The folder of a target, with nothing said meanwhile and nothing fetched or drawn."""
    refuse = mock.Mock(side_effect=UserError("nothing is fetched or drawn here"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(mock.patch("data.archive.fetch", refuse))
        stack.enter_context(mock.patch("data.spec.drawn_folder", refuse))
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, level)
        target.prepare(folder)
        yield folder


# -- text --------------------------------------------------------------------------------------------------------------


def data_files() -> SearchStrategy[bytes]:
    own = (
        b"path: .\ntrain: images/train\nval: images/train\nnc: 3\nnames: [a, b, c]\ndownload: http://localhost/x.zip\n"
    )
    return yaml_text(Files([own, *_shipped("data/*.yaml")]), DATA_KEYS)


def draw_images(folder: Path) -> None:
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for index in range(CLASSES):
        Image.new("RGB", (16, 12), (index, 0, 0)).save(folder / f"images/train/{index}.png")
        (folder / f"labels/train/{index}.txt").write_text(f"{index} .5 .5 .5 .5\n0 .1 .1 .5 .1 .5 .6\n")


def model_files() -> SearchStrategy[bytes]:
    files = Files([json.dumps(TINY).encode(), (ROOT / "models/cfg/yolov3-tiny.yaml").read_bytes()])
    return yaml_text(files, MODEL_KEYS)


def recipes() -> SearchStrategy[bytes]:
    return yaml_text(Files(_shipped("hyp/*.yaml")), HYP_KEYS)


def labels() -> SearchStrategy[bytes]:
    valid = b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.6\n"
    return st.one_of(changed([valid, valid.decode().encode("utf-16")]), LABELS, st.binary(max_size=200))


def read_label_file(path: Path) -> None:
    found = parse(read(str(path)), CLASSES)
    classes, boxes = found.rows[:, 0], found.rows[:, 1:]
    assert ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > 0).all()
    assert ((classes >= 0) & (classes < CLASSES)).all() and len(found.polygons) == len(found.rows)
    if found.problems:  # rows that are left out
        raise BadLabels(found.problems[0][1])


def _shipped(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(ROOT.glob(pattern))]


# -- images, archives, caches ------------------------------------------------------------------------------------------


def images() -> SearchStrategy[bytes]:
    rng = np.random.default_rng(0)
    plain = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8))
    pixels = {mode: (plain.convert("L") if mode in ("F", "I;16") else plain).convert(mode) for mode in MODES}
    files = []
    for kind, mode in ((kind, mode) for kind in KINDS for mode in MODES):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        try:
            pixels[mode].save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
        except (OSError, KeyError, ValueError):  # a format that has no such colours, or is not built in here
            continue
        files.append(file.getvalue())
    several = io.BytesIO()
    pixels["RGB"].save(several, "PNG", save_all=True, append_images=[pixels["RGB"]] * 2)
    return changed(Files([*files, several.getvalue()]))


MODES = ("RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "F")
KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "GIF", "EPS")


def read_pixels(path: Path) -> None:
    size = image_size(path)
    for reduction in (1, 4):
        image = read_image(path, reduction)
        assert image is None or (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3)
        assert image is None or reduction > 1 or image.shape[:2] == size
    decoded = substitutes.decode(path)
    assert decoded is None or decoded.ndim in (2, 3)


def archives() -> SearchStrategy[bytes]:
    files, tars = [zipped({"a/images/0.png": b"x" * 50, "a/labels/0.txt": b"0 1"})], []
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
            for name in ("a/0.txt", "a/" + "long" * 40, "../b", "/c"):
                entry = tarfile.TarInfo(name)
                entry.size = 3
                archive.addfile(entry, io.BytesIO(b"boo"))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
                entry = tarfile.TarInfo(f"a/{kind.decode()}")
                entry.type, entry.linkname = kind, "../../outside"
                archive.addfile(entry)
        tars.append(file.getvalue())
    return st.one_of(changed(Files(files + tars)), rezipped(Files(files)), changed(Files(tars[:1])))


def unpack_inside(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as inner:
        folder = Path(inner) / "deep" / "unpacked"
        folder.parent.mkdir()
        try:
            unpack(path, folder)
        finally:
            found = [entry for entry in Path(inner).rglob("*") if not entry.is_relative_to(folder)]
            assert found == [folder.parent], f"outside: {found}"
            assert not any(entry.is_symlink() for entry in folder.rglob("*"))


def label_caches() -> SearchStrategy[bytes]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_images(folder)
        with mock.patch("data.labels.content_key", lambda *_: KEY):
            read_labels(_drawn(folder), CLASSES, SOURCE, "train")
        made = (folder / CACHE).read_bytes()
    return st.one_of(changed(Files([made])), rezipped(Files([made])), rezipped(Files([made]), array_file()))


def read_cached(path: Path) -> None:
    """With the key that the cache has; refused is what would be checked again."""
    again = mock.Mock(side_effect=UserError("not taken"))
    with mock.patch("data.labels.content_key", lambda *_: KEY), mock.patch("data.labels.scan", again):
        found = read_labels(_drawn(path.parent.parent), CLASSES, SOURCE, "train")
    assert len(found.class_counts(CLASSES)) == CLASSES and len(found.image_of_row) == len(found.rows)
    for index in range(len(found)):
        assert len(found[index]) == len(found.polygons(index))
    found.keep(np.arange(len(found.rows)) % 2 == 0)


def _drawn(folder: Path) -> list[str]:
    return [str(folder / f"images/train/{index}.png") for index in range(CLASSES)]


def packs() -> SearchStrategy[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pack"
        write_pack(path, KEY, 48, lambda pixels: np.ones(2, dtype=np.bool_))
        made = path.read_bytes()
    index = made[51:-16]
    ends = st.one_of(rezipped(Files([index])), rezipped(Files([index]), array_file()))
    return st.one_of(
        changed(Files([made])), ends.map(lambda end: bytes(51) + end + len(end).to_bytes(8, "little") + MAGIC)
    )


def read_packed(path: Path) -> None:
    found = read_pack(path, KEY, 2, 48)
    if found is None:
        raise UserError("not taken")
    assert len(found.pixels) == 51 and found.filled.shape == (2,) and found.filled.dtype == np.bool_


TARGETS: dict[str, Callable[[], Target]] = {
    "checkpoint": lambda: Target("x.pt", checkpoints(), read_weights),
    "safetensors": lambda: Target("x.safetensors", safetensors(), read_weights),
    "data YAML": lambda: Target("data.yaml", data_files(), read_data, draw_images),
    "model YAML": lambda: Target("x.yaml", model_files(), lambda path: load_model("", str(path))),
    "recipe": lambda: Target("x.yaml", recipes(), read_hyp),
    "label file": lambda: Target("x.txt", labels(), read_label_file),
    "image": lambda: Target("x.jpg", images(), read_pixels),
    "archive": lambda: Target("x.zip", archives(), unpack_inside),
    "label cache": lambda: Target(CACHE, label_caches(), read_cached, draw_images),
    "pack": lambda: Target("x.pack", packs(), read_packed),
}
