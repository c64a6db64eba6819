"""Putting a file's tensors into a model, with a report of what was not taken and why."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models.heads.implicit import folded
from models.spec import MOST_ANCHORS
from utils.errors import UserError

if TYPE_CHECKING:
    from models.yolo import Model

BY_CLASSES = ("m", "m2", "im", "cv3", "one2one_cv3")  # parts of heads whose shapes follow the number of classes
TAKEN_UP = {"conv2": "conv1", "conv1": "conv"}  # small branches, of YOLOv9 and v10, and where `fuse()` puts them
MOST_REASONS = 4  # that a report gives: a model of another size has as many as it has shapes

log = logging.getLogger(__name__)


class TransferReport(NamedTuple):
    taken: int
    total: int
    skipped: tuple[tuple[str, str], ...]  # key, reason

    def line(self) -> str:
        """Such as: 343 of 349 tensors; not taken: model.24.m.0.weight and 5 more because nc 80 != 3."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.skipped:
            reasons.setdefault(reason, []).append(key)
        parts = [
            f"{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''} because {reason}"
            for reason, keys in list(reasons.items())[:MOST_REASONS]
        ]
        if left := [key for keys in list(reasons.values())[MOST_REASONS:] for key in keys]:
            parts.append(f"{len(left)} more for other reasons")
        return f"{self.taken} of {self.total} tensors" + (f"; not taken: {', '.join(parts)}" if parts else "")


def transfer(model: Model, state: Mapping[str, Tensor], leave: Collection[str] = ()) -> TransferReport:
    """Copies what fits from `state` into the model, in place.

    Args:
        leave: keys whose values the model keeps.

    Raises:
        UserError: no convolution fits, so nothing would have been loaded.
    """
    own = model.state_dict()
    state = _unfolded(_in_form_of(own, state), own)
    fits, skipped = {}, []
    for key, value in own.items():
        reason = _reason(model, key, value, state, leave)
        if reason:
            skipped.append((key, reason))
        elif key in state:
            fits[key] = state[key].to(value.dtype)
    if not any(value.ndim == 4 for value in fits.values()):
        raise UserError(
            f"nothing of the weights fits {model.spec.name}: {len(state)} tensors there, {len(own)} here, no"
            " convolution in common; is the right model file given?"
        )
    model.load_state_dict(fits, strict=False)
    return TransferReport(len(fits), len(own), tuple(skipped))


def last_layer(state: Mapping[str, Tensor]) -> int | None:
    """The number of the head in the keys `model.<number>...`."""
    numbers = [int(parts[1]) for parts in (key.split(".") for key in state) if len(parts) > 2 and parts[1].isdigit()]
    return max(numbers, default=None)


def anchors_in(state: Mapping[str, Tensor]) -> Tensor | None:
    """(L, A, 2) in units of the stride, where the state has an anchor head."""
    anchors = state.get(f"model.{last_layer(state)}.anchors")
    return anchors if anchors is not None and anchors.ndim == 3 and 0 < anchors.shape[1] <= MOST_ANCHORS else None


def num_classes_in(state: Mapping[str, Tensor]) -> int | None:
    """How many classes the head of a state was made for."""
    head = f"model.{last_layer(state)}"
    for tower in ("cv3", "one2one_cv3"):  # a fused head has one of them
        bias = state.get(f"{head}.{tower}.0.2.bias")
        if bias is not None and bias.ndim == 1:
            return len(bias)
    bias = state.get(f"{head}.m.0.bias")
    if bias is None or bias.ndim != 1:
        return None
    anchors = anchors_in(state)
    per_cell = 3 if anchors is None else anchors.shape[1]  # 3 in every published model
    outputs, rest = divmod(len(bias), per_cell)
    return outputs - 5 if rest == 0 and outputs > 5 else None


def _reason(model: Model, key: str, value: Tensor, state: Mapping[str, Tensor], leave: Collection[str]) -> str:
    """Why a tensor is not taken; '' where it is."""
    if key not in state:
        return "the file has none"
    if key in leave:
        same = state[key].shape == value.shape and torch.equal(state[key].to(value), value)
        return "" if same else "the given anchors stand"
    if state[key].shape == value.shape:
        return ""
    if key.startswith(tuple(f"model.{len(model.model) - 1}.{part}." for part in BY_CLASSES)):
        anchors = anchors_in(state)
        if anchors is not None and anchors.shape[1] != model.head.num_anchors:
            return f"anchors a level {anchors.shape[1]} != {model.head.num_anchors}"
        if num_classes_in(state) != model.num_classes:
            return f"nc {num_classes_in(state)} != {model.num_classes}"
    return f"shape {tuple(state[key].shape)} != {tuple(value.shape)}"


