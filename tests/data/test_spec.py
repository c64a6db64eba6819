from __future__ import annotations

import http.server
import io
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest

import data.spec
from data.archive import unpack
from data.spec import read_data, resolve_data
from utils.errors import UserError


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A working directory and a folder of data sets that are both empty."""
    for name in ("elsewhere", "datasets"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(data.spec, "DATASETS", tmp_path / "datasets")
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "{1: dog, 0: cat}", '{"0": cat, "1": dog}'])
def test_names_are_a_list_or_a_mapping(make_data, names):
    file = make_data(1)
    write(file, f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
    spec = read_data(file)
    assert spec.names == ("cat", "dog")
    assert spec.num_classes == 2
    assert spec.named


def test_without_names_classes_are_numbered_and_known_to_be_unnamed(make_data):
    file = make_data(1)
    write(file, "path: .\ntrain: images/train\nval: images/val\nnc: 2\n")
    spec = read_data(file)
    assert spec.names == ("class0", "class1")
    assert not spec.named


def test_a_single_class_replaces_several_and_has_no_name_of_its_own(make_data):
    several = read_data(make_data(1))
    single = several.as_single_class()
    assert (single.num_classes, single.names, single.named) == (1, ("item",), False)
    assert single.images("train") == several.images("train")
    assert single.as_single_class() is single


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nc: 3\nnames: [a, b]", "nc is 3 but there are 2 names"),
        ("names: {0: a, 2: b}", "none for class 1"),
        ("names: {a: 0}", "keys must be 0, 1, 2"),
        ("nc: 0", "nc: got 0"),
        ("nc: many", "nc: got 'many'"),
        ("names: coco.names", "expected a list of class names"),
        ("", "missing: names"),
    ],
)
def test_contradicting_names_are_refused(make_data, text, message):
    file = make_data(1)
    write(file, f"path: .\ntrain: images/train\nval: images/val\n{text}\n")
    with pytest.raises(UserError, match=message):
        read_data(file)


def test_a_byte_order_mark_does_no_harm(make_data):
    file = make_data(1)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_data(file).num_classes == 3


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["yaml", "elsewhere", "datasets"])
def test_a_relative_path_is_looked_up_in_three_places(away, write_image, place):
    write_image(away / place / "mine/images/0.png")
    file = write(away / "yaml/data.yaml", "path: mine\ntrain: images\nval: images\nnames: [a]")
    assert read_data(file).train == (str(away / place / "mine/images"),)


def test_paths_written_for_the_ancestors_working_directory_are_found(away, write_image):
    write_image(away / "datasets/mine/images/0.png")
    file = write(away / "a/b/yaml/data.yaml", "path: ../datasets/mine\ntrain: images\nval: images\nnames: [a]")
    assert read_data(file).path == away / "datasets/mine"


def test_roboflow_exports_are_found(away, write_image):
    for split in ("train", "valid"):
        write_image(away / f"export/{split}/images/0.png")
    file = write(away / "export/data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['a']")
    assert read_data(file).images("val") == [str(away / "export/valid/images/0.png")]


def test_an_error_lists_every_place_that_was_tried(away):
    file = write(away / "yaml/data.yaml", "path: mine\ntrain: images/a\nval: images/b\nnames: [a]")
    with pytest.raises(UserError) as error:
        read_data(file)
    for base in ("yaml", "elsewhere", "datasets"):
        assert str(away / base / "mine/images/a") in str(error.value)
        assert str(away / base / "mine/images/b") in str(error.value)


def test_sources_are_folders_lists_or_several_of_them(tmp_path, write_image):
    paths = [str(write_image(tmp_path / f"images/{name}.png")) for name in ("a/0", "a/deep/1", "b/2", "c/3", "c/4")]
    write(tmp_path / "list.txt", f"\ufeff./images/b/2.png\n\n# a comment\nimages/c/3.png\n{paths[4]}\n")
    file = write(tmp_path / "data.yaml", "path: .\ntrain: [images/a, list.txt]\nval: list.txt\nnames: [a]")
    spec = read_data(file)
    assert spec.images("train") == paths
    assert spec.images("val") == paths[2:]
    with pytest.raises(UserError, match="has no 'test' images"):
        spec.images("test")


def test_hidden_files_are_no_images(tmp_path, write_image):
    paths = [write_image(tmp_path / f"images/{name}") for name in ("0.png", "._0.png", ".cache/1.png", "2.JPG")]
    file = write(tmp_path / "data.yaml", "train: images\nval: images\nnames: [a]")
    assert read_data(file).images("train") == [str(paths[0]), str(paths[3])]


@pytest.mark.parametrize("name", ["coco128", "coco128.yaml", "data/coco128.yaml"])
def test_our_files_are_found_by_their_names(away, root, name):
    assert resolve_data(name) == root / "data/coco128.yaml"


def test_a_misspelt_name_is_answered_with_the_nearest(away):
    with pytest.raises(UserError, match="did you mean 'visdrone'"):
        resolve_data("visdron.yaml")
    with pytest.raises(UserError, match="no such file"):
        resolve_data("my/coco.yaml")


@pytest.mark.parametrize(("name", "count"), [("coco", 80), ("coco128", 80), ("VOC", 20), ("VisDrone", 10)])
def test_files_of_ours_are_sound(away, monkeypatch, name, count):
    monkeypatch.setattr(data.spec, "_locate", lambda content, file: (Path(), dict.fromkeys(data.spec.SPLITS, ())))
    assert read_data(name).num_classes == count


# -- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Serves the folder `www`; gives its address."""
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "www")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("top", ["mine/", ""])
def test_a_missing_data_set_is_fetched_and_unpacked(away, server, write_image, top):
    image = write_image(away / "0.png").read_bytes()
    with zipfile.ZipFile(away / "www/mine.zip", "w") as archive:
        archive.writestr(f"{top}images/0.png", image)
        archive.writestr(f"{top}labels/0.txt", "0 .5 .5 .5 .5")
    file = write(
        away / "yaml/data.yaml", f"path: mine\ntrain: images\nval: images\nnames: [a]\ndownload: {server}/mine.zip"
    )
    assert read_data(file).images("train") == [str(away / "datasets/mine/images/0.png")]
    assert sorted(p.name for p in (away / "datasets").iterdir()) == ["mine"]


