"""A recipe's words -> losses, pairs of layers, and what each is worth."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from distill.features import FEATURES, FeatureLoss
from distill.levels import report_unmatched
from distill.options import not_negative, positive, share, whole
from distill.outputs import OUTPUTS, OutputLoss
from distill.outputs.base import Sides, head_strides
from distill.pairs import FeaturePair, FlowPair
from distill.weighing import Weighing
from utils.errors import UserError, nearest
from utils.phases import ALL_TERMS
from utils.registry import build, find

if TYPE_CHECKING:
    from utils.phases import Phase
    from utils.types import FeatureInfo

log = logging.getLogger(__name__)

Methods = Mapping[str, Mapping[str, Any]]  # name of a loss -> its options
Matched = Sequence[tuple["FeatureInfo", "FeatureInfo"]]  # student layers beside teacher layers
Pair = FeaturePair | FlowPair

# what a hyp file that does not say otherwise gets
DEFAULT_OUTPUTS: Methods = MappingProxyType({"bckd": {}})
DEFAULT_FEATURES: Methods = MappingProxyType({"cwd": {"min_stride": 16}})  # of which the finest level is half the cost

COMMON = ("weight", "clip", "gradient_gain")  # options of every method, beside its own
COMMON_FEATURES = (*COMMON, "strides", "min_stride", "cutmix")  # and of every feature loss


def chosen(asked: Methods | None, default: Methods) -> Methods:
    """The methods that are used: those asked for, or the default, but for those of no weight."""
    methods = {name: dict(options or {}) for name, options in (default if asked is None else asked).items()}
    silent = [name for name, options in methods.items() if not any(_listed(options.get("weight", 1)))]
    if silent:
        log.warning("%s with weight 0 are left out", ", ".join(silent))
    return {name: options for name, options in methods.items() if name not in silent}


def check_phases(phases: Sequence[Phase], outputs: Methods, features: Methods) -> None:
    """Raises UserError unless every word of every phase means something."""
    known = [*ALL_TERMS, *outputs, *features]
    empty = [kind for kind, methods in (("outputs", outputs), ("features", features)) if not methods]
    for index, phase in enumerate(phases):
        where = f"phases: {phase.name or index + 1}"
        for word in () if phase.terms == ALL_TERMS else phase.terms:
            if word in empty:
                flag = "--d_feature" if word == "features" else "--d_output"
                raise UserError(f"{where}: trains {word}, but none is chosen; pass {flag}")
            if word not in known:
                hint = nearest(word, known) or ";"
                raise UserError(f"{where}: no term is called '{word}'{hint} known: {', '.join(known)}")


def weighing(where: str, options: Mapping[str, Any], weight: Any) -> Weighing:
    """What a method's options say that is not the method's own business. `where`: "output loss 'kl'"."""
    clip = options.get("clip")
    return Weighing(
        not_negative(f"{where}: weight", weight),
        None if clip is None else positive(f"{where}: clip", clip),
        positive(f"{where}: gradient_gain", options.get("gradient_gain", 1.0)),
    )


def _own(options: Mapping[str, Any], common: Sequence[str]) -> dict[str, Any]:
    """The options that are the method's, without those that all methods have."""
    return {key: value for key, value in options.items() if key not in common}


# -- outputs ----------------------------------------------------------------------------------------------------------


def output_losses(
    methods: Methods, sides: Sides, shared: Mapping[str, Any]
) -> tuple[dict[str, OutputLoss], dict[str, Weighing]]:
    """Losses by name, and weights by term name.

    Args:
        shared: options that a loss which knows them takes, unless it is given its own.
    """
    losses, weighings = {}, {}
    for name, options in methods.items():
        taken = inspect.signature(find("output loss", name, OUTPUTS)).parameters
        own = {key: value for key, value in shared.items() if key in taken} | _own(options, COMMON)
        losses[name] = build("output loss", name, OUTPUTS, sides, options=own, common=COMMON)
        weight = options.get("weight", losses[name].default_weight)
        weighings[f"kd_{name}"] = weighing(f"output loss '{name}'", options, weight)
    report_unmatched("outputs", *(head_strides(head) for head in sides[:2]))
    return losses, weighings


# -- features ---------------------------------------------------------------------------------------------------------


def feature_pairs(methods: Methods, matched: Matched) -> tuple[list[Pair], dict[str, Weighing]]:
    """The pairs of every method, and weights by term name."""
    for own, other in matched:
        log.info(
            "student layer %d (%d channels) learns from teacher layer %d (%d channels), stride %d",
            own.layer, own.channels, other.layer, other.channels, own.stride,
        )  # fmt: skip
    pairs: list[Pair] = []
    weighings = {}
    for name, options in methods.items():
        made = _pairs_of(name, options, matched)
        for pair, weight in zip(made, _weights(name, options, len(made)), strict=True):
            weighings[pair.name] = weighing(f"feature loss '{name}'", options, weight)
        pairs += made
    return pairs, weighings


def _pairs_of(name: str, options: Mapping[str, Any], matched: Matched) -> list[Pair]:
    method = find("feature loss", name, FEATURES)
    where = f"feature loss '{name}'"
    chance = share(f"{where}: cutmix", options.get("cutmix", 0.0))
    least = whole(f"{where}: min_stride", options.get("min_stride", 1))
    pairs = _at_strides(name, options.get("strides"), matched)
    if method.spans > 1:
        pairs = sorted(pairs, key=lambda pair: pair[0].stride)
    losses = [feature_loss(name, other, max(own.stride, least), options) for own, other in pairs]
    if method.spans == 1:
        return [
            FeaturePair(name, own, other, loss, chance, least) for (own, other), loss in zip(pairs, losses, strict=True)
        ]
    if len(pairs) < method.spans:
        raise UserError(f"{where} compares two layers with two; there is only one pair of layers")
    return [
        FlowPair(name, (fine[0], coarse[0]), (fine[1], coarse[1]), loss, chance, least)
        for (fine, coarse), loss in zip(itertools.pairwise(pairs), losses[1:], strict=True)
    ]


def _at_strides(name: str, strides: Any, matched: Matched) -> Matched:
    """The pairs that a method looks at."""
    if strides is None:
        return matched
    wanted = _listed(strides)
    known = [own.stride for own, _ in matched]
    if not wanted or not set(wanted) <= set(known):
        raise UserError(f"feature loss '{name}': strides: got {strides!r}, expected some of {known}")
    return [pair for pair in matched if pair[0].stride in wanted]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _weights(name: str, options: Mapping[str, Any], count: int) -> list[Any]:
    """One a pair."""
    weight = options.get("weight", FEATURES[name].default_weight)
    if not isinstance(weight, list):
        return [weight] * count
    if len(weight) != count:
        raise UserError(f"feature loss '{name}': weight has {len(weight)} entries for {count} pairs of layers")
    return weight


def feature_loss(name: str, teacher: FeatureInfo, stride: int, options: Mapping[str, Any]) -> FeatureLoss:
    """The loss of that name, for maps of the teacher's channels at this stride."""
    makers = {key: _maker(made, teacher.channels, stride) for key, made in FEATURES.items()}
    own = _own(options, COMMON_FEATURES)
    loss: FeatureLoss = build("feature loss", name, makers, options=own, common=COMMON_FEATURES)
    return loss


def _maker(made: type[FeatureLoss], channels: int, stride: int) -> Any:
    """`made.from_pair` with the signature of the class, against which the registry checks a user's options."""

    @functools.wraps(made, updated=())
    def make(**options: Any) -> FeatureLoss:
        return made.from_pair(channels, stride, **options)

    return make
