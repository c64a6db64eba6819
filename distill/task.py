"""A student that learns from labels and from a teacher."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.classes import ClassMap, match_classes
from distill.features import FEATURES, FeatureLoss
from distill.levels import report_unmatched
from distill.outputs import OUTPUTS, OutputLoss
from distill.outputs.base import head_strides
from distill.pairs import FeaturePair, Lesson, match_layers
from distill.schedule import Schedule
from distill.teacher import Teacher
from utils.errors import UserError
from utils.registry import build
from utils.types import Batch, Prediction, Progress

if TYPE_CHECKING:
    from losses.anchor import Gains
    from models.yolo import Model
    from utils.hyp import Hyp

log = logging.getLogger(__name__)

Methods = Mapping[str, Mapping[str, Any]]  # name of a loss -> its options

# what a hyp file that does not say otherwise gets
DEFAULT_OUTPUTS: Methods = MappingProxyType({"objectness_scaled": {"weight": 10.0}})
DEFAULT_FEATURES: Methods = MappingProxyType({"cwd": {"weight": 0.1}})


class DistillationTask(nn.Module):
    """Detection loss plus imitation terms; fulfils the contract of `engine/task.py`.

    Student, criterion, adapters and losses are submodules, so that whatever learns is optimised, synchronised and
    resumed. The teacher is not: it sits in a tuple, into which nn.Module does not look.

    Args:
        outputs: output losses by name; their terms are called `kd_{name}`.
        weights: of the imitation terms, by term name; 1 where none is given.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        teacher: Teacher,
        outputs: Mapping[str, OutputLoss],
        pairs: Sequence[FeaturePair],
        schedule: Schedule,
        weights: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.outputs = nn.ModuleDict(outputs)
        self.pairs = nn.ModuleList(pairs)
        self.schedule = schedule
        self.weights = {name: float(weights.get(name, 1.0)) for name in self.term_names}
        self.active = True
        self._guides = (teacher,)

    @property
    def teacher(self) -> Teacher:
        return self._guides[0]

    @property
    def term_names(self) -> tuple[str, ...]:
        """Of the imitation terms, in the order in which they follow the detection loss's."""
        return (*(f"kd_{name}" for name in self.outputs), *(pair.name for pair in self._feature_pairs()))

    def at(self, progress: Progress) -> None:
        """Sets the weight of the teacher; where it is off, the adapters rest."""
        self.schedule.at(progress)
        self.active = self.schedule.active(progress)
        for part in (self.outputs, self.pairs):
            part.requires_grad_(self.active)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms, float32 scalars; those of the teacher are 0 while it is off, and it is not run then."""
        if not self.active:
            terms = dict(self.criterion(self.model(batch.images), batch))
            return terms | {name: torch.zeros((), device=batch.images.device) for name in self.term_names}
        pairs = self._feature_pairs()
        taught, shown = self._taught(batch.images, pairs)  # before the student, whose graph then takes the memory
        prediction, maps = _predict(self.model, batch.images, _layers(pair.student.layer for pair in pairs))

        terms = dict(self.criterion(prediction, batch))
        for name, loss in self.outputs.items():
            terms[f"kd_{name}"] = self._weigh(f"kd_{name}", loss(prediction, taught, batch))
        for pair in pairs:
            lesson = Lesson(batch, pair.student.stride, taught, self.teacher.head)
            value = pair(maps[pair.student.layer], shown[pair.teacher.layer], lesson)
            terms[pair.name] = self._weigh(pair.name, value)
        return terms

    def _taught(self, images: Tensor, pairs: Sequence[FeaturePair]) -> tuple[Prediction | None, dict[int, Tensor]]:
        """The teacher's prediction, where a loss asks for it, and its maps by layer."""
        layers = _layers(pair.teacher.layer for pair in pairs)
        wanted = bool(self.outputs) or any(pair.loss.needs_prediction for pair in pairs)
        prediction, maps = self.teacher(images, layers, want_prediction=wanted)
        return prediction, dict(zip(layers, maps, strict=True))

    def _weigh(self, name: str, value: Tensor) -> Tensor:
        return self.schedule.weight * (self.weights[name] * value.float())

    def _feature_pairs(self) -> list[FeaturePair]:
        return list(self.pairs)  # type: ignore[arg-type]


def _layers(layers: Any) -> list[int]:
    """Each layer once, however many methods look at it."""
    return sorted(set(layers))


