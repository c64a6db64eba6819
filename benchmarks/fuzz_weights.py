"""Weights files that nobody would write."""

from __future__ import annotations

import io
import json
import tempfile
import types
from pathlib import Path
from unittest import mock

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import nn

from benchmarks.fuzz_cases import FITTING, PICKLE, Files, changed, rezipped, zipped
from benchmarks.fuzz_cases import content as plain
from models.weights import ALWAYS, load_model, read_checkpoint
from models.weights_file import OLD_START
from utils.hyp import hyp_from_dict

TINY = {
    "nc": 2,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[2], 1, "Detect", ["nc"]]],
}
EMPTY = st.just(b"\x80\x02}.")


def checkpoints() -> SearchStrategy[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.yaml"
        file.write_text(json.dumps(TINY))
        model, _ = load_model("", str(file))
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    ours = {
        "format": "yolo-distill", "version": 1, "description": model.spec.to_dict(), "names": ["a", "b"], "named": True,
        "model": state, "options": {}, "hyp": {}, "metrics": {},
        "training": {
            "task": state, "optimizer": {}, "scaler": {}, "ema_updates": 1, "optimizer_steps": 1, "epoch": 1,
            "best_fitness": 0.5, "best_epoch": 0, "class_maps": None,
        },
    }  # fmt: skip
    files = [_saved(ours), _published(model), _saved(state)]
    shapes = st.one_of(reshaped(ours, state), reshaped({"model": {}}, state))
    old = [_saved(state, _use_new_zipfile_serialization=False)]
    pickles = st.builds(
        lambda content: zipped({"x/data.pkl": content, "x/data/0": bytes(256)}), st.one_of(PICKLE, FITTING)
    )
    olds = st.builds(lambda *four: OLD_START + b"".join(four), EMPTY, EMPTY, st.one_of(EMPTY, FITTING), FITTING)
    return st.one_of(
        *(changed(Files(files + old)), rezipped(Files(files)), rezipped(Files(files), PICKLE), pickles, olds, shapes),
        odd_parts(ours),
    )


def odd_parts(content: dict[str, object]) -> SearchStrategy[bytes]:
    """A checkpoint of ours some of whose parts are something else."""
    odd = st.one_of(plain(("lr0", "epoch", "backbone", "anchors", "task")), st.just({}))
    parts = st.dictionaries(st.sampled_from(sorted(content)), odd, min_size=1, max_size=3)
    return parts.map(lambda changes: _saved({**content, **changes}))


def reshaped(content: dict[str, object], state: dict[str, torch.Tensor]) -> SearchStrategy[bytes]:
    """Some weights in other shapes, of other kinds, or under the names that other heads have."""
    others = ("anchors", "m.0.weight", "m.0.bias", "ia.0.implicit", "im.0.implicit", "m2.0.weight", "cv3.0.2.bias")
    names = st.one_of(st.sampled_from(sorted(state)), st.sampled_from([f"model.3.{other}" for other in others]))
    forms = st.lists(st.integers(0, 4), max_size=5)
    kinds = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool])

    def written(changes: dict[str, tuple[list[int], torch.dtype]]) -> bytes:
        odd = {name: torch.ones(form, dtype=kind) for name, (form, kind) in changes.items()}
        return _saved({**content, "model": {**state, **odd}})

    return st.dictionaries(names, st.tuples(forms, kinds), min_size=1, max_size=4).map(written)


def read_weights(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    for key, value in checkpoint.state.items():
        assert type(key) is str and type(value) is torch.Tensor and value.numel() <= ALWAYS
    if checkpoint.spec is not None:
        load_model(checkpoint)
    trained = checkpoint.meta.get("hyp")
    if trained is not None:  # as validation shows images
        hyp_from_dict(trained, str(path), quiet=True)


def safetensors() -> SearchStrategy[bytes]:
    from safetensors.torch import save

    weights = ({"model.0.conv.weight": torch.zeros(2, 3, 1, 1)}, {"model.0.m": torch.ones(3).half()})
    return changed(Files(map(save, weights)))


def _saved(content: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _published(model: nn.Module) -> bytes:
    """A model as its authors would have pickled it, under names that we do not have."""
    code = types.ModuleType("models.published")
    made = type("Model", (nn.Module,), {"__module__": "models.published", "__qualname__": "Model"})()
    vars(code)["Model"] = type(made)
    made.model, made.yaml, made.names = model.model, dict(TINY), {0: "a", 1: "b"}
    with mock.patch.dict("sys.modules", {"models.published": code}):
        return _saved({"model": made, "epoch": -1})
