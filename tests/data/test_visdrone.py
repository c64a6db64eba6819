from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import data.images
import data.spec
import data.visdrone
from data.labels import read_labels
from data.spec import read_data
from data.visdrone import convert, write_labels
from utils.errors import UserError

SIZE = (540, 960)  # height, width
CATEGORIES = (
    "ignored region", "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus",
    "motor", "others",
)  # fmt: skip


@pytest.fixture
def visdrone(tmp_path, root, write_image, monkeypatch):
    """visdrone(texts): a VisDrone as it is unpacked, two splits of images 0.jpg ... with these annotations, None being
    no file; gives the path of its data file."""

    def make(*texts: str | None) -> Path:
        for split in ("train", "val"):
            for index, text in enumerate(texts):
                folder = tmp_path / f"datasets/VisDrone/VisDrone2019-DET-{split}"
                write_image(folder / f"images/{index}.jpg", SIZE)
                (folder / "annotations").mkdir(exist_ok=True)
                if text is not None:
                    (folder / f"annotations/{index}.txt").write_text(text)
        file = tmp_path / "yaml/VisDrone.yaml"
        file.parent.mkdir()
        shutil.copy(root / "data/VisDrone.yaml", file)
        return file

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(data.spec, "DATASETS", tmp_path / "datasets")
    return make


def labels_of(file: Path) -> Path:
    return file.parent.parent / "datasets/VisDrone/VisDrone2019-DET-train/labels"


# -- one file ---------------------------------------------------------------------------------------------------------


def test_pixels_become_shares_of_the_image():
    found = convert("96,54,192,108,1,4,0,0\n480,270,48,54,1,10,1,2,\n", SIZE, "a.txt")
    np.testing.assert_allclose(found.rows, [[3, 0.2, 0.2, 0.2, 0.2], [9, 0.525, 0.55, 0.05, 0.1]])
    assert found[1:] == (0, 0, 0, 0)


def test_classes_are_those_of_the_data_file(visdrone):
    lines = [f"10,20,30,40,1,{category},0,0" for category in range(1, 11)]
    rows = convert("\n".join(lines), SIZE, "a.txt").rows
    names = read_data(visdrone("")).names
    assert [names[int(label)] for label in rows[:, 0]] == list(CATEGORIES[1:11])


@pytest.mark.parametrize("category", [0, 1, 11])
def test_what_evaluation_ignores_is_left_out(category):
    found = convert(f"10,20,30,40,0,{category},0,0", SIZE, "a.txt")
    assert found.rows.shape == (0, 5)
    assert found.ignored == 1


def test_ignored_regions_and_others_are_left_out_whatever_their_score():
    found = convert("10,20,30,40,1,0,0,0\n10,20,30,40,1,11,0,0\n10,20,30,40,0,11,0,0", SIZE, "a.txt")
    assert found.rows.shape == (0, 5)
    assert (found.ignored, found.others) == (2, 1)


@pytest.mark.parametrize("text", ["", "\n", " \n,\n\r\n"])
def test_a_file_without_lines_is_an_image_without_objects(text):
    found = convert(text, SIZE, "a.txt")
    assert found.rows.shape == (0, 5)
    assert found[1:] == (0, 0, 0, 0)


def test_boxes_end_at_the_borders_of_the_image():
    found = convert("-10,-20,30,60,1,1,0,0\n900,500,200,200,1,1,0,0", SIZE, "a.txt")
    np.testing.assert_allclose(found.rows[:, 1:] * [960, 540, 960, 540], [[10, 20, 20, 40], [930, 520, 60, 40]])
    assert found.clipped == 2


@pytest.mark.parametrize("box", ["10,20,0,40", "10,20,30,0", "960,20,30,40", "10,-50,30,50"])
def test_a_box_without_area_in_the_image_is_none(box):
    found = convert(f"{box},1,1,0,0", SIZE, "a.txt")
    assert found.rows.shape == (0, 5)
    assert (found.empty, found.clipped) == (1, 0)


