"""Pickled modules without their code: names and state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class StandIn:
    """What an object of the file becomes: its class's name and its state, and no behaviour."""

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        # kept in one attribute, so that no key of the file can shadow anything
        self.state = state if isinstance(state, dict) else {}

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the pickled object; submodules are attributes too."""
        state = getattr(self, "state", {})  # an object without state was never given one
        return state.get(name, _mapping(state.get("_modules")).get(name, default))


def module_tensors(module: StandIn, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled module, entry by entry."""
    transient = module.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in _mapping(module.get(group)).items():
            if isinstance(value, Tensor) and name not in transient:
                yield f"{prefix}{name}", value
    for name, child in _mapping(module.get("_modules")).items():
        if isinstance(child, StandIn):
            yield from module_tensors(child, f"{prefix}{name}.")


def submodules(module: StandIn) -> Iterator[tuple[str, StandIn]]:
    """Every pickled module below `module` with the attribute name that its parent has for it."""
    for name, child in _mapping(module.get("_modules")).items():
        if isinstance(child, StandIn):
            yield str(name), child
            yield from submodules(child)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