def _predict(model: nn.Module, images: Tensor, layers: Sequence[int]) -> tuple[Prediction, dict[int, Tensor]]:
    """The student's prediction and its maps by layer."""
    if not layers:  # a bare Prediction then; unpacking it would tear its two fields apart
        return model(images), {}
    prediction, maps = model(images, extra_features=layers)
    return prediction, dict(zip(layers, maps, strict=True))


def build_distillation(
    model: Model,
    criterion: nn.Module,
    teacher_model: Model,
    hyp: Hyp,
    *,
    use_outputs: bool,
    use_features: bool,
    gains: Gains,
    teacher_dtype: torch.dtype | None = None,
) -> DistillationTask:
    """The task that a recipe describes, on the device of the student.

    Args:
        teacher_model: copied; the caller's stays as it is.
        use_outputs, use_features: which of the recipe's two lists are used at all.
        gains: of the detection loss, rescaled (`losses.anchor.rescaled_gains`); output losses multiply by them.
        teacher_dtype: the format in which the teacher computes, None for its own.

    Raises:
        UserError: the recipe names no method, an unknown one or a wrong option, or the two models do not fit together.
    """
    outputs = _chosen("outputs", hyp.outputs, DEFAULT_OUTPUTS, use_outputs)
    features = _chosen("features", hyp.features, DEFAULT_FEATURES, use_features)
    if not outputs and not features:
        raise UserError(
            "there is nothing to learn from the teacher: no output loss and no feature loss is chosen; name one under "
            "outputs or features in the hyp file, and pass --d_feature for features"
        )
    device = next(model.parameters()).device
    teacher = Teacher(teacher_model, teacher_dtype).to(device)
    output_losses = _output_losses(outputs, model, teacher.model, gains) if outputs else {}
    pairs = _feature_pairs(features, model, teacher.model, hyp) if features else []
    weights = {f"kd_{name}": options.get("weight", 1.0) for name, options in outputs.items()}
    weights |= {pair.name: features[pair.method].get("weight", 1.0) for pair in pairs}
    record = hyp.schedule
    schedule = Schedule(record.kind, record.end, record.off_epochs)
    return DistillationTask(model, criterion, teacher, output_losses, pairs, schedule, weights).to(device)


def _chosen(key: str, asked: Methods | None, default: Methods, used: bool) -> Methods:
    if not used:
        if asked:
            log.warning("%s of the recipe are not used: %s", key, ", ".join(asked))
        return {}
    chosen = {name: dict(options or {}) for name, options in (default if asked is None else asked).items()}
    silent = [name for name, options in chosen.items() if options.get("weight") == 0]
    if silent:
        log.warning("%s with weight 0 are left out: %s", key, ", ".join(silent))
    return {name: options for name, options in chosen.items() if name not in silent}


def _output_losses(methods: Methods, student: Model, teacher: Model, gains: Gains) -> dict[str, OutputLoss]:
    classes = _classes(student, teacher)
    heads = student.head, teacher.head
    losses = {
        name: build("output loss", name, OUTPUTS, *heads, classes, gains, options=_options(options))
        for name, options in methods.items()
    }
    report_unmatched("outputs", *(head_strides(head) for head in heads))
    return losses


def _classes(student: Model, teacher: Model) -> ClassMap:
    own, other = (model.names if model.named else None for model in (student, teacher))
    return match_classes(own, other, student.num_classes, teacher.num_classes)


def _feature_pairs(methods: Methods, student: Model, teacher: Model, hyp: Hyp) -> list[FeaturePair]:
    matched = match_layers(student, teacher, hyp.student_kd_layers, hyp.teacher_kd_layers)
    for own, other in matched:
        log.info(
            "student layer %d (%d channels) learns from teacher layer %d (%d channels), stride %d",
            own.layer, own.channels, other.layer, other.channels, own.stride,
        )  # fmt: skip
    return [
        FeaturePair(name, own, other, _feature_loss(name, other.channels, other.stride, _options(options)))
        for name, options in methods.items()
        for own, other in matched
    ]


def _feature_loss(name: str, channels: int, stride: int, options: Mapping[str, Any]) -> FeatureLoss:
    makers = {key: _maker(made, channels, stride) for key, made in FEATURES.items()}
    loss: FeatureLoss = build("feature loss", name, makers, options=options)
    return loss


def _maker(made: type[FeatureLoss], channels: int, stride: int) -> Any:
    """`made.from_pair` with the signature of the class, against which the registry checks a user's options."""

    @functools.wraps(made, updated=())
    def make(**options: Any) -> FeatureLoss:
        return made.from_pair(channels, stride, **options)

    return make


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "weight"}
