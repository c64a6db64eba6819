from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.drawn import CLASSES, DrawSettings, drawn_folder, read_settings
from data.drawn_scene import draw_scene
from data.labels import read_labels
from data.spec import read_data
from utils.errors import UserError

FEW = DrawSettings(seed=3, train=24, val=6, test=0, size=(96, 128))


def test_the_same_settings_give_the_same_pictures(tmp_path):
    first, second = drawn_folder(FEW, tmp_path / "a"), drawn_folder(FEW, tmp_path / "b")
    assert first.name == second.name
    names = sorted(p.relative_to(first) for p in first.rglob("*.*"))
    assert len(names) == 60
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_other_settings_give_other_pictures_in_another_folder(tmp_path):
    first, second = drawn_folder(FEW, tmp_path), drawn_folder(DrawSettings(4, 24, 6, 0, (96, 128)), tmp_path)
    assert first != second
    assert (first / "images/train/00000.png").read_bytes() != (second / "images/train/00000.png").read_bytes()


def test_pictures_are_drawn_once_and_no_half_folder_is_left(tmp_path):
    folder = drawn_folder(FEW, tmp_path)
    mark = folder / "images/train/00000.png"
    time = mark.stat().st_mtime_ns
    assert drawn_folder(FEW, tmp_path) == folder
    assert mark.stat().st_mtime_ns == time
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.drawn._draw_all", fail)
    with pytest.raises(KeyboardInterrupt):
        drawn_folder(FEW, tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_of_drawn_pictures_are_sound(tmp_path):
    folder = drawn_folder(FEW, tmp_path)
    labels = read_labels(sorted(map(str, (folder / "images/train").iterdir())), len(CLASSES), "train", "train")
    assert len(labels) == 24
    assert not labels.problems
    assert (labels.class_counts(len(CLASSES)) > 0).all()


def test_boxes_surround_what_is_seen_and_sizes_range_from_eight_pixels_to_half_the_image():
    sides = []
    for seed in range(150):
        image, classes, boxes = draw_scene((200, 220), np.random.default_rng(seed))
        assert image.shape == (200, 220, 3)
        assert image.dtype == np.uint8
        assert len(classes) == len(boxes)
        if len(boxes):
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= (220, 200)).all()
            sides += (boxes[:, 2:] - boxes[:, :2]).max(axis=1).tolist()
    assert min(sides) >= 6
    assert np.percentile(sides, 5) < 11
    assert 80 < max(sides) <= 104
    assert np.mean(sides) > 20


def test_every_class_looks_different_when_it_is_large():
    """The same place, colour and angle, another class: other pixels."""
    from data.drawn_scene import SHAPES, _stamp

    masks = []
    for shape in SHAPES.values():
        outlines = shape(np.random.default_rng(0))
        masks.append(_stamp(outlines, 60, (100, 100), np.random.default_rng(1)).mask > 0.5)
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask != other).mean() > 0.02


def test_a_data_file_that_asks_for_drawings_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr("data.spec.drawn_folder", lambda settings: drawn_folder(settings, tmp_path))
    file = tmp_path / "demo.yaml"
    file.write_text("draw: {seed: 3, train: 24, val: 6, test: 0, size: [96, 128]}")
    spec = read_data(file)
    assert spec.names == CLASSES
    assert len(spec.images("train")) == 24
    assert len(spec.images("val")) == 6
    assert cv2.imread(spec.images("val")[0]).shape[2] == 3


def test_our_demonstration_names_the_classes_that_are_drawn(root):
    import yaml

    content = yaml.safe_load((root / "data/demo.yaml").read_text())
    assert tuple(content["names"]) == CLASSES
    assert read_settings(content["draw"], "demo.yaml") == DrawSettings()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"trian": 5}, "did you mean 'train'"),
        ({"train": 0}, r"in \[1, 100000\]"),
        ({"size": [200, 100]}, "smallest"),
        (True, "mapping"),
        (
            dict.fromkeys(("train", "val", "test"), 100_000) | {"size": [2048, 2048]},
            "got 300000 images of up to 2048 x 2048 pixels, 1258.3 billion in all, expected at most 4; take fewer",
        ),
    ],
)
def test_wrong_settings_are_refused(draw, message):
    with pytest.raises(UserError, match=message):
        read_settings(draw, "demo.yaml")
