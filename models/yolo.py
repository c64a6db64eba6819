"""A batch of images -> raw levels."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, nn

from models.augment_test import augmented
from models.graph import build_graph
from models.heads.anchor import Detect
from models.spec import ModelSpec
from models.summary import LayerCost, layer_cost
from utils.types import FeatureInfo, Prediction

log = logging.getLogger(__name__)

Output = Prediction | tuple[Prediction, list[Tensor]] | list[Tensor]


class Model(nn.Module):
    """A detector built from the rows of its spec.

    State-dict keys (`model.0.conv.weight`) are those of the published checkpoints.

    Attributes:
        head_inputs: layers whose maps the head makes predictions of; not those of auxiliary levels.
        auxiliary_layers: what only auxiliary levels need; run in training alone, and gone after `fuse()`.
        traced: set it to True and the model puts out the list of these maps, without its head.

    Args:
        names: of the classes; made up (`named` is False) where None.
    """

    def __init__(self, spec: ModelSpec, num_classes: int, names: Sequence[str] | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class; got {num_classes}")
        if names is not None and len(names) != num_classes:
            raise ValueError(f"{len(names)} names for {num_classes} classes")
        self.spec = spec
        self.num_classes = num_classes
        self.named = names is not None
        self.model, self.sources, self._joins, info = build_graph(spec, num_classes)  # refuses what is too large
        self.names = tuple(names) if names is not None else tuple(f"class{i}" for i in range(num_classes))
        self.feature_info: tuple[FeatureInfo, ...] = info
        self.head_inputs: tuple[int, ...] = self.sources[-1][: self.head.num_levels]
        self.traced = False
        self.stride: int = max(info[layer].stride for layer in self.head_inputs)
        self._last_use = _last_use(self.sources)
        self.auxiliary_layers: set[int] = set()  # not a frozenset, at which the compiler of torch 2.6 stops
        if self.head.learns_along:
            self.auxiliary_layers = _without_effect(self.sources, self.head_inputs)

    @property
    def head(self) -> Detect:
        return self.model[-1]

    def forward(
        self, x: Tensor, augment: bool = False, profile: bool = False, extra_features: Sequence[int] = ()
    ) -> Output | Tensor | tuple[Tensor, list[Tensor]]:
        """As `forward_once`; with `augment`, test-time augmentation: decoded and merged (B, N, 5 + C).

        The features of an augmented pass are those of the unscaled image.
        """
        output = self.forward_once(x, profile, extra_features)
        if not augment:
            return output
        if not extra_features:
            return augmented(self, x, output)
        prediction, features = output
        return augmented(self, x, prediction), features

    def forward_once(self, x: Tensor, profile: bool = False, extra_features: Sequence[int] = ()) -> Output:
        """Images (B, 3, H, W) in [0, 1], H and W multiples of `stride`, to raw levels.

        Args:
            profile: log each layer's time and GFLOPs.
            extra_features: layers whose outputs are wanted too, in this order.

        Raises:
            IndexError: of a layer that does not exist, or the head.
        """
        self._check(extra_features)
        if self.traced:
            return self.features(x, self.head_inputs)
        prediction, kept = self._run(x, len(self.model), extra_features, profile)
        return (prediction, [kept[layer] for layer in extra_features]) if extra_features else prediction

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The outputs of `layers`, in this order; runs no further than the last of them."""
        self._check(layers)
        if not layers:
            return []
        _, kept = self._run(x, max(layers) + 1, layers)
        return [kept[layer] for layer in layers]

    def predict(self, x: Tensor, augment: bool = False) -> Tensor:
        """(B, N, 5 + C) float32: x, y, w, h (centre, pixels), objectness and class scores in [0, 1]."""
        output = self(x, augment=augment)
        return output if augment else self.head.decode(output.levels)

    def fuse(self) -> Model:
        """The inference form, in place: batch norms, branches and implicit knowledge folded into convolutions.

        Auxiliary levels and the layers of theirs alone are dropped. Returns the model.
        """
        for module in self.modules():
            if module is not self and callable(getattr(module, "fuse", None)):
                module.fuse()
        for layer in self.auxiliary_layers:
            self.model[layer] = nn.Identity()
        return self

    def _run(
        self, x: Tensor, stop: int, wanted: Sequence[int], profile: bool = False
    ) -> tuple[Prediction, dict[int, Tensor]]:
        """The output of layer `stop - 1`, and the outputs of the wanted layers; others are let go after their use."""
        kept = {-1: x}
        costs = []
        learns = (self.training and self.head.learns_along) or not self.auxiliary_layers.isdisjoint(wanted)
        for index in range(stop):
            if index in self.auxiliary_layers and not learns:
                continue
            layer, sources = self.model[index], self.sources[index]
            if layer is self.head and not learns:
                sources = self.head_inputs
            inputs = [kept[source] for source in sources] if self._joins[index] else kept[sources[0]]
            if profile:
                costs.append(layer_cost(layer, inputs))
            x = kept[index] = layer(inputs)
            for source in {*sources, index}:
                if self._last_use[source] <= index and source not in wanted and source in kept:
                    del kept[source]
        if profile:
            self._log_costs(costs)
        return x, kept

    def _check(self, layers: Sequence[int]) -> None:
        last = len(self.model) - 2
        for layer in layers:
            if not 0 <= layer <= last:
                raise IndexError(f"the model has no feature layer {layer}; valid: 0 to {last} (the head is excluded)")

    def _log_costs(self, costs: Sequence[LayerCost]) -> None:
        log.info("%10s %10s %10s  %s", "time ms", "GFLOPs", "parameters", "layer")
        for index, cost in enumerate(costs):
            name = type(self.model[index]).__name__
            log.info("%10.2f %10.2f %10d  %d %s", cost.milliseconds, cost.gflops, cost.parameters, index, name)
        total = [sum(values) for values in zip(*costs, strict=True)]
        log.info("%10.2f %10.2f %10d  total", *total)


def _without_effect(sources: tuple[tuple[int, ...], ...], outputs: tuple[int, ...]) -> set[int]:
    """Layers before the last that none of `outputs` depends on."""
    needed, waiting = set(), list(outputs)
    while waiting:
        layer = waiting.pop()
        if layer not in needed and layer >= 0:
            needed.add(layer)
            waiting += sources[layer]
    return set(range(len(sources) - 1)) - needed


def _last_use(sources: tuple[tuple[int, ...], ...]) -> dict[int, int]:
    """Layer -> the last layer that reads it; a layer that nobody reads -> itself."""
    uses = {-1: -1} | {index: index for index in range(len(sources))}
    for index, needed in enumerate(sources):
        uses.update(dict.fromkeys(needed, index))
    return uses
