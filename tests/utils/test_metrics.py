"""Scores, against definitions written out in loops and against pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.utils.scored import data_set, slow_match
from utils.matching import IOU_THRESHOLDS, match
from utils.metrics import MOST_COMPARED, ConfusionMatrix, Evaluation, agreement, evaluate, fitness, pair_off

NAMES = ("disc", "ring", "bar", "never seen")


def stats_of(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, ...]]:
    rights = match(*zip(*pairs, strict=True)) if pairs else []
    return [
        (right, found[:, 4], found[:, 5], labels[:, 0]) for right, (found, labels) in zip(rights, pairs, strict=True)
    ]


# -- average precision -------------------------------------------------------------------------------------------------


def slow_average_precision(right: list[bool], labels: int) -> float:
    """101 points under the envelope, straight lines between the points of the curve, trapezoids between the 101."""
    recalls, precisions, found = [0.0], [1.0], 0
    for n, hit in enumerate(right, start=1):
        found += hit
        recalls.append(found / labels)
        precisions.append(found / n)
    recalls.append(1.0)
    precisions.append(0.0)
    envelope = [max(precisions[i:]) for i in range(len(precisions))]
    heights = np.interp([i / 100 for i in range(101)], recalls, envelope)
    return sum((heights[i] + heights[i + 1]) / 2 * 0.01 for i in range(100))


def slow_curve(right: list[bool], confidence: list[float], labels: int, recall: bool) -> list[float]:
    """Recall or precision of what is above each confidence, straight lines between those that occur."""
    values, found = [], 0
    for n, hit in enumerate(right, start=1):
        found += hit
        values.append(found / labels if recall else found / n)
    return [
        float(np.interp(-c, [-x for x in confidence], values, left=0.0 if recall else 1.0))
        for c in np.linspace(0, 1, 1000)
    ]


def slow_evaluation(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    rows = []
    for detections, labels in pairs:
        hits = [slow_match(detections, labels, threshold) for threshold in IOU_THRESHOLDS]
        rows += [(float(d[4]), int(d[5]), [hit[i] for hit in hits]) for i, d in enumerate(detections)]
    rows.sort(key=lambda row: -row[0])
    present = [int(c) for _, labels in pairs for c in labels[:, 0]]
    averages, recalls, precisions = [], [], []
    for index in sorted(set(present)):
        own = [row for row in rows if row[1] == index]
        averages.append([slow_average_precision([r[2][t] for r in own], present.count(index)) for t in range(10)])
        hits, sure = [r[2][0] for r in own], [r[0] for r in own]
        recalls.append(slow_curve(hits, sure, present.count(index), recall=True))
        precisions.append(slow_curve(hits, sure, present.count(index), recall=False))
    precision, recall = np.array(precisions), np.array(recalls)
    f1 = (2 * precision * recall / (precision + recall + 1e-16)).mean(axis=0)
    wide = np.concatenate(([f1[0]] * 50, f1, [f1[-1]] * 50))
    best = int(np.argmax([wide[i : i + 101].mean() for i in range(1000)]))
    return {
        "precision": precision[:, best].mean(),
        "recall": recall[:, best].mean(),
        "map50": np.mean([a[0] for a in averages]),
        "map": np.mean(averages),
    }


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_their_definitions(seed):
    pairs = data_set(seed)
    evaluation = evaluate(stats_of(pairs), NAMES)
    for name, value in slow_evaluation(pairs).items():
        assert getattr(evaluation, name) == pytest.approx(value, abs=1e-9), name


def coco_scores(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """mAP50-95 and mAP50 of pycocotools."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    def coco_box(corners: list[float]) -> list[float]:
        return [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]

    labels = [(i, row) for i, (_, own) in enumerate(pairs) for row in own.tolist()]
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(pairs))],
        "categories": [{"id": i} for i in range(3)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": int(row[0]), "bbox": coco_box(row[1:]), "area": 1e4, "iscrowd": 0}
            for n, (i, row) in enumerate(labels, start=1)
        ],
    }
    detections = [
        {"image_id": i, "category_id": int(row[5]), "bbox": coco_box(row[:4]), "score": row[4]}
        for i, (own, _) in enumerate(pairs)
        for row in own.tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats[0], judge.stats[1]


@pytest.mark.parametrize("seed", range(2))
def test_scores_are_near_those_of_pycocotools(seed):
    # ours draws a line from the last point of the curve down to recall 1, so there must be detections of little worth;
    # theirs lets a detection have its second choice of label
    pairs = data_set(seed, images=150, spread=3, wrong=60)
    evaluation = evaluate(stats_of(pairs), NAMES)
    expected, expected50 = coco_scores(pairs)
    assert evaluation.map == pytest.approx(expected, abs=0.006)
    assert evaluation.map50 == pytest.approx(expected50, abs=0.006)
    assert 0.1 < evaluation.map < evaluation.map50 < 0.95


def test_perfect_detections_score_one():
    pairs = []
    for _, labels in data_set():
        sure = torch.linspace(0.99, 0.9, len(labels))[:, None]
        pairs.append((torch.cat((labels[:, 1:], sure, labels[:, :1]), dim=1), labels))
    evaluation = evaluate(stats_of(pairs), NAMES)
    # interpolation leaves a corner at full recall
    assert evaluation.map == pytest.approx(0.995, abs=1e-6) and evaluation.map50 == pytest.approx(evaluation.map)
    assert evaluation.precision == evaluation.recall == 1
    assert fitness(evaluation) == pytest.approx(evaluation.map)


def test_scores_with_a_drop_are_below_those_with_a_line_and_else_equal():
    stats = stats_of(data_set(0))
    line, drop = (evaluate(stats, NAMES, end) for end in ("yolov5", "ultralytics"))
    assert (line.precision, line.recall) == (drop.precision, drop.recall)
    assert line.map - 0.1 < drop.map < line.map and drop.map50 < line.map50


def test_fitness_weighs_the_harder_score_more():
    assert fitness(Evaluation(map50=0.5, map=0.3)) == pytest.approx(0.1 * 0.5 + 0.9 * 0.3)


def test_nothing_to_find_or_nothing_found_scores_zero_and_finite():
    labels, detections = torch.tensor([[1.0, 0, 0, 5, 5]]), torch.tensor([[0.0, 0, 5, 5, 0.9, 1]])
    no_labels, nothing = torch.zeros(0, 5), torch.zeros(0, 6)
    for pairs in ([], [(nothing, no_labels)], [(detections, no_labels)], [(nothing, labels)]):
        evaluation = evaluate(stats_of(pairs), NAMES)
        scores = [evaluation.precision, evaluation.recall, evaluation.map50, evaluation.map, fitness(evaluation)]
        assert scores == [0] * 5 and evaluation.images == len(pairs)
        assert evaluation.curves.f1.shape == (len(evaluation.per_class), 1000)
    assert evaluation.per_class[0].labels == 1


def test_classes_are_listed_with_their_images_and_labels():
    pairs = data_set()
    evaluation = evaluate(stats_of(pairs), NAMES)
    assert [result.name for result in evaluation.per_class] == list(NAMES[:3])  # one has no labels
    for result in evaluation.per_class:
        own = [int((labels[:, 0] == result.index).sum()) for _, labels in pairs]
        assert (result.labels, result.images) == (sum(own), sum(count > 0 for count in own))
    assert sum(result.labels for result in evaluation.per_class) == evaluation.labels
    for field in ("precision", "recall", "map50", "map"):
        values = [getattr(result, field) for result in evaluation.per_class]
        assert getattr(evaluation, field) == pytest.approx(np.mean(values))


def test_a_class_without_a_name_is_called_by_its_number():
    assert [result.name for result in evaluate(stats_of(data_set()), NAMES[:1]).per_class] == ["disc", "1", "2"]


def test_precision_and_recall_are_read_from_the_curves():
    evaluation = evaluate(stats_of(data_set()), NAMES)
    curves = evaluation.curves
    at = int(np.argmin(np.abs(curves.confidence - curves.best_confidence)))
    assert evaluation.precision == pytest.approx(curves.precision[:, at].mean())
    assert evaluation.recall == pytest.approx(curves.recall[:, at].mean())
    assert curves.precision_at_recall.shape == curves.f1.shape == (3, 1000)
    assert (np.diff(curves.precision_at_recall) <= 1e-12).all()  # an envelope falls
    assert (curves.precision[:, -1] == 1).all() and (curves.recall[:, -1] == 0).all()  # nothing is that confident


# -- two sets of boxes -------------------------------------------------------------------------------------------------


def test_pairs_are_formed_by_falling_overlap():
    for seed in range(5):
        matrix = torch.tensor(np.random.default_rng(seed).random((9, 12)))
        expected, cells = set(), [(float(matrix[i, j]), i, j) for i in range(9) for j in range(12)]
        for value, i, j in sorted(cells, reverse=True):
            if value > 0.4 and all(i != a and j != b for a, b in expected):
                expected.add((i, j))
        rows, columns = pair_off(matrix, 0.4)
        assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_equal_overlaps_are_paired_too():
    rows, columns = pair_off(torch.ones(3, 4), 0.5)
    assert sorted(rows.tolist()) == [0, 1, 2] and len(set(columns.tolist())) == 3
    assert [len(part) for part in pair_off(torch.zeros(0, 4), 0.5)] == [0, 0]


def test_a_model_agrees_with_itself_and_the_order_of_two_does_not_matter():
    ours = [detections for detections, _ in data_set(0, spread=1)]
    theirs = [detections for detections, _ in data_set(0, spread=9)]
    # one box a place: what suppression leaves
    alone = [detections[:1] for detections in ours]
    assert agreement(alone, alone) == 1
    assert 0 < agreement(ours, theirs) < 1
    assert agreement(ours, theirs) == agreement(theirs, ours)


def test_agreement_counts_confident_boxes_of_one_class_only():
    box = [10.0, 10, 50, 50]
    sure, unsure, other = ([*box, 0.9, 0], [*box, 0.2, 0], [*box, 0.9, 1])
    far = [100.0, 100, 150, 150, 0.9, 0]

    def share(ours: list, theirs: list) -> float:
        return agreement([torch.tensor(ours).reshape(-1, 6)], [torch.tensor(theirs).reshape(-1, 6)])

    assert share([sure], [sure]) == 1
    assert share([sure], [sure, unsure]) == 1
    assert share([sure], [unsure]) == share([sure], [other]) == share([sure], [far]) == 0
    assert share([sure, far], [sure]) == pytest.approx(2 / 3)
    assert share([], []) == share([unsure], []) == 1
    assert agreement([], []) == 1


# -- confusion ---------------------------------------------------------------------------------------------------------


def test_confusion_counts_hits_mistakes_misses_and_background():
    labels = torch.tensor([[0.0, 0, 0, 50, 50], [1, 100, 100, 150, 150], [2, 200, 200, 250, 250]])
    detections = torch.tensor(
        [
            [0.0, 0, 50, 50, 0.9, 0],  # right
            [100, 100, 150, 150, 0.8, 2],  # a bar taken for a ring
            [300, 300, 350, 350, 0.7, 1],  # nothing there
            [200, 200, 250, 250, 0.2, 2],  # right, but not sure enough
        ]
    )
    confusion = ConfusionMatrix(3)
    confusion.update(detections, labels)
    assert confusion.matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_confusion_counts_every_label_and_every_confident_detection_once():
    confusion, pairs = ConfusionMatrix(3), data_set()
    for detections, labels in pairs:
        confusion.update(detections, labels)
    assert confusion.matrix[:, :3].sum() == sum(len(labels) for _, labels in pairs)
    assert confusion.matrix[:3].sum() == sum(int((found[:, 4] > 0.25).sum()) for found, _ in pairs)
    assert confusion.matrix[3, 3] == 0
    assert np.diag(confusion.matrix)[:3].sum() > 0.5 * confusion.matrix[:, :3].sum()


def test_confusion_of_nothing_and_its_shares():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.zeros(0, 6), torch.zeros(0, 5))
    assert confusion.matrix.sum() == 0 and np.isfinite(confusion.normalized()).all()
    confusion.update(torch.zeros(0, 6), torch.tensor([[1.0, 0, 0, 5, 5]]))
    confusion.update(torch.tensor([[0.0, 0, 5, 5, 0.9, 0]]), torch.zeros(0, 5))
    assert confusion.normalized().tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_pairs_of_very_many_classes_are_not_counted():
    """Of 50,000 they would take 20 GB."""
    assert ConfusionMatrix(MOST_COMPARED).matrix.shape == (MOST_COMPARED + 1,) * 2
    confusion = ConfusionMatrix(MOST_COMPARED + 1)
    confusion.update(torch.tensor([[0.0, 0, 5, 5, 0.9, MOST_COMPARED]]), torch.tensor([[0.0, 0, 0, 5, 5]]))
    confusion.matrix += confusion.matrix  # as shares of ranks are added
    assert confusion.matrix.shape == confusion.normalized().shape == (0, 0)
