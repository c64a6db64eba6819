from __future__ import annotations

import json
import logging
import os
import stat
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.labels
from data.images import read_image
from data.label_file import MOST_NAMED, parse
from data.labels import read_labels, require_boxes
from data.packed import PackedStrings
from data.scan import in_chunks, label_path
from data.spec import SPLITS, read_data
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path, write_image):
    """folder(labels): images 0.png, 1.png ...; None means no label file. Gives the paths."""

    def make(*labels: str | None) -> list[str]:
        paths = []
        for index, text in enumerate(labels):
            paths.append(str(write_image(tmp_path / f"images/train/{index}.png")))
            if text is not None:
                path = tmp_path / f"labels/train/{index}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return paths

    return make


def read(paths, num_classes=3):
    return read_labels(paths, num_classes, "images/train", "train")


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/a/images/b/c.jpg", "/a/labels/b/c.txt"),
        ("/images/a/images/b.c.png", "/images/a/labels/b.c.txt"),
        ("/a/b.jpg", "/a/b.txt"),
        ("/images/x/my_images/b.jpg", "/labels/x/my_images/b.txt"),
    ],
)
def test_labels_are_found_by_the_last_images_folder(image, label):
    assert label_path(image) == label


def test_rows_of_an_image_are_a_view_of_one_flat_array(folder):
    labels = read(folder("0 .5 .5 .2 .4\n1 .1 .1 .1 .1", None, "2 .3 .3 .1 .2\n"))
    assert [len(labels[index]) for index in range(3)] == [2, 0, 1]
    assert labels[0].base is not None
    np.testing.assert_allclose(labels[2], [[2, 0.3, 0.3, 0.1, 0.2]])
    np.testing.assert_array_equal(labels.image_of_row, [0, 0, 2])
    np.testing.assert_array_equal(labels.class_counts(3), [1, 1, 1])


def test_images_without_labels_are_background(folder):
    labels = read(folder("0 .5 .5 .2 .4", None, "", "\n \n"))
    assert len(labels) == 4
    assert labels.counts.background == 3
    assert not labels.problems


def test_duplicate_rows_are_dropped_and_counted(folder):
    labels = read(folder("0 .5 .5 .2 .4\n1 .5 .5 .2 .4\n0 0.50 .5 .2 .4\n0 .5 .5 .2 .4"))
    assert labels.counts.duplicates == 2
    assert labels[0][:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .2", "4 numbers"),
        ("0 .5 .5 .2 .4 .9", "6 numbers"),
        ("cat .5 .5 .2 .4", "not all numbers"),
        ("0 .5 nan .2 .4", "not all finite"),
        ("3 .5 .5 .2 .4", "classes 0 to 2"),
        ("-1 .5 .5 .2 .4", "whole number"),
        ("0.5 .5 .5 .2 .4", "whole number"),
        ("0 1.5 .5 .2 .4", "outside"),
        ("0 .5 -.5 .2 .4", "outside"),
        ("0 320 240 64 64", "outside"),
        ("0 .5 .5 0 .4", "no size"),
        ("0 .1 .1 .1 .2 .1 .3", "no size"),
    ],
)
def test_bad_rows_are_skipped_and_named_by_file_and_line(folder, caplog, row, reason):
    paths = folder(f"1 .5 .5 .2 .4\n{row}\n2 .4 .4 .1 .1")
    with caplog.at_level(logging.INFO):
        labels = read(paths)
    assert labels[0][:, 0].tolist() == [1, 2]
    (problem,) = labels.problems
    assert problem.line == 2
    assert reason in problem.reason
    assert f"{label_path(paths[0])}:2: " in caplog.text
    assert labels.counts.skipped_rows == 1


def test_the_log_lists_ten_problems_and_counts_the_rest(folder, caplog):
    paths = folder("0 .5 .5 .2 .4\n" + "nonsense\n" * 25)
    with caplog.at_level(logging.INFO):
        labels = read(paths)
    assert caplog.text.count("nonsense") == 10
    assert "and 15 more" in caplog.text
    assert labels.report().count("nonsense") == 25