def test_a_thousand_lines_agree_with_a_loop():
    rng = np.random.default_rng(0)
    lines = [
        (int(x), int(y), int(w), int(h), int(rng.integers(2)), int(rng.integers(12)), 0, 0)
        for x, y, w, h in rng.integers((-40, -40, 0, 0), (970, 550, 90, 90), (1000, 4))
    ]
    expected, clipped = [], 0
    for x, y, w, h, score, category, *_ in lines:
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, 960), min(y + h, 540)
        if score and 1 <= category <= 10 and right > left and bottom > top:
            clipped += (left, top, right, bottom) != (x, y, x + w, y + h)
            box = (left + right) / 1920, (top + bottom) / 1080, (right - left) / 960, (bottom - top) / 540
            expected.append((category - 1, *box))
    found = convert("\n".join(",".join(map(str, line)) for line in lines), SIZE, "a.txt")
    np.testing.assert_allclose(found.rows, expected, rtol=1e-12)
    assert found.clipped == clipped > 20
    assert len(found.rows) + found.ignored + found.others + found.empty == 1000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,4,1,1,0", "got '1,2,3,4,1,1,0', expected 8 numbers: left,top,width,height,score,category,truncation"),
        ("1,2,3,4,1,1,0,0,0", "expected 8 numbers"),
        ("0 0.5 0.5 0.1 0.1", "got '0 0.5 0.5 0.1 0.1', expected 8 numbers"),
        ("1,2,x,4,1,1,0,0", "expected 8 numbers"),
        ("1,2,nan,4,1,1,0,0", "expected 8 numbers"),
        ("1,2,3,4,1,12,0,0", "category: got 12, expected 0"),
        ("1,2,3,4,1,1.5,0,0", "category: got 1.5"),
        ("1,2,3,4,0.7,1,0,0", "score: got 0.7"),
        ("1,2,-3,4,1,1,0,0", "got a box of -3 x 4 pixels"),
    ],
)
def test_a_line_of_another_format_is_named(line, message):
    with pytest.raises(UserError, match=r"^a\.txt:3: ") as error:
        convert(f"1,2,3,4,1,1,0,0\n\n{line}\n", SIZE, "a.txt")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# -- the data set -----------------------------------------------------------------------------------------------------


def test_on_first_use_labels_are_written_beside_the_images(visdrone, caplog):
    file = visdrone("96,54,192,108,1,4,0,0,\n1,1,5,5,0,0,0,0", "", "950,530,48,54,1,1,0,0\r\n9,9,9,9,1,11,0,0\r\n")
    with caplog.at_level(logging.INFO):
        spec = read_data(file)
    assert (
        "train: 3 annotation files converted: 2 boxes, 1 of them cut at the image's borders; left out: 1 ignored "
        "regions and boxes, 1 of category others, 0 outside the image or of no size; skipped: 0 images"
    ) in caplog.text
    labels = read_labels(spec.images("train"), spec.num_classes, "train", "train")
    assert not labels.problems
    np.testing.assert_allclose(labels[0], [[3, 0.2, 0.2, 0.2, 0.2]], atol=1e-6)
    np.testing.assert_allclose(labels[1], np.zeros((0, 5)))
    np.testing.assert_allclose(labels[2], [[0, 955 / 960, 535 / 540, 10 / 960, 10 / 540]], atol=1e-6)
    assert len(list(labels_of(file).parent.parent.glob("*-val/labels/*.txt"))) == 3


def test_labels_that_are_there_stay(visdrone, caplog):
    file = visdrone("96,54,192,108,1,4,0,0", "96,54,192,108,1,4,0,0")
    labels_of(file).mkdir()
    (labels_of(file) / "1.txt").write_text("7 0.5 0.5 0.5 0.5\n")
    with caplog.at_level(logging.INFO):
        read_data(file)
    assert "train: 1 annotation files converted: 1 boxes" in caplog.text
    assert "skipped: 1 images that have labels" in caplog.text
    assert (labels_of(file) / "1.txt").read_text() == "7 0.5 0.5 0.5 0.5\n"
    written = {path: path.stat().st_mtime_ns for path in labels_of(file).iterdir()}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        read_data(file)
    assert {path: path.stat().st_mtime_ns for path in labels_of(file).iterdir()} == written
    assert caplog.text == ""


