"""What a data set is: the YAML file as people have it, with every path resolved and every name known."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import visdrone
from data.archive import obtain, read_downloads
from data.drawn import CLASSES, drawn_folder, read_settings
from data.images import list_folder
from utils.classes import MOST_CLASSES
from utils.config import pick
from utils.dist import main_first
from utils.errors import UserError, nearest, shown
from utils.files import ROOT, home
from utils.yaml_file import read_yaml

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
UNLABELLED = ("unlabelled", "unlabeled")  # the key as people spell it
FOLDER = ROOT / "data"
DATASETS = ROOT.parent / "datasets"  # where downloads go, beside the repository
FORMATS = ("visdrone",)  # of annotations, from which labels can be written


@dataclass(frozen=True)
class DataSpec:
    """A data set whose files are there. Sources are absolute: folders, or text files that list images."""

    path: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    num_classes: int
    names: tuple[str, ...]
    source: Path  # the YAML file
    named: bool = True  # False: the file gives no names, `names` are made up
    unlabelled: tuple[str, ...] = ()  # sources of images that a teacher alone can say something about

    def as_single_class(self) -> DataSpec:
        """The same images; what is in them is an "item", where it had several classes."""
        return self if self.num_classes == 1 else replace(self, num_classes=1, names=("item",), named=False)

    def sources(self, split: str) -> tuple[str, ...]:
        """The sources of 'train', 'val', 'test' or 'unlabelled'; UserError where the file has none."""
        found: tuple[str, ...] = getattr(self, split)
        if not found:
            raise UserError(f"{self.source}: has no '{split}' images")
        return found

    def images(self, split: str) -> list[str]:
        """The paths of all images of a split, in the order of its sources."""
        found = [image for source in self.sources(split) for image in list_images(source, self.path)]
        if not found:
            raise UserError(f"{self.source}: {split}: no images in {', '.join(self.sources(split))}")
        return found


def read_data(name: str | Path, scripts: bool = False) -> DataSpec:
    """The data set of a YAML file, or of a name such as 'coco128'; fetched or drawn first if it can be, and its labels
    converted if it asks for that.

    All ranks must call it: rank 0 makes what they share before the others look.

    Args:
        scripts: those of its `download:` may be run, where its images are not there.

    Raises:
        UserError: no such file, a contradiction in it, or images that are nowhere to be found.
    """
    file = resolve_data(name)
    content = read_yaml(file)
    names, named = _names(content, str(file))
    with main_first():
        if content.get("draw") is not None:
            folder = drawn_folder(read_settings(content["draw"], str(file)))
            content = {**{split: f"images/{split}" for split in SPLITS}, **content, "path": str(folder)}
            content.pop("download", None)
        path, found = _locate(content, file, scripts)
        unlabelled = _unlabelled(content, path, file)
        if content.get("convert") is not None:
            pick(str(content["convert"]), FORMATS, f"{file}: convert")
            for split, sources in found.items():
                images = [image for source in sources for image in list_images(source, path)]
                visdrone.write_labels(images, f"{file}: {split}")
    return DataSpec(
        path=path,
        train=found["train"],
        val=found["val"],
        test=found["test"],
        num_classes=len(names),
        names=names,
        source=file,
        named=named,
        unlabelled=unlabelled,
    )


def resolve_data(name: str | Path) -> Path:
    """The YAML file that is meant: an existing path, or one of ours in the spellings people have in their notes."""
    path = home(name)
    if path.is_file():
        return path
    known = {file.stem.lower(): file for file in sorted(FOLDER.glob("*.yaml"))}
    stem = path.name.lower().removesuffix(".yaml").removesuffix(".yml")
    if path.parent.name in ("", "data") and stem in known:
        return known[stem]
    if path.is_dir():
        raise UserError(f"--data {name}: is a folder, expected a YAML file that names the classes and the images")
    hint = nearest(stem, known) or ";"
    raise UserError(f"--data {name}: no such file{hint} ours: {', '.join(known)}")


def list_images(source: str, root: Path) -> list[str]:
    """The images of a folder, or of a text file with one path a line.

    A line is relative to the text file when it starts with `./`, otherwise to the first of these where its image is:
    the data set's path, the working directory, the text file's folder.
    """
    if Path(source).is_dir():
        return list_folder(source)
    if not Path(source).is_file():  # a device, which may have no end
        raise UserError(f"{source}: expected a folder of images, or a text file that lists them")
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read as a list of images: {error}") from error
    if "\0" in text:
        raise UserError(f"{source}: cannot be read as a list of images: line {_line_of(text, chr(0))} has zero bytes")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if os.sep == "/":
        lines = [line.replace("\\", "/") for line in lines]  # written on Windows
    folder = Path(source).parent
    bases = (str(root), str(Path.cwd()), str(folder))
    plain = next((line for line in lines if not line.startswith("./")), None)
    base = next((b for b in bases if plain and _is_there(Path(b) / plain)), bases[0])
    join = os.path.join  # keeps absolute lines as they are, and is fast
    return [join(str(folder), line[2:]) if line.startswith("./") else join(base, line) for line in lines]


def _line_of(text: str, letter: str) -> int:
    return text.count("\n", 0, text.index(letter)) + 1


# -- names ------------------------------------------------------------------------------------------------------------


def _names(content: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether the file gives them."""
    count, names = content.get("nc"), content.get("names")
    if content.get("draw") is not None and names is None:
        names = list(CLASSES)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UserError(f"{where}: nc: got {shown(repr(count))}, expected a number of classes of at least 1")
    if count is not None and count > MOST_CLASSES:
        raise UserError(f"{where}: nc: got {count}, expected at most {MOST_CLASSES} classes")
    if isinstance(names, (list, Mapping)) and len(names) > MOST_CLASSES:
        raise UserError(f"{where}: names: got {len(names)}, expected at most {MOST_CLASSES} classes")
    if names is None:
        if count is None:
            raise UserError(f"{where}: missing: names (a list of class names)")
        return tuple(f"class{index}" for index in range(count)), False
    if isinstance(names, Mapping):
        names = _names_in_order(names, where)
    if not isinstance(names, list) or not names or any(isinstance(name, (list, dict)) for name in names):
        raise UserError(f"{where}: names: expected a list of class names, or a mapping of 0, 1, 2 ... to class names")
    if count is not None and count != len(names):
        raise UserError(f"{where}: nc is {count} but there are {len(names)} names")
    return tuple(str(name) for name in names), True


