"""How large a model may become: a file can ask for anything, and its modules take memory as they are built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

MOST_PARAMETERS = 1_000_000_000  # in 4 GB; the largest published model has 0.16
MOST_TENSORS = 10_000  # that these are in


@contextmanager
def bounded() -> Iterator[None]:
    """Modules that are built inside have no more parameters than that, all together.

    Raises:
        ValueError: as soon as they have. That is before they are written, which is when the system takes the memory.
    """
    numbers = tensors = 0

    def count(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal numbers, tensors
        if parameter is not None:
            numbers, tensors = numbers + parameter.numel(), tensors + 1
        if numbers > MOST_PARAMETERS or tensors > MOST_TENSORS:
            raise ValueError(
                f"a model of more than {MOST_PARAMETERS:,} parameters, or in more than {MOST_TENSORS:,} parts"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
