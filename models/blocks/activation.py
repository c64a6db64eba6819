"""Other activations than SiLU, named by the key `activation:` of a model file, such as `nn.LeakyReLU(0.1)`."""

from __future__ import annotations

import re

import yaml
from torch import nn

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


def activation(text: str) -> nn.Module:
    """The module that `nn.LeakyReLU(0.1)` describes; read with a table, nothing is evaluated.

    Raises:
        ValueError: of a text that is not a name and simple arguments.
        UserError: of an unknown name.
    """
    match = re.fullmatch(r"(?:torch\.)?(nn\.\w+)(?:\((.*)\))?", text.strip())
    if match is None:
        raise ValueError(f"an activation looks like nn.LeakyReLU(0.1); got '{text}'")
    name, arguments = match.groups()
    positional, named = [], {}
    for argument in filter(None, (part.strip() for part in (arguments or "").split(","))):
        key, _, value = argument.rpartition("=")
        number = yaml.safe_load(value)
        if not isinstance(number, bool | int | float):
            raise ValueError(f"arguments of an activation are numbers, True or False; got '{text}'")
        if key:
            named[key.strip()] = number
        else:
            positional.append(number)
    return find("activation", name, ACTIVATIONS)(*positional, **named)


def replace_activations(module: nn.Module, text: str) -> None:
    """Puts the named activation wherever a block below `module` has its SiLU, in place."""
    for part in module.modules():
        if isinstance(getattr(part, "act", None), nn.SiLU):
            part.act = activation(text)
