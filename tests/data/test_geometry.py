from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from data.geometry import (
    candidates,
    fitted_size,
    frame_of,
    letterbox,
    letterbox_picture,
    place,
    random_affine,
    random_matrix,
    visible_boxes,
    warp_boxes,
    warp_image,
    warp_points,
)
from data.picture import Picture, Polygons, boxes_as_polygons
from utils.boxes import to_original, to_tensor


def hyp(**changes):
    return SimpleNamespace(**{"degrees": 0, "translate": 0, "scale": 0, "shear": 0, "perspective": 0, **changes})


WILD = hyp(degrees=40, translate=0.3, scale=0.5, shear=20, perspective=0.0005)


def random_boxes(rng, count, size):
    low, high = np.sort(rng.uniform(0, 1, (2, count, 2)) * size[::-1], axis=0)
    return np.concatenate((low, high), axis=1).astype(np.float32)


# -- letterbox --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [((480, 640), (320, 320), (240, 320)), ((640, 427), (640, 640), (640, 427)), ((500, 333), (640, 640), (640, 427)),
     ((100, 50), (96, 192), (96, 48)), ((30, 3000), (64, 64), (1, 64))],
)  # fmt: skip
def test_images_fit_and_touch_one_side(original, size, expected):
    assert fitted_size(original, size) == expected


def test_no_fitted_size_exceeds_its_limits():
    rng = np.random.default_rng(0)
    for original in rng.integers(1, 2000, (2000, 2)).tolist():
        height, width = fitted_size(tuple(original), (416, 736))
        assert height == 416 or width == 736
        assert height <= 416
        assert width <= 736


def test_padding_is_centred_with_the_odd_pixel_below_and_right():
    assert place((5, 8), (8, 11), enlarge=False) == ((5, 8), 1, 1, 2, 2)
    assert place((4, 8), (8, 8), enlarge=False) == ((4, 8), 2, 0, 2, 0)
    assert place((4, 4), (8, 10), enlarge=True) == ((8, 8), 0, 1, 0, 1)


def test_a_letterbox_is_grey_114_around_the_image():
    image, placement = letterbox(np.zeros((4, 8, 3), dtype=np.uint8), (8, 8))
    assert image.shape == (8, 8, 3)
    assert (image[placement.top : 8 - placement.bottom] == 0).all()
    assert (image[: placement.top] == 114).all()
    assert (image[8 - placement.bottom :] == 114).all()


def test_boxes_survive_the_way_into_the_tensor_and_back():
    rng = np.random.default_rng(0)
    for original in ((480, 640), (427, 640), (333, 500), (999, 31), (70, 70)):
        for size in ((320, 320), (416, 736), (64, 352)):
            frame = frame_of(original, place(original, size, enlarge=True))
            boxes = torch.from_numpy(random_boxes(rng, 20, original)).double()
            torch.testing.assert_close(to_original(to_tensor(boxes, frame), frame), boxes, rtol=0, atol=1e-9)


def test_boxes_stay_on_their_object_through_a_letterbox():
    image = np.zeros((60, 100, 3), dtype=np.uint8)
    image[20:40, 50:80] = 255
    boxes = np.array([[50, 20, 80, 40]], dtype=np.float32)
    for size in ((96, 96), (33, 64), (200, 90)):
        picture = letterbox_picture(Picture(image, np.zeros(1, np.float32), boxes, boxes_as_polygons(boxes)), size)
        rows, columns = np.nonzero(picture.image[..., 0] > 180)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(picture.boxes[0], seen, atol=1.01)
        np.testing.assert_allclose(picture.polygons.points[[0, 2]].ravel(), picture.boxes[0])


# -- warps ------------------------------------------------------------------------------------------------------------


