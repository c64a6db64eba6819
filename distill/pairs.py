"""A student layer beside a teacher layer: which belong together, and how they are made comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.cutmix import draw_cut
from distill.features.base import float_map, standardise
from distill.levels import by_stride, report_unmatched
from utils.errors import UserError
from utils.types import Batch, FeatureInfo, Prediction

if TYPE_CHECKING:
    from distill.features.base import FeatureLoss
    from models.yolo import Model


class Lesson(NamedTuple):
    """What a feature loss may look at besides the two maps: for masks, scores, boxes."""

    batch: Batch
    stride: int  # of both maps as they are compared
    taught: Prediction | None  # the teacher's raw levels; None unless a method says `needs_prediction`
    head: nn.Module  # the teacher's, to decode them with
    strides: tuple[int, ...] = ()  # of the levels of `taught`; here, since asking the head would wait for the GPU


class _Pair(nn.Module):
    """What a pair says of itself, and how its maps come to lie side by side.

    Args:
        cutmix: chance of a step in training that a rectangle is swapped between the images of the batch, the same for
            student and teacher (`distill.cutmix`). Swapped before the adapter: that works on each position alone, and
            statistics of a batch do not feel which image a position is in, so nothing but what the loss itself relates
            can tell, and there are fewer channels to copy. A loss that compares position by position (mimic, l1, l2)
            has the same value with it as without.
        min_stride: maps finer than that are averaged over cells of that many pixels first (before the adapter, to which
            it makes no difference, a 1x1 convolution being linear): from stride 8 to 16 costs a quarter. 1 leaves all
            as they are.

    Raises:
        UserError: `cutmix` for a loss that looks at boxes or predictions, which are not swapped; a `min_stride` that is
            no multiple of a layer's.
    """

    def __init__(
        self,
        method: str,
        students: Sequence[FeatureInfo],
        teachers: Sequence[FeatureInfo],
        loss: FeatureLoss,
        cutmix: float,
        min_stride: int,
    ) -> None:
        super().__init__()
        self.method = method
        self.student_layers = tuple(info.layer for info in students)
        self.teacher_layers = tuple(info.layer for info in teachers)
        self.name = f"kd_{method}_layer{'_'.join(map(str, self.student_layers))}"
        self.stride = max(info.stride for info in students)  # of the deepest layer
        self.cells = tuple(self._cell(info, min_stride) for info in students)
        self.grid = max(info.stride * cell for info, cell in zip(students, self.cells, strict=True))  # that is compared
        self.loss = loss
        self.cutmix = cutmix
        if cutmix and (loss.needs_boxes or loss.needs_prediction):
            looks = "boxes" if loss.needs_boxes else "predictions"
            raise UserError(
                f"feature loss '{method}': cutmix {cutmix:g}: it looks at {looks}, which stay where they are "
                "while maps are cut; leave cutmix out"
            )

    def _cell(self, layer: FeatureInfo, min_stride: int) -> int:
        """How many of a layer's positions a side become one."""
        if min_stride > layer.stride and min_stride % layer.stride:
            raise UserError(
                f"feature loss '{self.method}': min_stride: got {min_stride}, expected a multiple of {layer.stride}, "
                f"the stride of student layer {layer.layer}"
            )
        return max(1, min_stride // layer.stride)

    def _side_by_side(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Both sides' map of each layer, on the student's grid."""
        maps = []
        cut = draw_cut(self.cutmix, len(students[0])) if self.cutmix and self.training else None
        for place, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
            self._require_one_shape(place, student, teacher)
            teacher = _on_grid(teacher.detach(), *student.shape[2:])
            student, teacher = (_coarser(map_, self.cells[place]) for map_ in (student, teacher))
            maps.append((cut.paste(student), cut.paste(teacher)) if cut else (student, teacher))
        return maps

    def _require_one_shape(self, place: int, student: Tensor, teacher: Tensor) -> None:
        """That both see the same images: sides are in one ratio, but for a position of either grid."""
        (height, width), (rows, columns) = student.shape[2:], teacher.shape[2:]
        if abs(height * columns - width * rows) <= max(height, width, rows, columns):
            return
        raise UserError(
            f"{self.name}: student layer {self.student_layers[place]} is {(height, width)} but teacher layer "
            f"{self.teacher_layers[place]} is {(rows, columns)}; both must see images of one shape"
        )


class FeaturePair(_Pair):
    """An adapter and a loss between one layer of the student and one of the teacher.

    The adapter is what the loss asks for: `"conv_bn"`, a 1x1 convolution from the student's channels to the teacher's
    and on both sides BatchNorm without affine (no map can win by its scale); `"conv"`, the convolution alone; `None`,
    nothing. All of it belongs to the student's side: it learns, and is thrown away after training.
    """

    def __init__(
        self,
        method: str,
        student: FeatureInfo,
        teacher: FeatureInfo,
        loss: FeatureLoss,
        cutmix: float = 0.0,
        min_stride: int = 1,
    ) -> None:
        super().__init__(method, [student], [teacher], loss, cutmix, min_stride)
        self.student, self.teacher = student, teacher
        self.adapter = _adapter(loss.adapter, student, teacher)

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], lesson: Lesson) -> Tensor:
        """One map (B, C, H, W) of each side -> float32 scalar."""
        ((student, teacher),) = self._side_by_side(student_maps, teacher_maps)
        student = self.adapter(student)
        with torch.autocast(student.device.type, enabled=False):  # statistics and losses of float16 maps overflow
            if self.loss.adapter == "conv_bn":
                return self.loss.standardised(student, teacher, lesson)
            value: Tensor = self.loss(float_map(student), float_map(teacher), lesson)
            return value


class FlowPair(_Pair):
    """Adapters and a loss between two layers of the student and two of the teacher, finer ones first.

    For losses that `spans` two layers: they get two maps of each side. Each layer has an adapter of its own.
    """

    def __init__(
        self,
        method: str,
        students: Sequence[FeatureInfo],
        teachers: Sequence[FeatureInfo],
        loss: FeatureLoss,
        cutmix: float = 0.0,
        min_stride: int = 1,
    ) -> None:
        super().__init__(method, students, teachers, loss, cutmix, min_stride)
        layers = zip(students, teachers, strict=True)
        self.adapters = nn.ModuleList(_adapter(loss.adapter, student, teacher) for student, teacher in layers)

    def forward(self, student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], lesson: Lesson) -> Tensor:
        """Two maps (B, C, H, W) of each side -> float32 scalar."""
        maps = self._side_by_side(student_maps, teacher_maps)
        students = [adapter(student) for adapter, (student, _) in zip(self.adapters, maps, strict=True)]
        prepare = standardise if self.loss.adapter == "conv_bn" else float_map
        with torch.autocast(students[0].device.type, enabled=False):
            own, shown = [prepare(student) for student in students], [prepare(teacher) for _, teacher in maps]
            value: Tensor = self.loss(own, shown, lesson)
        return value


def _adapter(kind: str | None, student: FeatureInfo, teacher: FeatureInfo) -> nn.Module:
    """The student's translation into the teacher's channels."""
    if kind is None:
        return nn.Identity()
    if kind in ("conv", "conv_bn"):
        return nn.Conv2d(student.channels, teacher.channels, 1, bias=kind == "conv")
    raise ValueError(f"unknown adapter {kind!r}; known: 'conv_bn', 'conv', None")


def _coarser(x: Tensor, cell: int) -> Tensor:
    """Means over cells of `cell` x `cell` positions; those at the border may be smaller."""
    return x if cell == 1 else F.avg_pool2d(x, cell, ceil_mode=True, count_include_pad=False)


def _on_grid(x: Tensor, height: int, width: int) -> Tensor:
    """The map of a model that sees the same images at another size, resized (bilinear) if need be."""
    if x.shape[2:] == (height, width):
        return x
    shrinks = x.shape[2] > height or x.shape[3] > width
    return F.interpolate(x.float(), (height, width), mode="bilinear", align_corners=False, antialias=shrinks)


def match_layers(
    student: Model,
    teacher: Model,
    student_layers: Sequence[int] | None = None,
    teacher_layers: Sequence[int] | None = None,
) -> list[tuple[FeatureInfo, FeatureInfo]]:
    """The layers that are compared: those asked for, or the inputs of both heads where their strides agree.

    Raises:
        UserError: lists of unequal length, an index that is no layer, a pair of unequal strides, no pair at all.
    """
    if student_layers is None and teacher_layers is None:
        return _head_inputs(student, teacher)
    if student_layers is None or teacher_layers is None:
        given, absent = ("student", "teacher") if teacher_layers is None else ("teacher", "student")
        raise UserError(f"{given}_kd_layers is given and {absent}_kd_layers is not; give both, or neither")
    if len(student_layers) != len(teacher_layers):
        raise UserError(
            f"student_kd_layers has {len(student_layers)} entries and teacher_kd_layers has {len(teacher_layers)}; "
            "every student layer needs exactly one teacher layer"
        )
    if not student_layers:
        raise UserError("student_kd_layers is empty; leave both lists out to compare the inputs of the heads")
    if len(set(student_layers)) < len(student_layers):
        raise UserError(f"student_kd_layers: {list(student_layers)} names a layer twice; each can have one teacher")
    own = [_layer("student", student, index) for index in student_layers]
    others = [_layer("teacher", teacher, index) for index in teacher_layers]
    pairs = list(zip(own, others, strict=True))
    for mine, other in pairs:
        if mine.stride != other.stride:
            raise UserError(
                f"student layer {mine.layer} has stride {mine.stride} but teacher layer {other.layer} has stride "
                f"{other.stride}; choose layers of one stride in student_kd_layers and teacher_kd_layers"
            )
    return pairs


def _head_inputs(student: Model, teacher: Model) -> list[tuple[FeatureInfo, FeatureInfo]]:
    own = [student.feature_info[index] for index in student.head_inputs]
    others = [teacher.feature_info[index] for index in teacher.head_inputs]
    strides = [info.stride for info in own], [info.stride for info in others]
    pairs = [(own[place], others[other]) for place, other in by_stride(*strides)]
    report_unmatched("features", *strides)
    return pairs


def _layer(who: str, model: Model, index: int) -> FeatureInfo:
    layers = model.feature_info
    if not 0 <= index < len(layers):
        raise UserError(f"{who}_kd_layers: there is no layer {index}; the {who} has layers 0 to {len(layers) - 1}")
    if index in model.auxiliary_layers:
        raise UserError(
            f"{who}_kd_layers: layer {index} is of the auxiliary levels, which only learn along; take another"
        )
    info: FeatureInfo = layers[index]
    if info.maps > 1:
        raise UserError(
            f"{who}_kd_layers: layer {index} puts out {info.maps} maps; take one that puts out a single map"
        )
    return info