def test_polygons_become_boxes_and_are_kept(folder):
    labels = read(folder("0 .1 .2 .5 .2 .3 .8\n1 .5 .5 .2 .2"))
    np.testing.assert_allclose(labels[0][0], [0, 0.3, 0.5, 0.4, 0.6], atol=1e-6)
    first, second = labels.polygons(0)
    np.testing.assert_allclose(first, [[0.1, 0.2], [0.5, 0.2], [0.3, 0.8]])
    assert len(second) == 0
    assert labels.has_polygons


def test_a_last_digit_beyond_the_border_is_forgiven():
    rows = parse("0 0.5 0.5 1.0000005 1", 1)
    assert rows.rows[0].tolist() == [0, 0.5, 0.5, 1, 1]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder, tmp_path):
    paths = folder("")
    (tmp_path / "labels/train/0.txt").write_bytes(b"\xef\xbb\xbf0 .5 .5 .2 .4\r\n1 .5 .5 .2 .4\r\n")
    assert read(paths)[0][:, 0].tolist() == [0, 1]


def test_corrupt_images_are_skipped_and_named(folder, tmp_path, write_image):
    paths = folder(*["0 .5 .5 .2 .4"] * 5)
    (tmp_path / "images/train/0.png").write_bytes(b"")
    (tmp_path / "images/train/1.png").write_text("no image")
    whole = (tmp_path / "images/train/2.png").read_bytes()
    (tmp_path / "images/train/2.png").write_bytes(whole[: len(whole) // 2])
    jpeg = write_image(tmp_path / "images/train/5.jpg", (200, 200))
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    labels = read([*paths, str(jpeg), str(tmp_path / "images/train/6.png")])
    assert list(labels.paths) == paths[3:]
    assert labels.counts.corrupt == 5
    assert "6.png: no such file" in labels.report()


def test_with_nothing_left_training_stops(folder, tmp_path):
    paths = folder("0 .5 .5 .2 .4")
    (tmp_path / "images/train/0.png").write_text("no image")
    with pytest.raises(UserError, match=r"none of its 1 images can be used; the first: .*0\.png"):
        read(paths)


def test_without_any_box_training_stops_and_says_where_labels_were_expected(folder):
    paths = folder(None, None)
    with pytest.raises(UserError, match=f"not one box; .*{label_path(paths[0])}"):
        require_boxes(read(paths), "train")


def test_shapes_follow_the_exif_orientation(tmp_path):
    image = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    paths = []
    for suffix in ("jpg", "png", "webp", "tif"):
        for orientation in (1, 3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / f"{suffix}{orientation}.{suffix}"
            image.save(path, exif=exif)
            paths.append(str(path))
    labels = read(paths)
    assert labels.shapes[:4].tolist() == [[20, 30], [20, 30], [30, 20], [30, 20]]
    # whether OpenCV turns other formats depends on its version; its word counts
    assert labels.shapes.tolist() == [list(read_image(path).shape[:2]) for path in paths]


def test_many_files_are_checked_by_processes_with_the_same_result(folder, monkeypatch, tmp_path):
    texts = [f"{index % 3} .5 .5 .2 .{index + 1}\n" for index in range(8)]
    texts[3] += "nonsense\n" + texts[3]
    texts[5] += "0 .1 .2 .5 .2 .3 .8\n"
    paths = folder(*texts)
    for bad in (2, 7):
        (tmp_path / f"images/train/{bad}.png").write_text("no image")
    alone = read(paths)
    (tmp_path / "labels/train.cache.npz").unlink()
    monkeypatch.setattr("data.scan.FEW", 2)
    monkeypatch.setattr("data.scan.CHUNK", 3)
    together = read(paths)
    assert list(together.paths) == list(alone.paths) == [paths[index] for index in (0, 1, 3, 4, 5, 6)]
    for name in ("shapes", "rows", "offsets", "points", "point_offsets"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))
    assert together.problems == alone.problems
    assert together.counts == alone.counts
    assert (alone.counts.duplicates, alone.counts.corrupt, len(alone.problems)) == (1, 2, 3)


def test_the_rest_of_the_files_is_not_waited_for_by_who_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("data.scan.CHUNK", 1)
    answers = in_chunks(slowly_touched, [str(tmp_path / f"{index}") for index in range(200)], few=0)
    next(answers)
    answers.close()
    assert 1 <= len(list(tmp_path.iterdir())) < 100


def slowly_touched(paths):
    Path(paths[0]).touch()
    time.sleep(0.05)


# -- cache ------------------------------------------------------------------------------------------------------------


def test_rows_that_are_left_out_take_their_polygons_with_them(folder):
    box, outline, other = "1 0.5 0.5 0.2 0.2\n", "0 0.1 0.1 0.5 0.1 0.5 0.6\n", "2 0.1 0.2 0.5 0.1 0.5 0.6 0.1 0.9\n"
    labels = read(folder(box + outline + other, None, other + box + outline, outline))
    kept = np.arange(len(labels.rows)) % 3 != 1
    fewer = labels.keep(kept)
    assert len(fewer) == len(labels)
    for index in range(len(labels)):
        own = kept[labels.offsets[index] : labels.offsets[index + 1]]
        np.testing.assert_array_equal(fewer[index], labels[index][own])
        outlines = [outline for outline, stays in zip(labels.polygons(index), own, strict=True) if stays]
        assert [outline.tolist() for outline in fewer.polygons(index)] == [outline.tolist() for outline in outlines]
    assert len(fewer.rows) == kept.sum() < len(labels.rows)
    assert 0 < len(fewer.points) < len(labels.points)


@pytest.fixture
def scans(monkeypatch):
    """Counts how often files are really checked."""
    calls = []
    original = data.labels.scan
    monkeypatch.setattr(data.labels, "scan", lambda *args: calls.append(1) or original(*args))
    return calls


def test_an_unchanged_data_set_is_read_from_the_cache(folder, scans, tmp_path):
    paths = folder("0 .5 .5 .2 .4\nnonsense\n0 .5 .5 .2 .4", "1 .1 .2 .5 .2 .3 .8", None)
    (tmp_path / "images/train/2.png").write_text("no image")
    first, second = read(paths), read(paths)
    assert len(scans) == 1
    assert (tmp_path / "labels/train.cache.npz").is_file()
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.points, second.points)
    assert first.problems == second.problems
    assert first.counts == second.counts
    assert list(first.paths) == list(second.paths)


@pytest.mark.parametrize("many", [100, 0])
def test_any_change_makes_the_cache_stale(folder, scans, tmp_path, write_image, monkeypatch, many):
    monkeypatch.setattr("data.label_cache.MANY", many)  # from which on several processes look
    monkeypatch.setattr("data.scan.CHUNK", 2)
    paths = folder("0 .5 .5 .2 .4", None)
    label, other = tmp_path / "labels/train/0.txt", tmp_path / "labels/train/1.txt"
    read(paths)
    steps = [
        lambda: label.write_text("1 .5 .5 .2 .4"),
        lambda: os.utime(label, ns=(1, 1)),  # same size
        lambda: other.write_text("2 .5 .5 .2 .4"),
        lambda: write_image(tmp_path / "images/train/1.png", (20, 20)),
        lambda: paths.append(str(write_image(tmp_path / "images/train/2.png"))),
        lambda: label.unlink(),
    ]
    for count, step in enumerate(steps, start=2):
        step()
        read(paths)
        assert len(scans) == count
    read(paths, num_classes=2)
    assert len(scans) == len(steps) + 2
    labels = read(paths, num_classes=2)
    assert len(scans) == len(steps) + 2
    assert labels.counts.skipped_rows == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x80\x04."])
def test_a_damaged_cache_is_made_again(folder, scans, tmp_path, content):
    paths = folder("0 .5 .5 .2 .4")
    read(paths)
    (tmp_path / "labels/train.cache.npz").write_bytes(content)
    assert len(read(paths)[0]) == 1
    read(paths)
    assert len(scans) == 2


def test_a_pickle_in_the_cache_is_not_opened(folder, scans, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    paths = folder("0 .5 .5 .2 .4")
    read(paths)
    np.savez(tmp_path / "labels/train.cache.npz", head=np.array([Trap()], dtype=object))
    assert len(read(paths)[0]) == 1
    assert not (tmp_path / "trapped").exists()
    assert len(scans) == 2


def test_a_disk_that_cannot_be_written_to_does_no_harm(folder, monkeypatch, tmp_path):
    paths = folder("0 .5 .5 .2 .4")

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")  # root may write wherever it likes, so modes do not test this

    monkeypatch.setattr("data.label_cache.write_atomically", refuse)
    assert len(read(paths)[0]) == 1
    assert not (tmp_path / "labels/train.cache.npz").exists()


def test_the_cache_is_readable_by_everyone(folder, tmp_path):
    read(folder("0 .5 .5 .2 .4"))
    assert stat.S_IMODE((tmp_path / "labels/train.cache.npz").stat().st_mode) == 0o644


# -- memory -----------------------------------------------------------------------------------------------------------


def test_packed_strings_are_a_sequence():
    texts = ["", "a", "ünï/cödé.jpg", "b" * 300]
    packed = PackedStrings.of(texts)
    assert list(packed) == texts
    assert packed[-1] == texts[-1]
    assert packed[1:3] == texts[1:3]
    assert len(PackedStrings.of([])) == 0
    with pytest.raises(IndexError):
        packed[4]


def test_labels_are_a_handful_of_objects_however_many_images(folder):
    labels = read(folder(*["0 .5 .5 .2 .4"] * 40))
    arrays = [value for value in vars(labels).values() if isinstance(value, (np.ndarray, PackedStrings))]
    assert len(arrays) == 6
    assert not any(isinstance(value, list) for value in vars(labels).values())


def test_real_labels_are_complete(bccd):
    spec = read_data(bccd)
    assert sum(len(read_labels(spec.images(split), 3, split, split).rows) for split in SPLITS) == 4886


# -- files that nobody means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("0 .5 .5 .2 .4\n".encode("utf-16"), "not all numbers"),
        (bytes(range(256)) * 4, "not all numbers"),
        (b"0 .5 .5 .2 .4\0", "not all numbers"),
        (b"0 .5 .5 .2 1e-300", "no size"),
        (b"0 .1 .1 .1000000001 .2 .1 .3", "no size"),
        (b"1e300 .5 .5 .2 .4", "classes 0 to 2"),
        (b"0 " + b".5 " * 300_001, "expected 5"),
        (b"0 .5 .5 .2 .4 " + b"x" * 1_000_000, "not all numbers"),
        (b"0 .5 .5 .2 \x1b[8m", "not all numbers"),
    ],
)
def test_odd_rows_are_named_in_a_short_line_that_can_be_read(folder, tmp_path, content, reason):
    paths = folder("", "1 .5 .5 .2 .2")
    (tmp_path / "labels/train/0.txt").write_bytes(content)
    labels = read(paths)
    assert len(labels[0]) == 0 and len(labels[1]) == 1
    assert reason in labels.problems[0].reason
    for problem in labels.problems:
        assert problem.reason.isprintable() and len(problem.reason) < 200