def test_warped_boxes_equal_a_loop_over_corners():
    rng = np.random.default_rng(1)
    for _ in range(20):
        matrix, _scale = random_matrix((64, 96), (48, 80), WILD, rng)
        boxes = random_boxes(rng, 5, (64, 96))
        expected = []
        for x1, y1, x2, y2 in boxes.tolist():
            corners = []
            for x, y in ((x1, y1), (x2, y1), (x1, y2), (x2, y2)):
                u, v, w = (sum(row[i] * value for i, value in enumerate((x, y, 1))) for row in matrix.tolist())
                corners.append((u / w, v / w))
            xs, ys = zip(*corners, strict=True)
            expected.append((min(xs), min(ys), max(xs), max(ys)))
        np.testing.assert_allclose(warp_boxes(boxes, matrix), expected, rtol=1e-4, atol=1e-3)


def test_without_hyper_parameters_nothing_moves():
    rng = np.random.default_rng(0)
    matrix, scale = random_matrix((64, 96), (64, 96), hyp(), rng)
    np.testing.assert_array_equal(matrix, np.eye(3))
    assert scale == 1
    picture = Picture(np.zeros((64, 96, 3), np.uint8), np.zeros(3, np.float32), random_boxes(rng, 3, (64, 96)))
    assert random_affine(picture, (64, 96), hyp(), rng) is picture


def test_a_canvas_is_cut_to_its_centre():
    matrix, _ = random_matrix((128, 192), (64, 96), hyp(), np.random.default_rng(0))
    np.testing.assert_allclose(warp_points(np.array([[96, 64], [48, 32]], np.float32), matrix), [[48, 32], [0, 0]])


@pytest.mark.parametrize("changes", [{"translate": 0.2}, {"scale": 0.5}, {"degrees": 30}, {"perspective": 0.001}])
def test_ranges_of_hyper_parameters_are_as_published(changes):
    rng = np.random.default_rng(0)
    size = (100, 200)
    for _ in range(50):
        matrix, scale = random_matrix(size, size, hyp(**changes), rng)
        (x, y), (right, _) = warp_points(np.array([[100, 50], [101, 50]], np.float32), matrix)
        if "translate" in changes:
            assert abs(x - 100) <= 0.2 * 200
            assert abs(y - 50) <= 0.2 * 100
        if "scale" in changes:
            assert 0.5 <= scale <= 1.5
            assert right - x == pytest.approx(scale, abs=1e-3)
        if "degrees" in changes:
            assert abs(math.degrees(math.atan2(matrix[0, 1], matrix[0, 0]))) <= 30
        if "perspective" in changes:
            assert abs(matrix[2, :2]).max() <= 0.001


def test_boxes_stay_on_their_object_through_a_warp():
    rng = np.random.default_rng(3)
    for _ in range(20):
        image = np.zeros((100, 120, 3), dtype=np.uint8)
        image[40:60, 50:80] = 255
        boxes = np.array([[50, 40, 80, 60]], dtype=np.float32)
        picture = Picture(image, np.zeros(1, np.float32), boxes)
        seed = int(rng.integers(1 << 30))
        matrix, _ = random_matrix((100, 120), (90, 140), WILD, np.random.default_rng(seed))
        warped = random_affine(picture, (90, 140), WILD, np.random.default_rng(seed))
        assert warped.image.shape == (90, 140, 3)
        np.testing.assert_array_equal(warped.image, warp_image(image, matrix, (90, 140)))
        if len(warped.boxes):
            rows, columns = np.nonzero(warped.image[..., 0] > 180)
            seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(warped.boxes[0], seen, atol=2.5)


