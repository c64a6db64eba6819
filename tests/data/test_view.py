"""A fixed crop and stretching: the same in training and evaluation, and back again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import data.store
from data.anchors import box_sides
from data.dataset import prepare
from data.geometry import GREY
from data.labels import read_labels
from data.loader import eval_loader, train_loader
from data.spec import read_data
from data.view import View
from engine.evaluator import Evaluator
from utils.boxes import to_original, xywh_to_xyxy
from utils.errors import UserError
from utils.hyp import Hyp
from utils.nms import confident_rows

PLAIN = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
CROP = (0.1, 0.25, 0.9, 1.0)
VIEWS = {
    "stretched": replace(PLAIN, letterbox=False),
    "cropped": replace(PLAIN, fixed_crop=CROP),
    "both": replace(PLAIN, letterbox=False, fixed_crop=CROP),
}
SIZE = (64, 160)  # high, wide
# of each image: its height and width, and a rectangle in it, xyxy pixels; the last one sticks out of the crop
SHOWN = (((120, 200), (60, 50, 130, 90)), ((200, 120), (30, 80, 90, 150)), ((100, 100), (30, 30, 70, 60)),
         ((160, 300), (10, 60, 150, 120)))  # fmt: skip


@pytest.fixture
def rectangles(tmp_path):
    """The YAML file of images with a white rectangle each."""
    for split in ("train", "val"):
        for index, ((height, width), (x1, y1, x2, y2)) in enumerate(SHOWN):
            image = np.zeros((height, width, 3), dtype=np.uint8)
            image[y1:y2, x1:x2] = 255
            row = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            for kind in ("images", "labels"):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / f"images/{split}/{index}.png"), image)
            (tmp_path / f"labels/{split}/{index}.txt").write_text("1 " + " ".join(f"{v:.7f}" for v in row))
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames: [a, b, c]\n")
    return file


def training(file, hyp, **options):
    options = {"image_size": SIZE, "batch_size": 4, "stride": 32, "seed": 0, **options}
    return train_loader(read_data(file), hyp, **options)


def evaluation(file, hyp, **options):
    options = {"image_size": SIZE, "batch_size": 4, "stride": 32, **options}
    return eval_loader(read_data(file), "val", hyp=hyp, **options)


def found_rectangle(image):
    """xyxy of what is brighter than the padding, in a tensor (3, H, W)."""
    bright = (image[0] > 185).nonzero()
    return torch.cat((bright.min(dim=0).values.flip(0), bright.max(dim=0).values.flip(0) + 1)).float()


def in_crop(box, size, crop):
    """A box of pixels cut at the borders of a crop, slowly."""
    height, width = size
    left, top, right, bottom = (round(share * side) for share, side in zip(crop, (width, height) * 2, strict=True))
    return [max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)]


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["boxes", "polygons"])
def test_cropped_labels_equal_a_loop_over_boxes(make_data, kind):
    polygon = "1 " + " ".join(f"{v}" for v in (0.05, 0.1, 0.3, 0.1, 0.4, 0.5, 0.3, 0.9, 0.05, 0.6)) + "\n"
    rows = [
        "0 .1 .1 .1 .1\n2 .5 .5 .3 .4\n",
        "",
        f"0 .92 .5 .1 .2\n{polygon}",
        "1 .9 .9 .15 .15\n2 .5 .855 .2 .12\n1 .5 .7 .2 .4\n",
    ]
    file = make_data(4, rows if kind == "polygons" else [text.replace(polygon, "") for text in rows])
    images = read_data(file).images("train")
    labels = read_labels(images, 3, f"crop-{kind}", "train")
    crop = (0.12, 0.31, 0.95, 0.8)
    found = View(crop).labels(labels, SIZE, "train")
    dropped = 0
    for index, (height, width) in enumerate(labels.shapes.tolist()):
        x1, y1, x2, y2 = (round(share * side) for share, side in zip(crop, (width, height) * 2, strict=True))
        assert found.shapes[index].tolist() == [y2 - y1, x2 - x1]
        expected, outlines = [], []
        for (label, x, y, w, h), outline in zip(labels[index].tolist(), labels.polygons(index), strict=True):
            low = max(x1, (x - w / 2) * width), max(y1, (y - h / 2) * height)
            high = min(x2, (x + w / 2) * width), min(y2, (y + h / 2) * height)
            if max(0, high[0] - low[0]) * max(0, high[1] - low[1]) <= 0.1 * w * width * h * height:
                dropped += 1
                continue
            a, c = (low[0] - x1) / (x2 - x1), (high[0] - x1) / (x2 - x1)
            b, d = (low[1] - y1) / (y2 - y1), (high[1] - y1) / (y2 - y1)
            expected.append((label, (a + c) / 2, (b + d) / 2, c - a, d - b))
            outlines.append([
                (min(1, max(0, (px * width - x1) / (x2 - x1))), min(1, max(0, (py * height - y1) / (y2 - y1))))
                for px, py in outline.tolist()
            ])  # fmt: skip
        np.testing.assert_allclose(found[index], np.array(expected).reshape(-1, 5), atol=1e-5)
        for outline, slow in zip(found.polygons(index), outlines, strict=True):
            np.testing.assert_allclose(outline, np.array(slow).reshape(-1, 2), atol=1e-5)
    assert dropped == 3  # two lie outside, and of one next to nothing is left
    assert found.has_polygons == (kind == "polygons")


def test_stretching_leaves_labels_as_they_are_and_anchors_see_stretched_boxes(make_data):
    file = make_data()
    plain, stretched = training(file, PLAIN).dataset, training(file, VIEWS["stretched"]).dataset
    assert stretched.labels.rows is not plain.labels.rows
    np.testing.assert_array_equal(stretched.labels.rows, plain.labels.rows)
    sides = box_sides(stretched.labels, stretched.shapes, SIZE)
    np.testing.assert_allclose(sides, plain.labels.rows[:, 3:5] * (160, 64))


def test_a_crop_without_a_single_box_is_refused(make_data):
    file = make_data(2, ["0 .1 .1 .1 .1", "0 .1 .2 .1 .1"])
    with pytest.raises(UserError, match=r"train: fixed_crop: \[0.5, 0.5, 1, 1\] leaves none of 2 boxes"):
        training(file, replace(PLAIN, fixed_crop=(0.5, 0.5, 1.0, 1.0)))


def test_the_whole_image_is_the_same_as_no_crop(make_data):
    file = make_data()
    (plain, whole) = (training(file, replace(PLAIN, fixed_crop=crop)) for crop in (None, (0.0, 0.0, 1.0, 1.0)))
    for one, other in zip(plain, whole, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VIEWS)
def test_objects_are_where_their_boxes_are_in_training_and_evaluation(rectangles, kind):
    for loader in (
        training(rectangles, VIEWS[kind]),
        training(rectangles, VIEWS[kind], augment=False),
        training(rectangles, VIEWS[kind], rect=True),
        evaluation(rectangles, VIEWS[kind]),
        evaluation(rectangles, VIEWS[kind], rect=False),
    ):
        count = 0
        for batch in loader:
            size = torch.tensor(batch.images.shape[:1:-1]).repeat(2)
            for number, label, *box in batch.targets.tolist():
                assert label == 1
                expected = xywh_to_xyxy(torch.tensor(box)) * size
                torch.testing.assert_close(found_rectangle(batch.images[int(number)]), expected, rtol=0, atol=1.6)
                count += 1
        assert count == 4


@pytest.mark.parametrize("kind", VIEWS)
def test_boxes_find_their_way_back_to_the_file(rectangles, kind):
    hyp = VIEWS[kind]
    for batch in evaluation(rectangles, hyp):
        size = torch.tensor(batch.images.shape[:1:-1]).repeat(2)
        for index, (path, frame) in enumerate(zip(batch.paths, batch.frames, strict=True)):
            shape, box = SHOWN[int(path.rsplit("/", 1)[1].removesuffix(".png"))]
            assert (frame.height, frame.width) == shape
            expected = torch.tensor(in_crop(box, shape, hyp.fixed_crop or (0, 0, 1, 1))).double()
            target = batch.targets[batch.targets[:, 0] == index, 2:].double()
            torch.testing.assert_close(to_original(xywh_to_xyxy(target) * size, frame)[0], expected, rtol=0, atol=1e-3)
            # and what is seen in the pixels, as exactly as pixels are
            seen = to_original(found_rectangle(batch.images[index]).double(), frame)
            coarse = 1.6 / min(frame.scale_x, frame.scale_y)
            torch.testing.assert_close(seen, expected, rtol=0, atol=coarse)


def test_stretched_images_fill_the_tensor_in_training_and_evaluation(rectangles):
    for hyp in (VIEWS["stretched"], VIEWS["both"]):
        for loader in (training(rectangles, hyp), evaluation(rectangles, hyp), evaluation(rectangles, hyp, rect=False)):
            for batch in loader:
                assert batch.images.shape[2:] == SIZE
                assert not (batch.images == GREY).any()


def test_cropped_images_are_padded_no_more_than_the_crop_needs(rectangles):
    shapes = {tuple(batch.images.shape[2:]) for batch in evaluation(rectangles, VIEWS["cropped"], batch_size=1)}
    # 90 x 160, 150 x 96, 75 x 80 and 120 x 240 fitted into 64 x 160, half a stride, rounded up to strides
    assert shapes == {(96, 160), (96, 64), (96, 96)}


def test_pixels_of_a_stretched_crop_are_those_of_one_resize(rectangles):
    for batch in evaluation(rectangles, VIEWS["both"]):
        for pixels, path in zip(batch.images, batch.paths, strict=True):
            image = cv2.imread(path)
            (height, width), (left, top, right, bottom) = image.shape[:2], CROP
            part = image[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
            shrinks = part.shape[0] >= 64 and part.shape[1] >= 160
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            expected = cv2.resize(part, (160, 64), interpolation=method)[..., ::-1].transpose(2, 0, 1)
            np.testing.assert_array_equal(pixels.numpy(), expected)


@pytest.mark.parametrize("kind", VIEWS)
def test_a_single_image_is_prepared_as_in_evaluation(rectangles, kind):
    for batch in evaluation(rectangles, VIEWS[kind], rect=False):
        for pixels, path, frame in zip(batch.images, batch.paths, batch.frames, strict=True):
            prepared, own = prepare(cv2.imread(path), SIZE, View.of(VIEWS[kind]))
            assert torch.equal(prepared, pixels)
            assert own == frame


@pytest.mark.parametrize("cache", ["", "ram", "disk"])
def test_caches_give_the_same_pixels_and_frames(rectangles, cache, monkeypatch):
    monkeypatch.setattr(data.store, "SMALL", 0)
    plain, cached = evaluation(rectangles, VIEWS["both"]), evaluation(rectangles, VIEWS["both"], cache=cache)
    assert cached.dataset.store.keeps_all == (cache == "ram")
    for _ in range(2):  # the second time from the disk
        for one, other in zip(plain, cached, strict=True):
            assert torch.equal(one.images, other.images)
            assert one.frames == other.frames


def test_a_file_that_goes_bad_is_grey_and_of_the_right_size(rectangles, monkeypatch, tmp_path):
    monkeypatch.setattr(data.store, "SMALL", 0)
    loader = evaluation(rectangles, VIEWS["both"])
    (tmp_path / "images/val/0.png").write_text("gone")
    (batch,) = loader
    index = [path.endswith("0.png") for path in batch.paths].index(True)
    assert (batch.images[index] == GREY).all()
    assert (batch.frames[index].height, batch.frames[index].width) == SHOWN[0][0]


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_what_is_found_beyond_a_crop_is_cut_at_its_border(rectangles):
    evaluator = Evaluator([], torch.device("cpu"), names=("a", "b", "c"))
    (batch,) = evaluation(rectangles, VIEWS["both"])
    too_large = torch.tensor([[-10.0, -10.0, 175.0, 80.0, 0.9, 1.0]])
    for one in evaluator._in_originals(batch, [too_large] * 4):
        expected = in_crop((0, 0, one.width, one.height), (one.height, one.width), CROP)
        np.testing.assert_allclose(one.found[0, :4], expected, atol=1e-3)


def test_a_detector_that_knows_the_labels_scores_one(rectangles):
    """From the files through tensor and frames to mAP."""
    hyp = VIEWS["both"]
    (batch,) = evaluation(rectangles, hyp)

    class Oracle(torch.nn.Module):
        names, named = ("a", "b", "c"), True

        def __init__(self):
            super().__init__()
            self.head = SimpleNamespace(
                decode_confident=lambda levels, conf: confident_rows(levels[0], conf), nms_free=False
            )

        def fuse(self):
            return self

        def forward(self, images):
            rows = torch.zeros(len(images), 1, 8)
            for index in range(len(images)):
                x1, y1, x2, y2 = found_rectangle(images[index] * 255).tolist()
                rows[index, 0] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.9, 0, 1, 0])
            return SimpleNamespace(levels=(rows,), _replace=lambda levels: SimpleNamespace(levels=levels))

    report = Evaluator([batch], torch.device("cpu"), names=Oracle.names)(Oracle(), progress=False)
    assert report.evaluation.map50 == pytest.approx(1, abs=0.01)
    assert report.evaluation.map > 0.8