def test_a_conversion_that_was_interrupted_leaves_whole_files_and_goes_on(visdrone, monkeypatch):
    file = visdrone(*["96,54,192,108,1,4,0,0\n480,270,48,54,1,10,1,2"] * 3)
    write = Path.write_text

    def interrupted(path, text, **options):
        if path.name.startswith(".1-"):
            write(path, text[:9], **options)
            raise KeyboardInterrupt
        return write(path, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_data(file)
    assert [path.name for path in labels_of(file).iterdir()] == ["0.txt"]
    read_data(file)
    assert len({path.read_text() for path in labels_of(file).iterdir()}) == 1
    assert sorted(path.name for path in labels_of(file).iterdir()) == ["0.txt", "1.txt", "2.txt"]


def test_a_bad_line_is_answered_with_its_file_and_number(visdrone):
    file = visdrone("1,2,3,4,1,1,0,0\n1,2,3")
    with pytest.raises(
        UserError, match=r"VisDrone2019-DET-train/annotations/0\.txt:2: got '1,2,3', expected 8 numbers"
    ):
        read_data(file)
    assert not labels_of(file).exists()


def test_annotations_are_files_of_a_size_that_annotations_have(tmp_path, write_image, limited):
    """Nobody waits for a pipe, or reads a device that has no end."""
    (tmp_path / "annotations").mkdir()
    images = [str(write_image(tmp_path / f"images/{name}.png")) for name in ("pipe", "device", "large", "closed")]
    os.mkfifo(tmp_path / "annotations/pipe.txt")
    (tmp_path / "annotations/device.txt").symlink_to("/dev/zero")
    (tmp_path / "annotations/large.txt").write_bytes(b"\n" * 11_000_000)
    (tmp_path / "annotations/closed.txt").mkdir()
    said = limited("from data.visdrone import write_labels; from utils.errors import UserError", f"""
for image in {images}:
    try:
        write_labels([image], "train")
    except UserError as error:
        print(error)
""")  # fmt: skip
    reasons = [line.partition(".txt: ")[2] for line in said.splitlines()]
    assert reasons == ["not a file"] * 2 + ["a file of 11 MB, expected labels of one image", "not a file"]


@pytest.mark.parametrize("link", ["labels", "labels/deep"])
def test_nothing_is_written_where_a_link_leads_out_of_the_data_set(tmp_path, write_image, link):
    images = [str(write_image(tmp_path / f"mine/images/{name}.png")) for name in ("0", "deep/labels/1")]
    for name in ("0", "deep/labels/1"):
        annotation = tmp_path / f"mine/annotations/{name}.txt"
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text("1,2,3,4,1,1,0,0")
    (tmp_path / "victim").mkdir()
    (tmp_path / "mine" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "mine" / link).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=rf"{link}.* leads to {tmp_path}/victim.*, and what convert: writes stays in"):
        write_labels(images[::-1], "train")
    assert not list((tmp_path / "victim").iterdir())


def test_a_link_to_itself_is_no_folder(tmp_path, write_image):
    image = str(write_image(tmp_path / "images/0.png"))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/0.txt").write_text("1,2,3,4,1,1,0,0")
    (tmp_path / "labels").symlink_to(tmp_path / "labels")
    with pytest.raises(UserError, match=r"labels/0\.txt: cannot be written"):
        write_labels([image], "train")


def test_a_data_set_behind_a_link_is_converted(tmp_path, write_image):
    write_image(tmp_path / "disk/images/0.png")
    (tmp_path / "disk/annotations").mkdir()
    (tmp_path / "disk/annotations/0.txt").write_text("1,2,3,4,1,1,0,0")
    (tmp_path / "disk/other").mkdir()
    (tmp_path / "disk/labels").symlink_to(tmp_path / "disk/other")  # within it
    (tmp_path / "mine").symlink_to(tmp_path / "disk")
    write_labels([str(tmp_path / "mine/images/0.png")], "train")
    assert (tmp_path / "disk/other/0.txt").exists()


def test_images_that_cannot_be_read_or_have_no_annotations_get_no_labels(visdrone, caplog):
    file = visdrone("1,2,3,4,1,1,0,0", "1,2,3,4,1,1,0,0", None)
    broken = labels_of(file).parent / "images/1.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    with caplog.at_level(logging.INFO):
        read_data(file)
    assert f"{broken}: corrupt image" in caplog.text
    assert "skipped: 0 images that have labels, 1 that have no annotations, 1 that cannot be read" in caplog.text
    assert [path.name for path in labels_of(file).iterdir()] == ["0.txt"]


def test_no_image_is_decoded(visdrone, monkeypatch):
    def decode(*_, **__):
        raise AssertionError("decoded")

    file = visdrone("96,54,192,108,1,4,0,0")
    monkeypatch.setattr(data.images.Pillow.Image, "load", decode)
    monkeypatch.setattr(data.images.cv2, "imdecode", decode)
    read_data(file)
    assert (labels_of(file) / "0.txt").read_text() == "3 0.2000000 0.2000000 0.2000000 0.2000000\n"


def test_a_folder_in_which_nothing_can_be_written_is_named(visdrone):
    file = visdrone("96,54,192,108,1,4,0,0")
    labels_of(file).write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"labels/0\.txt: cannot be written \(.+\); labels lie beside their images"):
        read_data(file)


def test_data_sets_that_do_not_ask_for_it_are_left_alone(visdrone):
    file = visdrone("96,54,192,108,1,4,0,0")
    file.write_text(file.read_text().replace("convert: visdrone\n", ""))
    read_data(file)
    assert not labels_of(file).exists()


def test_an_unknown_format_is_answered(visdrone):
    file = visdrone("")
    file.write_text(file.read_text().replace("convert: visdrone", "convert: visdron"))
    with pytest.raises(UserError, match=r"VisDrone\.yaml: convert: got 'visdron'; did you mean 'visdrone'\? known"):
        read_data(file)