def test_archives_are_put_where_the_file_says(away, server, write_image):
    image = write_image(away / "0.png")
    with tarfile.open(away / "www/pictures.tar.gz", "w:gz") as archive:
        archive.add(image, "train/0.png")
    with zipfile.ZipFile(away / "www/labels.zip", "w") as archive:
        archive.writestr("mine/labels/train/0.txt", "0 .5 .5 .5 .5")
    file = write(
        away / "yaml/data.yaml",
        "path: ../datasets/mine\ntrain: images/train\nval: images/train\nnames: [a]\ndownload:\n"
        f"  - {{address: '{server}/pictures.tar.gz', folder: mine/images}}\n  - {server}/labels.zip\n",
    )
    read_data(file)
    assert (away / "datasets/mine/labels/train/0.txt").exists()


@pytest.mark.parametrize(
    "download", ["|\n  import os\n  os.system('touch ran')", "bash get_mine.sh", "python get.py", "[{run: it}]", "7"]
)
def test_scripts_are_shown_and_never_run(away, download):
    file = write(away / "yaml/data.yaml", f"path: mine\ntrain: images\nval: images\nnames: [a]\ndownload: {download}\n")
    with pytest.raises(UserError, match="is not run here") as error:
        read_data(file)
    assert download.split()[-1].strip("}]") in str(error.value)
    assert not list((away / "elsewhere").iterdir())


def test_an_address_without_answer_says_where_to_put_the_data(away, server):
    file = write(
        away / "yaml/data.yaml", f"path: mine\ntrain: images\nval: images\nnames: [a]\ndownload: {server}/mine.zip"
    )
    with pytest.raises(UserError, match=f"unpack it by hand into {away / 'datasets/mine'}"):
        read_data(file)


@pytest.mark.parametrize("member", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
def test_archives_that_write_outside_their_folder_are_refused(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(member, "boo")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo(member)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"boo"))
    with pytest.raises(UserError, match="outside the archive"):
        unpack(tmp_path / "bad.zip", tmp_path / "zip")
    if member.startswith(("..", "a")) and "\\" not in member:
        with pytest.raises(UserError, match="cannot be unpacked"):
            unpack(tmp_path / "bad.tar", tmp_path / "tar")
    assert not (tmp_path / "outside.txt").exists()


def test_a_broken_archive_is_an_error_of_one_line(tmp_path):
    write(tmp_path / "bad.zip", "not an archive")
    with pytest.raises(UserError, match=r"bad\.zip: cannot be unpacked"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")
