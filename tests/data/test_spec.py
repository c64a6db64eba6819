from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socketserver
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import data.spec
from data.spec import list_images, read_data, resolve_data
from engine.options import Options, train_options
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
        ("nc: 1000000000", "expected at most 25000 classes"),
        ("nc: 0x" + "f" * 40, "nc: got 1461501637330902918203684832716283019655932542975"),
        ("names: {.inf: a}", "keys must be 0, 1, 2"),
        ("", "missing: names"),
    ],
)
def test_contradicting_names_are_refused(make_data, text, message):
    file = make_data(1)
    write(file, f"path: .\ntrain: images/train\nval: images/val\n{text}\n")
    with pytest.raises(UserError, match=message):
        read_data(file)


@pytest.mark.parametrize("names", ["[a, b, c]", "{0: a, 1: b, 2: c}"])
def test_names_count_as_classes(make_data, monkeypatch, names):
    file = make_data(1)
    write(file, f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
    monkeypatch.setattr(data.spec, "MOST_CLASSES", 3)
    assert read_data(file).num_classes == 3
    monkeypatch.setattr(data.spec, "MOST_CLASSES", 2)
    with pytest.raises(UserError, match=r"names: got 3, expected at most 2 classes"):
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
    monkeypatch.setattr(data.spec, "_locate", lambda *_: (Path(), dict.fromkeys(data.spec.SPLITS, ())))
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


SCRIPTS = ["|\n  import os\n  os.system('touch ran')", "bash get_mine.sh", "python get.py"]


def asking(away: Path, download: str) -> Path:
    """A data set that is not there and says how to get it."""
    return write(away / "yaml/data.yaml", f"path: mine\ntrain: images\nval: images\nnames: [a]\ndownload: {download}\n")


@pytest.mark.parametrize("download", SCRIPTS)
def test_scripts_are_shown_and_not_run(away, download):
    with pytest.raises(UserError, match=r"nothing of it was run\. .*or give --allow-download-scripts") as error:
        read_data(asking(away, download))
    assert download.split()[-1] in str(error.value)
    assert not list((away / "elsewhere").iterdir())


def test_a_script_cannot_hide_what_it_is(away):
    with pytest.raises(UserError) as error:
        read_data(asking(away, '"bash -c evil\\r\\e[2Kbash -c harmless"'))
    assert "evil" in str(error.value) and "\x1b" not in str(error.value) and "\r" not in str(error.value)


PYTHON = "|\n  from pathlib import Path\n  Path('{}').mkdir(parents=True)"


@pytest.mark.parametrize("script", ["bash -c 'mkdir -p {}'", PYTHON])
def test_scripts_are_run_where_the_user_says_so(away, script):
    file = asking(away, script.format(away / "datasets/mine/images"))
    with pytest.raises(UserError, match="nothing of it was run"):
        read_data(file)
    assert read_data(file, scripts=True).train == (str(away / "datasets/mine/images"),)


def test_python_finds_the_content_of_the_file(away):
    file = asking(away, PYTHON.replace("'{}'", "yaml['names'][0]"))
    file.write_text(file.read_text().replace("[a]", f"['{away / 'datasets/mine/images'}']"))
    assert read_data(file, scripts=True).num_classes == 1


def test_a_script_that_fails_is_told(away):
    with pytest.raises(UserError, match="its script ended with 7"):
        read_data(asking(away, "bash -c 'exit 7'"), scripts=True)


@pytest.mark.parametrize("download", ["[{run: it}]", "7", "https://host/page", "[[a]]", "{address: x.sh}"])
def test_what_is_neither_archive_nor_script_is_refused(away, download):
    with pytest.raises(UserError, match="expected the address of an archive"):
        read_data(asking(away, download), scripts=True)


def test_a_run_asks_each_command_line(away):
    """What an opt.yaml says allows nothing."""
    stored = Options(data="x.yaml", allow_download_scripts=True)
    assert not stored.runs_scripts and "allow_download_scripts" not in stored.to_dict()
    assert train_options(["--data", "x.yaml", "--allow-download-scripts"]).runs_scripts


def test_an_address_without_answer_says_where_to_put_the_data(away, server):
    file = write(
        away / "yaml/data.yaml", f"path: mine\ntrain: images\nval: images\nnames: [a]\ndownload: {server}/mine.zip"
    )
    with pytest.raises(UserError, match=f"unpack it by hand into {away / 'datasets/mine'}"):
        read_data(file)


OK = b"HTTP/1.1 200 OK\r\n"
RUDE = {
    "no HTTP": (b"boo\r\n\r\n", "boo"),
    "nothing": (b"", "closed connection without response"),
    "half": (OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 10, "it ended after 10 of 1000 bytes"),
    "half of a part": (OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nboo", "IncompleteRead"),
    "a length of words": (OK + b"Content-Length: many\r\n\r\n", "invalid literal"),
    "more than there is room": (OK + b"Content-Length: 999000000\r\n\r\n", "999 MB or more, and the disk has room"),
    "more than it said": (OK + b"\r\n" + b"x" * 3_000_000, "2 MB or more, and the disk has room to unpack 2 MB"),
}


@pytest.mark.parametrize("kind", RUDE)
def test_a_server_that_is_rude_is_told_in_one_line(away, monkeypatch, kind):
    sent, told = RUDE[kind]

    class Rude(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            with contextlib.suppress(OSError):  # nobody listens any more
                self.request.sendall(sent)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4_000_000))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Rude) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"mine\.zip: cannot be downloaded \(.*; unpack it by hand") as error:
            read_data(asking(away, f"http://127.0.0.1:{running.server_address[1]}/mine.zip"))
        running.shutdown()
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not list((away / "datasets").iterdir())


