"""Other activations than SiLU, named by the key `activation:` of a model file, such as `nn.LeakyReLU(0.1)`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from utils.errors import shown
from utils.registry import find

ACTIVATIONS = {
    "nn.ELU": nn.ELU,
    "nn.GELU": nn.GELU,
    "nn.Hardswish": nn.Hardswish,
    "nn.LeakyReLU": nn.LeakyReLU,
    "nn.Mish": nn.Mish,
    "nn.ReLU": nn.ReLU,
    "nn.ReLU6": nn.ReLU6,
    "nn.SiLU": nn.SiLU,
}


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WORDS = {"True": True, "False": False, "true": True, "false": False}
LONGEST = 200  # letters


def activation(text: str) -> nn.Module:
    """The module that `nn.LeakyReLU(0.1)` describes; read with a table, nothing is evaluated.

    Raises:
        ValueError: of a text that is not a name and simple arguments.
        UserError: of an unknown name.
    """
    return _maker(text)()


def replace_activations(module: nn.Module, text: str) -> None:
    """Puts the named activation wherever a block below `module` has its SiLU, in place."""
    make = _maker(text)
    for part in module.modules():
        if isinstance(getattr(part, "act", None), nn.SiLU):
            part.act = make()


def _maker(text: str) -> Callable[[], nn.Module]:
    match = re.fullmatch(r"(?:torch\.)?(nn\.\w+)(?:\((.*)\))?", text.strip()) if len(text) <= LONGEST else None
    if match is None:
        raise ValueError(f"an activation looks like nn.LeakyReLU(0.1); got '{shown(text)}'")
    name, arguments = match.groups()
    positional, named = [], {}
    for argument in filter(None, (part.strip() for part in (arguments or "").split(","))):
        key, _, value = (part.strip() for part in argument.rpartition("="))
        if value not in WORDS and not NUMBER.fullmatch(value):
            raise ValueError(f"arguments of an activation are numbers, True or False; got '{text}'")
        number = WORDS[value] if value in WORDS else float(value)
        if key:
            named[key] = number
        else:
            positional.append(number)
    return partial(find("activation", name, ACTIVATIONS), *positional, **named)
