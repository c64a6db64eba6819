"""What one teacher teaches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from distill.guides import Average, OnlineTeacher
from distill.methods import Pair
from distill.outputs import OutputLoss
from distill.outputs.base import head_strides
from distill.outputs.view import side_by_side
from distill.pairs import Lesson
from distill.teacher import Teacher
from distill.translate import Translator
from distill.weighing import Weighing, difficulty, emphasised
from utils.types import Batch, Prediction

Guide = Teacher | Average | OnlineTeacher


class Shown(NamedTuple):
    """What a teacher made of a batch."""

    prediction: Prediction | None  # its dense levels, in its own anchors and image size; None unless asked for
    maps: dict[int, Tensor]  # by layer
    loss: Tensor | None  # of a teacher that learns: its own


class Course(nn.Module):
    """A guide, the output losses and feature pairs through which it is heard, and their weights.

    Heads with two branches teach and learn by the one-to-many branch. The one-to-one branch reads maps that it does not
    move, so it could teach the layers before the head nothing; and a teacher's, which suppresses all but one cell of an
    object, is no soft label for a branch in which many answer.

    A frozen teacher sits in a tuple, into which nn.Module does not look: neither optimised, nor synchronised, nor
    saved. Teachers that move are submodules.

    Args:
        outputs: output losses by name; their terms are called `kd_{name}`.
        weighings: by term name without the suffix.
        translator: of the guide's prediction into the student's anchors and grid; needed by output losses and by
            `difficulty`.
        head_layers: of the student, that its head reads; needed by output losses that `needs_maps`.
        difficulty_power: of the weights of images, 0 for none.
        labeller: makes labels of the guide's prediction, for images that have none.
        suffix: of all term names, where a task has several courses.
    """

    def __init__(
        self,
        guide: Guide,
        outputs: Mapping[str, OutputLoss],
        pairs: Sequence[Pair],
        weighings: Mapping[str, Weighing],
        translator: Translator | None = None,
        head_layers: Sequence[int] = (),
        difficulty_power: float = 0.0,
        labeller: Callable[[Batch, Prediction], Batch] | None = None,
        suffix: str = "",
    ) -> None:
        super().__init__()
        self._guide = (guide,)
        if not isinstance(guide, Teacher):
            self.learner = guide
        self.outputs = nn.ModuleDict(outputs)
        self.pairs = nn.ModuleList(pairs)
        self.weighings = dict(weighings)
        self.translator = translator
        self.head_layers = tuple(head_layers)
        self.difficulty_power = difficulty_power
        self.labeller = labeller
        self.suffix = suffix
        self.guide_strides = tuple(head_strides(guide.head))
        # term name -> "outputs" or "features", and the method's name
        self.kinds: dict[str, tuple[str, str]] = {f"kd_{name}{suffix}": ("outputs", name) for name in outputs}
        self.kinds |= {pair.name + suffix: ("features", pair.method) for pair in pairs}
        self.active: Collection[str] = self.term_names  # the terms that count in this epoch

    @property
    def guide(self) -> Guide:
        return self._guide[0]

    @property
    def term_names(self) -> tuple[str, ...]:
        """Of the imitation, in the order in which they follow the detection loss's."""
        return tuple(self.kinds)

    @property
    def own_term(self) -> str | None:
        """Of the guide's own loss, if it learns."""
        return f"teacher{self.suffix}" if isinstance(self.guide, OnlineTeacher) else None

    def deepest(self, names: Collection[str]) -> set[str]:
        """Of these terms, those of the deepest pair among them, and those that are no feature's."""
        strides = {pair.name + self.suffix: pair.stride for pair in self._pairs()}
        depth = max((strides[name] for name in names if name in strides), default=0)
        return {name for name in names if strides.get(name, depth) == depth}

    def activate(self, names: Collection[str]) -> None:
        """Chooses the terms of an epoch; what does not count rests: its parameters ask for no gradient."""
        self.active = [name for name in self.term_names if name in names]
        for name, loss in self.outputs.items():
            loss.requires_grad_(f"kd_{name}{self.suffix}" in self.active)
        for pair in self._pairs():
            pair.requires_grad_(pair.name + self.suffix in self.active)
        if isinstance(self.guide, OnlineTeacher):
            self.guide.learn(bool(self.active))

    def after_step(self, student: nn.Module) -> None:
        """Averages follow what they average."""
        if isinstance(self.guide, Average):
            self.guide.follow(student)
        elif isinstance(self.guide, OnlineTeacher) and self.guide.average is not None and self.active:
            self.guide.average.follow(self.guide.model)

    # -- one step ------------------------------------------------------------------------------------------------------

    @property
    def student_layers(self) -> set[int]:
        """Whose maps the active pairs compare, or active output losses look at."""
        layers = {layer for pair in self._active_pairs() for layer in pair.student_layers}
        reads_maps = any(loss.needs_maps for _, loss in self._active_outputs())
        return layers | set(self.head_layers) if reads_maps else layers

    def show(self, batch: Batch) -> Shown:
        """Runs the guide as far as the active terms need it."""
        layers = sorted({layer for pair in self._active_pairs() for layer in pair.teacher_layers})
        wants = self.labeller is not None or self.difficulty_power > 0 or bool(self._active_outputs())
        wants = wants or any(pair.loss.needs_prediction for pair in self._active_pairs())
        loss = None
        if isinstance(self.guide, OnlineTeacher):
            loss, (prediction, maps) = self.guide.study(batch, layers, wants)
        else:
            prediction, maps = self.guide(batch.images, layers, want_prediction=wants)
        if prediction is not None:
            head: Any = self.guide.head
            prediction = Prediction(head.dense(prediction))
        return Shown(prediction, dict(zip(layers, maps, strict=True)), loss)

    def forward(self, prediction: Prediction, maps: dict[int, Tensor], shown: Shown, batch: Batch) -> dict[str, Tensor]:
        """The student's prediction and maps by layer, beside what the guide has shown -> active terms, weighed."""
        taught = shown.prediction
        if taught is not None and self.translator is not None:
            prediction = Prediction(self.translator.heads[0].dense(prediction))
            taught = self.translator.translate(taught, prediction)
        if self.difficulty_power > 0 and taught is not None:
            prediction, maps = emphasised(prediction, maps, self._difficulty(prediction, taught))
        terms = {}
        for name, loss in self._active_outputs():
            extra = ([maps[layer] for layer in self.head_layers],) if loss.needs_maps else ()
            terms[f"kd_{name}{self.suffix}"] = self.weighings[f"kd_{name}"](loss(prediction, taught, batch, *extra))
        for pair in self._active_pairs():
            lesson = Lesson(batch, pair.grid, shown.prediction, self.guide.head, self.guide_strides)
            own_maps = [maps[layer] for layer in pair.student_layers]
            value = pair(own_maps, [shown.maps[layer] for layer in pair.teacher_layers], lesson)
            terms[pair.name + self.suffix] = self.weighings[pair.name](value)
        return terms

    def _difficulty(self, prediction: Prediction, taught: Prediction) -> Tensor:
        """(B,) weights of the images; `taught` in the student's anchors and grid."""
        assert self.translator is not None, "asked for by whoever sets difficulty_power"
        translator = self.translator
        views = list(side_by_side(translator.heads, translator.level_pairs, prediction, taught))
        own, other = ([side.certainty() for side in sides] for sides in zip(*views, strict=True))
        return difficulty(own, other, self.difficulty_power)

    def _pairs(self) -> list[Any]:
        return list(self.pairs)

    def _active_pairs(self) -> list[Any]:
        return [pair for pair in self._pairs() if pair.name + self.suffix in self.active]

    def _active_outputs(self) -> list[tuple[str, Any]]:
        return [(name, loss) for name, loss in self.outputs.items() if f"kd_{name}{self.suffix}" in self.active]


def layers_of(courses: Iterable[Course]) -> list[int]:
    """Each student layer once, however many methods and teachers look at it."""
    return sorted({layer for course in courses for layer in course.student_layers})