@pytest.mark.parametrize("address", ["http://localhost:x/y.zip", "http:///y.zip", "http://127.0.0.1:99999/y.zip"])
def test_an_address_that_is_none_is_told_in_one_line(away, address):
    with pytest.raises(UserError, match=r"y\.zip: cannot be downloaded") as error:
        read_data(asking(away, address))
    assert "\n" not in str(error.value)


def test_a_download_stays_among_the_data_sets(away, server):
    """`path: ..` would put an archive beside them: over this repository, if it is called so."""
    with zipfile.ZipFile(away / "www/mine.zip", "w") as archive:
        archive.writestr("elsewhere/train.py", "boo")
    for path in ("..", "/", "a/.."):
        file = asking(away, f"{server}/mine.zip")
        file.write_text(file.read_text().replace("path: mine", f"path: {path}"))
        with pytest.raises(UserError):
            read_data(file)
    assert not (away / "elsewhere/train.py").exists() and not (away / "train.py").exists()


def test_a_download_overwrites_nothing(away, server, write_image):
    image = write_image(away / "datasets/mine/images/0.png")
    before = image.read_bytes()
    with zipfile.ZipFile(away / "www/mine.zip", "w") as archive:
        archive.writestr("mine/images/0.png", b"another")
        archive.writestr("mine/more/1.png", before)
    file = asking(away, f"{server}/mine.zip")
    file.write_text(file.read_text().replace("val: images", "val: more"))
    read_data(file)
    assert image.read_bytes() == before and (away / "datasets/mine/more/1.png").exists()


# -- files that nobody means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 5000, '"a\\0b"', "[a]", "2020-01-01"])
def test_odd_paths_are_places_where_nothing_is(away, path):
    file = write(away / "yaml/data.yaml", f"path: {path}\ntrain: images\nval: images\nnames: [a]\n")
    with pytest.raises(UserError, match="images are not there"):
        read_data(file)


def test_lists_of_images_are_files_of_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a.png\n\0\n")
    with pytest.raises(UserError, match="line 2 has zero bytes"):
        list_images(str(tmp_path / "list.txt"), tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")  # whoever opens it waits without end
    with pytest.raises(UserError, match="expected a folder of images, or a text file"):
        list_images(str(tmp_path / "pipe.txt"), tmp_path)


def test_links_that_lead_back_are_followed_once(tmp_path, write_image):
    image = write_image(tmp_path / "images/a/0.png")
    for name in ("x", "y", "z"):
        (tmp_path / "images/a" / name).symlink_to(tmp_path / "images")
    assert list_images(str(tmp_path / "images"), tmp_path) == [str(image)]
