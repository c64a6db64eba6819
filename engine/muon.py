"""MuSGD: steps of SGD, and beside them steps along the momentum's directions, all of one length (Muon)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

# The quintic x -> a x + b x^3 + c x^5 of Jordan et al.: its slope at 0 is as large as it can be while values from 0
# to 1 stay near 1. Five rounds bring singular values down to a hundredth of the largest into [0.6, 1.2]: near enough.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# What the two parts count, as yolo26n.pt says of its training (`muon_w`, `sgd_w`).
MUON, SGD = 0.52782, 0.6737
SMALLEST = 1e-7  # norm of a momentum


class MuSGD(torch.optim.Optimizer):
    """SGD with Nesterov momentum, and for matrices the same momentum orthogonalised, in one step.

    With the gradient g (weight decay included, as in SGD) and the momentum m, the buffer b and the weight w become

        b <- m b + g,    u = g + m b,    w <- w - lr * (sgd * u + muon * sqrt(max(1, rows / columns)) * orth(u))

    orth(u) is the nearest matrix whose singular values are all 1: every direction of the momentum, the rare ones too,
    moves the weight by the same length. A convolution's weight is a matrix with one row an output channel. Weights of
    fewer dimensions, or of a single row or column (norms, biases), make the step of SGD with factor 1.

    Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io);
    that YOLO26 combines it with SGD: Ultralytics' description of its training.

    Args:
        muon, sgd: factors of the two parts, for matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        muon: float = MUON,
        sgd: float = SGD,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "muon": muon, "sgd": sgd}
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; `closure`, if any, computes the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = gradient.clone()
        else:
            state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(state["momentum_buffer"], alpha=group["momentum"])
        if is_matrix(parameter):
            direction = orthogonalised(update.flatten(1)).reshape_as(update)
            update = group["sgd"] * update + group["muon"] * stretch(parameter) * direction
        parameter.sub_(update, alpha=group["lr"])


def is_matrix(parameter: Tensor) -> bool:
    """Whether there is more than one row and more than one column, the first dimension against all others."""
    return parameter.ndim > 1 and len(parameter) > 1 and parameter[0].numel() > 1


def stretch(parameter: Tensor) -> float:
    """So that what tall matrices put out moves as far as with wide ones."""
    return max(1.0, len(parameter) / parameter[0].numel()) ** 0.5


def orthogonalised(matrix: Tensor) -> Tensor:
    """(rows, columns) -> about U V^T of its singular value decomposition U S V^T, by Newton-Schulz iteration.

    Products run in bfloat16 on a GPU, which they stand, and in float32 elsewhere; the result has the matrix's type.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    x = x.mT if len(matrix) > matrix.shape[1] else x  # the small product is rows by rows
    x = x / (x.norm() + SMALLEST)  # then no singular value is above 1
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    x = x.mT if len(matrix) > matrix.shape[1] else x
    return x.to(matrix.dtype)
