"""A student layer beside a teacher layer: which belong together, and how they are made comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from distill.levels import by_stride, report_unmatched
from utils.errors import UserError
from utils.types import Batch, FeatureInfo, Prediction

if TYPE_CHECKING:
    from distill.features.base import FeatureLoss
    from models.yolo import Model


class Lesson(NamedTuple):
    """What a feature loss may look at besides the two maps: for masks, scores, boxes."""

    batch: Batch
    stride: int  # of both maps
    taught: Prediction | None  # the teacher's raw levels; None unless a method says `needs_prediction`
    head: nn.Module  # the teacher's, to decode them with


class FeaturePair(nn.Module):
    """An adapter and a loss between one layer of the student and one of the teacher.

    The adapter is what the loss asks for: `"conv_bn"`, a 1x1 convolution from the student's channels to the teacher's
    and on both sides BatchNorm without affine (no map can win by its scale); `"conv"`, the convolution alone; `None`,
    nothing. All of it belongs to the student's side: it learns, and is thrown away after training.
    """

    def __init__(self, method: str, student: FeatureInfo, teacher: FeatureInfo, loss: FeatureLoss) -> None:
        super().__init__()
        self.method = method
        self.name = f"kd_{method}_layer{student.layer}"
        self.student = student
        self.teacher = teacher
        self.adapter, self.student_norm, self.teacher_norm = _adapter(loss.adapter, student.channels, teacher.channels)
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor, lesson: Lesson) -> Tensor:
        """(B, C, H, W) and (B, C', H, W) of one image size -> float32 scalar."""
        if student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f"{self.name}: student layer {self.student.layer} is {tuple(student.shape[2:])} but teacher layer "
                f"{self.teacher.layer} is {tuple(teacher.shape[2:])}; both must see images of one size"
            )
        student = self.adapter(student)
        with torch.autocast(student.device.type, enabled=False):  # statistics and losses of float16 maps overflow
            student = self.student_norm(_rows(student))
            teacher = self.teacher_norm(_rows(teacher.detach()))
            value: Tensor = self.loss(student, teacher, lesson)
        return value


def _rows(x: Tensor) -> Tensor:
    """The map in float32, in channels_last memory: batch statistics take a third of the time there (CPU)."""
    return x.to(torch.float32, memory_format=torch.channels_last)


def _adapter(kind: str | None, c_student: int, c_teacher: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The student's translation, its normalisation, and the teacher's."""
    if kind is None:
        return nn.Identity(), nn.Identity(), nn.Identity()
    if kind == "conv":
        return nn.Conv2d(c_student, c_teacher, 1), nn.Identity(), nn.Identity()
    if kind == "conv_bn":
        # a pair lives in training only, so running statistics would be kept, saved and synchronised for nobody
        norms = [nn.BatchNorm2d(c_teacher, affine=False, track_running_stats=False) for _ in range(2)]
        return nn.Conv2d(c_student, c_teacher, 1, bias=False), norms[0], norms[1]
    raise ValueError(f"unknown adapter {kind!r}; known: 'conv_bn', 'conv', None")


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
    info: FeatureInfo = layers[index]
    return info