def test_classes_that_float32_cannot_hold_are_refused_where_none_are_known():
    assert not len(parse("1e300 .5 .5 .2 .4\n16777217 .5 .5 .2 .4", None).rows)
    assert len(parse("16777215 .5 .5 .2 .4", None).rows) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"0 .5 .5 .1 .1\n" * 1_000_000, "a file of 14 MB, expected labels of one image"),
        (b"nonsense\n" * 200_000, "more than 10000 bad rows; the first: not all numbers: nonsense"),
    ],
)
def test_files_that_are_no_labels_are_listed_once(folder, tmp_path, content, reason):
    paths = folder("", "1 .5 .5 .2 .2")
    (tmp_path / "labels/train/0.txt").write_bytes(content)
    labels = read(paths)
    (problem,) = labels.problems
    assert (problem.line, problem.reason) == (0, reason) and labels.counts.corrupt == 1
    assert list(labels.paths) == paths[1:]


@pytest.mark.parametrize("few", [100, 0])
def test_of_many_problems_the_first_are_named_and_all_are_counted(folder, scans, tmp_path, monkeypatch, few):
    """Files may have ten thousand each."""
    monkeypatch.setattr("data.scan.FEW", few)  # from which on several processes look
    monkeypatch.setattr("data.scan.CHUNK", 2)
    paths = folder(*["x\n" * 200 + f"{index} .5 .5 .2 .2" for index in range(3)] * 2, "x\n" * 20_000)
    for found in (read(paths), read(paths)):
        assert found.counts.skipped_rows == 1200 and found.counts.corrupt == 1 and len(found) == 6
        assert len(found.problems) == MOST_NAMED == 500
        assert [problem.path for problem in found.problems[::200]] == [label_path(path) for path in paths[:3]]
    assert len(scans) == 1


