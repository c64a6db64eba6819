"""From a recipe to a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from distill.balance import DynamicWeightAverage
from distill.classes import ClassMap, match_classes
from distill.course import Course, Guide
from distill.gains import Gains, output_gains
from distill.guides import Average, OnlineTeacher
from distill.methods import (
    DEFAULT_FEATURES,
    DEFAULT_OUTPUTS,
    Methods,
    Pair,
    check_phases,
    chosen,
    feature_pairs,
    output_losses,
)
from distill.outputs import OutputLoss
from distill.outputs.base import Sides
from distill.pairs import match_layers
from distill.pseudo import pseudo_labels
from distill.schedule import Schedule
from distill.task import DistillationTask
from distill.teacher import Teacher
from distill.translate import Translator
from distill.weighing import Weighing
from utils.errors import UserError
from utils.hyp import TeacherRole

if TYPE_CHECKING:
    from losses import anchor, tal
    from models.yolo import Model
    from utils.hyp import Hyp

MEAN_TEACHER = 0.999  # decay of the average that teaches its own student


class Pupil(NamedTuple):
    """The student and what a recipe says, as all teachers need it."""

    model: Model
    hyp: Hyp
    outputs: Methods
    features: Methods
    gains: Gains


def build_distillation(
    model: Model,
    criterion: nn.Module,
    teachers: Sequence[Model],
    hyp: Hyp,
    *,
    gains: anchor.Gains | tal.Gains,
    epochs: int | None = None,
    frozen: Callable[[Model], Teacher] = Teacher,
    criterion_of: Callable[[Model], nn.Module] | None = None,
) -> DistillationTask:
    """The task that a recipe describes, on the device of the student.

    Args:
        teachers: in the order of the recipe's roles, but for roles of kind "self", which have none. Frozen ones are
            copied; an online one is trained itself.
        gains: of the detection loss; output losses multiply by `distill.gains.output_gains` of them.
        epochs: of the run, so that a recipe that does not fit into it is refused at once.
        frozen: makes the guide of a frozen teacher: its number format, device, image size.
        criterion_of: the detection loss of an online teacher.

    Raises:
        UserError: the recipe names no method, an unknown one or a wrong option, or the models do not fit together.
    """
    outputs = chosen(hyp.outputs, DEFAULT_OUTPUTS)
    features = chosen(hyp.features, DEFAULT_FEATURES)
    if not outputs and not features:
        raise UserError(
            "there is nothing to learn from the teacher: no output loss and no feature loss is chosen; name one under "
            "outputs or features in the hyp file, and pass --d_feature for features"
        )
    check_phases(hyp.phases, outputs, features)
    pupil = Pupil(model, hyp, outputs, features, output_gains(model.head, gains))
    roles = hyp.teachers or (TeacherRole(),) * len(teachers)
    waiting = iter(teachers)
    courses = []
    for index, role in enumerate(roles):
        teacher = model if role.kind == "self" else next(waiting)
        guide = _guide(role, teacher, frozen, criterion_of)
        weight = 1 / len(roles) if role.weight is None else role.weight
        courses.append(_course(pupil, guide, teacher, role, weight, "" if index == 0 else f"_t{index + 1}"))
    device, record = next(model.parameters()).device, hyp.schedule
    task = DistillationTask(
        model,
        criterion,
        courses,
        Schedule(record.kind, record.end, record.off_epochs, record.within, record.warmup_epochs),
        _balance(hyp, courses),
        hyp.phases,
        record.deepest_first,
    )
    if epochs is not None:
        task.check(epochs)
    return task.to(device)


def _balance(hyp: Hyp, courses: Sequence[Course]) -> DynamicWeightAverage | None:
    if hyp.balance.kind == "none":
        return None
    names = [name for course in courses for name in course.term_names]
    return DynamicWeightAverage(names, hyp.balance.temperature, hyp.balance.momentum)


def _guide(
    role: TeacherRole,
    teacher: Model,
    frozen: Callable[[Model], Teacher],
    criterion_of: Callable[[Model], nn.Module] | None,
) -> Guide:
    if role.kind == "self":
        return Average(teacher, MEAN_TEACHER if role.ema is None else role.ema)
    if role.kind == "online":
        if criterion_of is None:
            raise ValueError("an online teacher needs criterion_of")
        return OnlineTeacher(teacher, criterion_of(teacher), role.ema or 0.0)
    return frozen(teacher)


def _course(pupil: Pupil, guide: Guide, teacher: Model, role: TeacherRole, weight: float, suffix: str) -> Course:
    hyp = pupil.hyp
    losses: dict[str, OutputLoss] = {}
    weighings: dict[str, Weighing] = {}
    labeller = None
    classes = class_map(pupil.model, teacher) if pupil.outputs or hyp.pseudo_labels else None
    if hyp.pseudo_labels is not None and classes is not None and suffix == "":  # the first teacher's
        confidence = hyp.pseudo_labels
        labeller = functools.partial(pseudo_labels, head=guide.head, class_map=classes, confidence=confidence)
    if pupil.outputs and classes is not None:
        # what a loss may take from the recipe unless its own options say otherwise: how targets find their cells
        own = {name: getattr(hyp, name) for name in ("anchor_t", "tal_topk", "tal_alpha", "tal_beta", "small_objects")}
        # a mean over common classes, as much as these have in the detection loss's mean over all
        gains = pupil.gains._replace(cls=pupil.gains.cls * len(classes.student) / classes.num_student)
        sides = Sides(pupil.model.head, guide.head, classes, gains)
        losses, weighings = output_losses(pupil.outputs, sides, own)
    pairs, others = _pairs(pupil, teacher, role)
    scaled = {name: one.scaled(weight) for name, one in (weighings | others).items()}
    scale = guide.image_scale if isinstance(guide, Teacher) else (1.0, 1.0)
    needs_cells = bool(losses) or hyp.difficulty > 0
    return Course(
        guide,
        losses,
        pairs,
        scaled,
        Translator(pupil.model.head, guide.head, scale) if needs_cells else None,
        pupil.model.head_inputs,
        difficulty_power=hyp.difficulty,
        labeller=labeller,
        suffix=suffix,
    )


def _pairs(pupil: Pupil, teacher: Model, role: TeacherRole) -> tuple[list[Pair], dict[str, Weighing]]:
    """Of one teacher: its own layers, or the recipe's, or the inputs of its head."""
    if not pupil.features:
        return [], {}
    hyp, layers = pupil.hyp, role.layers
    if layers is None:
        layers = hyp.student_kd_layers if role.kind == "self" else hyp.teacher_kd_layers
    return feature_pairs(pupil.features, match_layers(pupil.model, teacher, hyp.student_kd_layers, layers))


def class_map(student: Model, teacher: Model) -> ClassMap:
    """By name; by index where a side has no names of its own."""
    own, other = (model.names if model.named else None for model in (student, teacher))
    return match_classes(own, other, student.num_classes, teacher.num_classes)
