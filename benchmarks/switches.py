"""Fast paths that no flag switches off, switched off in this process: what remains is the plain way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


def plain_pictures() -> None:
    """Every image becomes a picture, pictures a canvas, and the canvas is warped."""
    from data.dataset import TrainImages

    TrainImages.composes = property(lambda self: False)  # type: ignore[method-assign,assignment]


def whole_decoding() -> None:
    """JPEGs are decoded at their own size, however small they are shown."""
    from data.store import ImageStore
    from data.view import ViewStore

    for store in (ImageStore, ViewStore):
        store._reduction = lambda self, index: 1  # type: ignore[method-assign]


def nothing_kept() -> None:
    """A small data set is not kept in memory, either."""
    from data import store

    store.SMALL = 0.0


SWITCHES: Mapping[str, Callable[[], None]] = {
    "placing": plain_pictures,
    "reducing": whole_decoding,
    "memory": nothing_kept,
}


def switch_off(names: Iterable[str]) -> None:
    for name in names:
        SWITCHES[name]()