@pytest.mark.parametrize("changes", [{}, {"degrees": 40, "shear": 20}, {"degrees": 20, "perspective": 0.002}])
def test_the_middle_of_a_warped_object_is_the_middle_of_its_warped_outline(changes):
    """To a fraction of a pixel, however much it is enlarged: pixels and boxes are both counted from edges."""
    rng = np.random.default_rng(4)
    image = np.full((100, 120, 3), 114, dtype=np.uint8)
    image[44:56, 50:70] = 255
    for scale in (0.5, 1.0, 3.0):
        for _ in range(5):
            matrix, _ = random_matrix((100, 120), (400, 400), hyp(**changes), rng)
            matrix = np.diag((scale, scale, 1.0)) @ matrix
            matrix[:2] += np.outer((200 - 200 * scale, 200 - 200 * scale), matrix[2])
            weights = warp_image(image, matrix, (400, 400))[..., 0].astype(float) - 114
            middle = [(weights.sum(axis=axis) * (np.arange(400) + 0.5)).sum() / weights.sum() for axis in (0, 1)]
            outline = warp_points(np.array([[50, 44], [70, 44], [70, 56], [50, 56]], np.float32), matrix)
            fine = np.zeros((6400, 6400), dtype=np.uint8)  # its centre of mass, painted sixteen times as fine
            cv2.fillPoly(fine, [np.round(outline * 16).astype(np.int32)], 1)
            moments = cv2.moments(fine, binaryImage=True)
            expected = [(moments[name] / moments["m00"] + 0.5) / 16 for name in ("m10", "m01")]
            np.testing.assert_allclose(middle, expected, atol=0.1)


def test_boxes_are_kept_by_size_area_and_shape():
    before = np.array([[0, 0, 10, 10]] * 5, dtype=np.float32)
    after = np.array([[0, 0, 2, 9], [0, 0, 3, 3], [0, 0, 4, 3], [0, 0, 300, 2.9], [0, 0, 9, 0]], dtype=np.float32)
    assert candidates(before, after, 0.1).tolist() == [False, False, True, False, False]
    assert candidates(before, after, 0.01).tolist() == [False, True, True, False, False]


# -- polygons ---------------------------------------------------------------------------------------------------------


def test_visible_boxes_of_polygons_equal_what_is_painted():
    rng = np.random.default_rng(5)
    size, fine, compared = (60, 80), 16, 0
    for _ in range(60):
        corners, centre = int(rng.integers(3, 9)), rng.uniform(-30, 110, 2)
        angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
        points = centre + rng.uniform(5, 90, (corners, 1)) * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        canvas = np.zeros(tuple(fine * side for side in size), dtype=np.uint8)  # what lies outside is cut off
        cv2.fillPoly(canvas, [np.round(points * fine).astype(np.int32)], 1)
        x, y, width, height = np.array(cv2.boundingRect(canvas)) / fine
        (box,) = visible_boxes(Polygons(points.astype(np.float32), np.array([corners])), size)
        if width > 1 and height > 1:
            np.testing.assert_allclose(box, (x, y, x + width, y + height), atol=1)
            compared += 1
    assert compared > 40


def test_a_polygon_larger_than_the_image_fills_it_and_one_outside_is_nothing():
    boxes = np.array([[-50, -50, 200, 200], [300, 300, 400, 400], [10, 10, 20, 500]], dtype=np.float32)
    visible = visible_boxes(boxes_as_polygons(boxes[:, [0, 1, 2, 3]]), (60, 80))
    np.testing.assert_allclose(visible[0], [0, 0, 80, 60])
    np.testing.assert_allclose(visible[1], 0)
    np.testing.assert_allclose(visible[2], [10, 10, 20, 60])


def test_polygons_are_selected_with_their_boxes():
    polygons = Polygons(np.arange(24, dtype=np.float32).reshape(12, 2), np.array([3, 4, 5]))
    kept = polygons.take(np.array([True, False, True]))
    assert kept.counts.tolist() == [3, 5]
    assert kept.points[:, 0].tolist() == [0, 2, 4, 14, 16, 18, 20, 22]
    assert polygons.take(np.array([2])).points[:, 0].tolist() == [14, 16, 18, 20, 22]
    assert len(polygons.take(np.zeros(3, dtype=bool)).points) == 0
