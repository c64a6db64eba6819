"""What a confident teacher sees in images that nobody has labelled, in place of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.classes import ClassMap
from utils.boxes import clip, xyxy_to_xywh
from utils.nms import non_max_suppression
from utils.types import Batch, Prediction

LEAST_SIDE = 1.0  # pixels; what the border has cut to less is no object any more


@torch.no_grad()
def pseudo_labels(
    batch: Batch,
    taught: Prediction,
    head: Any,
    class_map: ClassMap,
    confidence: float,
    iou: float = 0.6,
    max_boxes: int = 100,
) -> Batch:
    """The batch with the teacher's detections as targets of its unlabelled images, which are labelled from then on.

    A box counts for its likeliest class alone; where the student does not have that class, the box is dropped. An image
    of which the teacher is sure of nothing stays unlabelled: that nothing was found does not prove that nothing is
    there. In the others, what the teacher overlooks or has no class for is taught as background, so a low confidence
    has its price as well as a high one.

    Source: after Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
    Networks", ICML 2013 workshop; for detectors, with one high threshold, Sohn et al., "A Simple Semi-Supervised
    Learning Framework for Object Detection" (STAC), 2020, arXiv:2005.04757.

    Args:
        taught: the teacher's raw levels for these images, in its own anchors, grid and classes.
        head: the teacher's, which decodes them.
        confidence: objectness times class probability must be above it.
        iou: a box that overlaps a more confident one of its class by more than this is suppressed.
        max_boxes: so many at most are kept in an image, the most confident ones.
    """
    unlabelled = (~batch.labelled).nonzero().flatten()
    if not len(unlabelled):
        return batch
    with torch.autocast(batch.images.device.type, enabled=False):
        levels = [level[unlabelled.to(level.device)] for level in taught.levels]
        decoded = _in_student_classes(head.decode(levels), class_map)
        found = non_max_suppression(decoded, confidence, iou, max_boxes, multi_label=False)
    counts = torch.tensor([len(detections) for detections in found]).to(unlabelled.device)
    detections = torch.cat(found).to(batch.targets)
    targets = _as_targets(detections, unlabelled.repeat_interleave(counts), frame_size(head, taught))
    labelled = batch.labelled.index_fill(0, targets[:, 0].long(), True)
    everything = torch.cat((batch.targets, targets))
    return batch._replace(targets=everything[everything[:, 0].argsort(stable=True)], labelled=labelled)


def frame_size(head: Any, prediction: Prediction) -> tuple[int, int]:
    """Height and width, in pixels, of the images that a head has predicted these levels for."""
    stride = float(head.strides[0])
    height, width = prediction.levels[0].shape[2:4]
    return round(height * stride), round(width * stride)


def _in_student_classes(decoded: Tensor, class_map: ClassMap) -> Tensor:
    """(B, N, 5 + C of the teacher) -> (B, N, 5 + C of the student): the likeliest class alone, 0 if foreign."""
    probability, teacher_class = decoded[..., 5:].max(dim=-1, keepdim=True)
    student_class = _student_classes(class_map, decoded.device)[teacher_class]
    scores = decoded.new_zeros(*decoded.shape[:2], class_map.num_student)
    scores.scatter_(2, student_class.clamp(min=0), probability * (student_class >= 0))
    return torch.cat((decoded[..., :5], scores), dim=-1)


def _student_classes(class_map: ClassMap, device: torch.device) -> Tensor:
    """(C of the teacher,) long: which class of the student each is, -1 for none."""
    # of several classes of the student that are one of the teacher's, the first
    known = dict(zip(reversed(class_map.teacher), reversed(class_map.student), strict=True))
    return torch.tensor([known.get(index, -1) for index in range(class_map.num_teacher)], device=device)


def _as_targets(detections: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 6) x1, y1, x2, y2 in pixels, confidence, class -> (m, 6) rows of a `Batch`, cut at the image's borders."""
    height, width = size
    boxes = xyxy_to_xywh(clip(detections[:, :4], size))
    rows = torch.cat(
        (image[:, None].to(boxes), detections[:, 5:], boxes / boxes.new_tensor((width, height) * 2)), dim=1
    )
    return rows[(boxes[:, 2:] >= LEAST_SIDE).all(dim=1)]