# -- forms of one model ------------------------------------------------------------------------------------------------


def _in_form_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A YOLOv7 in training form for a model in the form for inference, or the other way round; others as they are.

    Implicit knowledge is folded into the head, or begins with what has no effect; the head gets the number that it has
    in the model, where auxiliary layers stand before it or do not.
    """
    state = dict(state)
    here, there = last_layer(own), last_layer(state)
    if _has(own, here, "m2") != _has(state, there, "m2"):
        state = {_renumbered(key, there, here): value for key, value in state.items()}
        there = here
    if _has(state, there, "ia") and not _has(own, here, "ia"):
        for key in [key for key in state if key.startswith(f"model.{there}.m.") and key.endswith(".weight")]:
            level = key.split(".")[3]
            factors = [state[f"model.{there}.{part}.{level}.implicit"] for part in ("ia", "im")]
            bias = key.replace(".weight", ".bias")
            state[key], state[bias] = folded(state[key], state[bias], *factors)
    elif _has(own, here, "ia") and not _has(state, there, "ia"):
        neutral = {"ia": torch.zeros_like, "im": torch.ones_like}
        for key in [key for key in own if key.endswith(".implicit")]:
            state[key] = neutral[key.split(".")[2]](own[key])
    return state


def _has(state: Mapping[str, Tensor], layer: int | None, part: str) -> bool:
    return any(key.startswith(f"model.{layer}.{part}.") for key in state)


def _renumbered(key: str, layer: int | None, number: int | None) -> str:
    start = f"model.{layer}."
    return f"model.{number}.{key.removeprefix(start)}" if key.startswith(start) else key


def _unfolded(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives a fused state (batch norms folded into biases) batch norms that do exactly what those biases did."""
    full, count = dict(state), 0
    for key in own:
        block = key.removesuffix(".bn.weight")
        bias = state.get(f"{block}.conv.bias")
        if block == key or key in state or bias is None or bias.shape != own[key].shape:
            continue
        count += 1
        full |= _identity_norm(f"{block}.bn", bias)
    for key in [key for key in state if key.endswith(".rbr_reparam.weight")]:
        block, kernel = key.removesuffix(".rbr_reparam.weight"), state[key]
        bias, norm = state[f"{block}.rbr_reparam.bias"], own.get(f"{block}.rbr_dense.1.bias")
        if norm is None or bias.shape != norm.shape:
            continue
        count += 1  # the 3x3 branch does it all, the others nothing
        full[f"{block}.rbr_dense.0.weight"] = kernel
        full[f"{block}.rbr_1x1.0.weight"] = torch.zeros_like(own[f"{block}.rbr_1x1.0.weight"])
        full |= _identity_norm(f"{block}.rbr_dense.1", bias) | _identity_norm(f"{block}.rbr_1x1.1", 0 * bias)
        if f"{block}.rbr_identity.weight" in own:
            full |= _identity_norm(f"{block}.rbr_identity", 0 * bias, scale=0.0)
    for key in [key for key in own if key not in state]:
        block, branch = key.removesuffix(".conv.weight").rpartition(".")[::2]
        if key.endswith(".conv.weight") and f"{block}.{TAKEN_UP.get(branch)}.conv.bias" in state:
            count += 1  # the large branch does it all
            full[key] = torch.zeros_like(own[key])
            full |= _identity_norm(f"{block}.{branch}.bn", torch.zeros_like(own[f"{block}.{branch}.bn.bias"]))
    if count:
        log.warning("%d batch norms are folded away in the weights; they begin anew as identities", count)
    return full


def _identity_norm(name: str, bias: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """A batch norm that multiplies by `scale` and adds `bias`."""
    return {
        f"{name}.weight": torch.full_like(bias, scale),
        f"{name}.bias": bias,
        f"{name}.running_mean": torch.zeros_like(bias),
        f"{name}.running_var": torch.full_like(bias, 1 - 1e-3),  # the norm adds eps, 1e-3
        f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.long),
    }
