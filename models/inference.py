"""The last forms of a fused model's convolutions, in which nothing can learn any more."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.blocks.conv import Conv

if TYPE_CHECKING:
    from models.yolo import Model

# as oneDNN calls them; a convolution with another activation stays as it is
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.SiLU: "swish",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Hardswish: "hardswish",
    nn.Identity: "none",
}


class OnePass(nn.Module):
    """Convolution and activation in one pass over memory; for CPUs, without gradient.

    In bfloat16 what stands between the two isn't rounded, so that the model's output is nearer to that of float32.

    Args:
        convolution: with a bias.
        activation: a module of ACTIVATIONS.
        precision: the format of its weights, into which its input is brought.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        assert convolution.bias is not None
        weight = convolution.weight.detach().to(precision)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", convolution.bias.detach().to(precision))
        geometry = (convolution.padding, convolution.stride, convolution.dilation)
        options = [activation.negative_slope] if isinstance(activation, nn.LeakyReLU) else []
        name = ACTIVATIONS[type(activation)]
        self.arguments = (*map(list, geometry), convolution.groups, name, options, "")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(self.weight.dtype), self.weight, self.bias, *self.arguments
        )
        return found


class Exact(nn.Module):
    """A module in float32, whatever autocast or the model around it says."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.module(x.float())
        return found


def for_inference(model: Model, device: torch.device, precision: torch.dtype | None = None) -> Model:
    """Fuses a model and brings it, in place, into the form that puts out the same fastest. Returns the model.

    Args:
        device: where it is.
        precision: in which it will run under autocast, None for float32. The convolutions that end its head put out
            float32 all the same: rounded logits and distances would cost accuracy, and little time is spent there.
    """
    model.fuse().to(memory_format=torch.channels_last)
    if device.type == "cpu":
        one_pass(model, precision or torch.float32)
    if precision is not None:
        for parent in list(model.head.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d) and not isinstance(parent, Conv):
                    setattr(parent, name, Exact(child))
    return model


def one_pass(module: nn.Module, precision: torch.dtype) -> None:
    """Puts `OnePass` in the place of all fused `Conv` below the module, where this PyTorch has what it takes."""
    if not has_one_pass(precision):
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv) and isinstance(child.bn, nn.Identity) and type(child.act) in ACTIVATIONS:
                setattr(parent, name, OnePass(child.conv, child.act, precision))


@functools.cache
def has_one_pass(precision: torch.dtype) -> bool:
    """Whether `OnePass` runs here: PyTorch can be built without oneDNN, and not every CPU has every format."""
    try:
        convolution = nn.utils.skip_init(nn.Conv2d, 8, 8, 3, padding=1)  # draws no random numbers
        nn.init.constant_(convolution.weight, 0.01)
        nn.init.constant_(convolution.bias, 0.5)
        images = torch.ones(1, 8, 4, 4)
        with torch.no_grad():
            expected = nn.functional.silu(convolution(images))
            found = OnePass(convolution, nn.SiLU(), precision)(images).float()
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(found, expected, atol=0.05)