@pytest.mark.parametrize("problem", [[0, True, 1, "x" * 2_000_000], [0, True, 1, "x"]])
def test_a_cache_of_any_number_of_problems_is_not_taken(folder, scans, tmp_path, problem):
    paths = folder("0 .5 .5 .2 .4\nx")
    honest = read(paths)
    file = tmp_path / "labels/train.cache.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    head = json.loads(arrays["head"].tobytes())
    head["problems"] *= 200_000 if len(problem[-1]) == 1 else 1
    head["problems"].append(problem)
    np.savez(file, **{**arrays, "head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)})
    assert read(paths).problems == honest.problems and len(scans) == 2


def test_a_pipe_is_no_label_file_and_nobody_waits_for_it(folder, tmp_path):
    paths = folder(None, "1 .5 .5 .2 .2")
    os.mkfifo(tmp_path / "labels/train/0.txt")
    assert read(paths).problems[0].reason == "not a file"


LIES = {
    "kept": lambda a: a + 5,
    "shapes": lambda a: a * 30_000,
    "rows": lambda a: a * 2,
    "offsets": lambda a: a[::-1],
    "points": lambda a: a * np.nan,
    "point_offsets": lambda a: a + 1,
}


@pytest.mark.parametrize("name", LIES)
def test_a_cache_that_contradicts_itself_is_not_taken(folder, scans, tmp_path, name):
    """Its key may be right: who makes a data set can make its cache."""
    paths = folder("0 .1 .2 .5 .2 .3 .8\n1 .5 .5 .2 .4", "2 .5 .5 .2 .2")
    honest = read(paths)
    file = tmp_path / "labels/train.cache.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    for lie in (LIES[name], lambda a: a[:-1], lambda a: a.astype(np.float64), lambda a: a.reshape(-1, 1, 1)):
        np.savez(file, **{**arrays, name: lie(arrays[name])})
        np.testing.assert_array_equal(read(paths).rows, honest.rows)
    assert len(scans) == 5


def test_a_cache_of_classes_that_there_are_not_is_not_taken(folder, scans, tmp_path):
    paths = folder("0 .5 .5 .2 .4")
    read(paths)
    with np.load(tmp_path / "labels/train.cache.npz") as stored:
        arrays = dict(stored)
    arrays["rows"][:, 0] = 3
    np.savez(tmp_path / "labels/train.cache.npz", **arrays)
    assert read(paths).rows[:, 0].tolist() == [0] and len(scans) == 2


@pytest.mark.parametrize("method", ["savez_compressed", "header"])
def test_a_cache_that_claims_more_than_it_has_takes_no_memory(folder, scans, tmp_path, method):
    paths = folder("0 .5 .5 .2 .4")
    read(paths)
    file = tmp_path / "labels/train.cache.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    if method == "header":
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        lying = parts["rows.npy"].replace(b"(1, 5), }" + b" " * 10, b"(99999999999, 5), }")
        assert lying != parts["rows.npy"]
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in {**parts, "rows.npy": lying}.items():
                archive.writestr(name, part)
    else:
        np.savez_compressed(file, **{**arrays, "points": np.zeros((10_000_000, 2), dtype=np.float32)})
    assert len(read(paths)) == 1 and len(scans) == 2
