"""Figures are files of a sensible size, whatever the numbers are, and leave matplotlib as it was."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils.pictures import Panel, batch_mosaic, corners, draw, save, sheet
from utils.pictures import read as read_image
from utils.plots import (
    CROWDED,
    confidence_curve,
    confusion_matrix,
    label_statistics,
    precision_recall_curve,
    read_results,
    results_curves,
)

NAMES = ("cat", "price in $ and $", "猫", "a name much longer than any axis has room for")


def size(path: Path) -> tuple[int, int]:
    """Height and width."""
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is not an image"
    assert image.std() > 0, f"{path} is blank"
    return image.shape[0], image.shape[1]


def test_results_has_a_panel_for_every_column_and_bears_gaps(tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    table.write_text("epoch,train/box,train/kd_cwd,metrics/mAP50,val/box,lr/bias,lr/norm,seconds\n"
                     "1,0.5,0.9,,,0.1,0.01,3\n2,0.4,0.8,0.3,0.6,0.01,0.01,3\n")  # fmt: skip
    columns = read_results(table)

    assert np.isnan(columns["metrics/mAP50"][0])
    assert columns["metrics/mAP50"][1] == 0.3
    height, width = size(results_curves(columns, tmp_path / "results.png"))
    assert width > 3 * height  # four panels in a row: box, kd_cwd, mAP50, learning rate


def test_results_of_a_run_without_validation(tmp_path: Path) -> None:
    size(results_curves({"epoch": [1], "train/box": [0.5]}, tmp_path / "results.png"))


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_label_statistics(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    path = label_statistics(rng.integers(0, 4, count), rng.uniform(size=(count, 4)), NAMES, tmp_path / "labels.png")
    assert min(size(path)) > 800


@pytest.mark.parametrize("classes", [0, 1, 4, 80])
def test_curves_for_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    axis, names = np.linspace(0, 1, 1000), [f"{NAMES[k % 4]}{k}" for k in range(classes)]
    values = np.tile(1 - axis, (classes, 1))
    assert min(size(precision_recall_curve(axis, values, np.full(classes, 0.5), names, tmp_path / "PR.png"))) > 500
    assert min(size(confidence_curve(axis, values, names, "F1", tmp_path / "F1.png"))) > 500


@pytest.mark.parametrize("classes", [1, 4, 80])
def test_confusion_matrix(tmp_path: Path, classes: int) -> None:
    matrix = np.diag(np.arange(classes + 1))  # the first class has no labels: its column is empty
    names = [NAMES[k % 4] for k in range(classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        height, width = size(confusion_matrix(matrix, names, tmp_path / "matrix.png"))
    assert height > 400
    assert width >= height


def test_a_matrix_that_was_not_counted_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        size(confusion_matrix(np.zeros((0, 0)), ["a"] * 5000, tmp_path / "matrix.png"))
    (told,) = caplog.messages
    assert told == f"{tmp_path / 'matrix.png'}: 5000 classes are too many to count which is taken for which"


ODD = (r"$\x$", "$_$", r"\$x$", "\ud800", "\0", "a\nb", "\x1b[8m", "", " ")


def test_names_are_no_formulas_and_need_not_be_text(tmp_path: Path) -> None:
    axis, values, areas = np.linspace(0, 1, 50), np.full((len(ODD), 50), 0.5), np.full(len(ODD), 0.5)
    size(label_statistics(np.arange(len(ODD)), np.full((len(ODD), 4), 0.5), ODD, tmp_path / "labels.png"))
    size(confusion_matrix(np.eye(len(ODD) + 1), ODD, tmp_path / "matrix.png"))
    size(precision_recall_curve(axis, values, areas, ODD, tmp_path / "PR.png"))


def test_of_very_many_classes_not_each_has_a_curve_or_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand take minutes."""
    figures: list[Any] = []
    monkeypatch.setattr("utils.plots._save", lambda figure, path: figures.append(figure) or path)
    classes = 3000
    axis, names = np.linspace(0, 1, 50), ["a"] * classes
    values = np.random.default_rng(0).random((classes, 50))
    confidence_curve(axis, values, names, "F1", tmp_path / "F1.png")
    curves = [line.get_ydata() for line in figures[0].axes[0].lines]
    assert len(curves) == CROWDED + 1
    np.testing.assert_allclose(curves[0], values[0])
    np.testing.assert_allclose(curves[-2], values[-1])
    np.testing.assert_allclose(curves[-1], values.mean(axis=0))  # of all
    label_statistics(np.arange(classes), np.full((classes, 4), 0.5), names, tmp_path / "labels.png")
    assert len(figures[1].axes[0].patches) + len(figures[1].axes[0].collections) == 1


def test_figures_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib as mpl

    settings, pyplot_before = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    confusion_matrix(np.eye(3), NAMES[:2], tmp_path / "matrix.png")
    label_statistics([0], [[0.5, 0.5, 0.1, 0.1]], NAMES, tmp_path / "labels.png")
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before
    assert mpl.rcParams.copy() == settings


def test_box_is_drawn_where_it_is_in_the_scaled_panel() -> None:
    image = np.full((100, 200, 3), 128, dtype=np.uint8)
    drawn = draw(Panel(image, [[20, 20, 120, 80]], [0]), ["x"], (200, 200))  # half as wide as the panel is high
    changed = (drawn != 128).any(axis=2) & (np.arange(200) >= 50)[:, None] & (np.arange(200) < 150)[:, None]
    rows, columns = np.nonzero(changed)
    assert rows.max() == pytest.approx(50 + 80, abs=2)
    assert (columns.min(), columns.max()) == (pytest.approx(20, abs=2), pytest.approx(120, abs=2))


def test_mosaic_shows_each_image_with_its_own_boxes(tmp_path: Path) -> None:
    images = np.full((5, 3, 64, 96), 0.5, dtype=np.float32)
    path = batch_mosaic(images, [[3, 1, 0.5, 0.5, 0.4, 0.4]], NAMES, tmp_path / "batch.png")
    assert size(path) == (2 * 64, 3 * 96)
    tiles = cv2.imread(str(path)).reshape(2, 64, 3, 96, 3).transpose(0, 2, 1, 3, 4).reshape(6, 64, 96, 3)
    drawn = [bool((tile[2:-2, 2:-2] != tile[32, 48]).any()) for tile in tiles]
    assert drawn == [False, False, False, True, False, False]


def test_mosaic_of_a_batch_without_boxes_and_with_more_images_than_shown(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 3, 32, 32)).astype(np.uint8)
    assert size(batch_mosaic(images, np.zeros((0, 6)), NAMES, tmp_path / "batch.jpg")) == (4 * 32, 4 * 32)


def test_sheet_has_a_column_for_each_title(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    panel = Panel(image, np.zeros((0, 4)), [])
    found = Panel(image, [[1, 1, 30, 30]], [9], [0.9])  # a class without a name
    height, width = size(sheet([(panel, found, found)] * 2, ("a", "b", "c"), NAMES, tmp_path / "sheet.jpg", width=120))
    assert width == pytest.approx(3 * 120, abs=40)
    assert height == pytest.approx(2 * 90, abs=60)


def test_images_are_stored_as_rgb(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert (read_image(save(red, tmp_path / "red.png")) == red).all()
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]


def test_corners_of_a_centre_box() -> None:
    assert corners([[0.5, 0.25, 0.5, 0.1]], height=200, width=100).tolist() == [[25, 40, 75, 60]]