def _names_in_order(names: Mapping[Any, Any], where: str) -> list[Any]:
    try:
        by_index = {int(key): value for key, value in names.items()}
    except (OverflowError, TypeError, ValueError):
        keys = shown(", ".join(map(str, names)), 200)
        raise UserError(f"{where}: names: keys must be 0, 1, 2 ..., got {keys}") from None
    missing = [index for index in range(len(names)) if index not in by_index]
    if missing:
        raise UserError(f"{where}: names: has {len(names)} entries but none for class {missing[0]}")
    return [by_index[index] for index in range(len(names))]


# -- places -----------------------------------------------------------------------------------------------------------


def _locate(content: Mapping[str, Any], file: Path, scripts: bool) -> tuple[Path, dict[str, tuple[str, ...]]]:
    """The data set's folder and its sources; fetches the data set where it is absent and can be fetched."""
    entries = {split: _entries(content.get(split), f"{file}: {split}") for split in SPLITS}
    if not entries["train"] and not entries["val"]:
        raise UserError(f"{file}: missing: train and val (a folder of images, or a text file that lists them)")
    path = str(content.get("path") or "")
    found = _search(path, entries, file)
    if found is None and content.get("download"):
        downloads = read_downloads(content["download"], str(file))
        obtain(downloads, DATASETS, Path(path).name or file.stem, file, scripts)
        found = _search(path, entries, file)
    if found is None:
        tried = "\n".join(f"  {source}" for source in _tried(path, entries, file))
        hint = f"\ndownload: {shown(content['download'], 1000)}" if content.get("download") else ""
        raise UserError(f"{file}: its images are not there; tried\n{tried}{hint}")
    return found


def _unlabelled(content: Mapping[str, Any], path: Path, file: Path) -> tuple[str, ...]:
    """Sources of unlabelled images, relative to the data set's folder, which the labelled images have decided on.

    They do not take part in the search for it: a pool of images that is absent would set off a download of what is
    there.
    """
    spelt = [key for key in UNLABELLED if content.get(key)]
    if len(spelt) > 1:
        raise UserError(f"{file}: has both {' and '.join(spelt)}; use one of them")
    entries = _entries(content[spelt[0]], f"{file}: {spelt[0]}") if spelt else ()
    found = {entry: _source(path, entry) for entry in entries}
    absent = "\n".join(f"  {path / home(entry)}" for entry, source in found.items() if source is None)
    if absent:
        raise UserError(f"{file}: {spelt[0]}: its images are not there; tried\n{absent}")
    return tuple(str(source) for source in found.values())


def _entries(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if any(item is not None and not isinstance(item, str) for item in values):
        raise UserError(f"{where}: expected a folder, a text file that lists images, or a list of these")
    return tuple(item for item in values if item)


def _bases(path: str, file: Path) -> Iterator[Path]:
    """Where the data set may lie."""
    given = home(path)
    if given.is_absolute():
        yield given
        return
    yield Path(os.path.normpath(file.resolve().parent / given))
    yield Path(os.path.normpath(Path.cwd() / given))
    # `../datasets/coco128` is written for a working directory beside the data sets
    inside = given.relative_to("../datasets") if given.is_relative_to("../datasets") else given
    yield Path(os.path.normpath(DATASETS / inside))
    if path == "":
        yield DATASETS / file.stem


def _source(base: Path, entry: str) -> Path | None:
    """An entry below a base, if it is there."""
    source = base / home(entry)
    if _is_there(source):
        return Path(os.path.normpath(source))
    # Roboflow writes `../train/images` for what lies in `train/images`
    below = base / entry.removeprefix("../")
    return below if entry.startswith("../") and _is_there(below) else None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def _search(
    path: str, entries: Mapping[str, tuple[str, ...]], file: Path
) -> tuple[Path, dict[str, tuple[str, ...]]] | None:
    """The first base that has all of train and val; a test set may be absent."""
    for base in _bases(path, file):
        found = {split: tuple(_source(base, entry) for entry in entries[split]) for split in SPLITS}
        if all(source is not None for split in ("train", "val") for source in found[split]):
            return base, {split: tuple(str(s) for s in found[split] if s is not None) for split in SPLITS}
    return None


def _tried(path: str, entries: Mapping[str, tuple[str, ...]], file: Path) -> list[str]:
    """Every place that was looked at and was empty."""
    tried = []
    for base in _bases(path, file):
        for entry in entries["train"] + entries["val"]:
            if _source(base, entry) is None and str(base / entry) not in tried:
                tried.append(str(base / entry))
    return tried
