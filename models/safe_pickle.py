"""Reading checkpoint files without running anything that is in them.

A published `.pt` is a pickle that names classes of its authors' code. Each such name must be on a short list and gets
an inert stand-in; nothing is imported, called or resolved on the file's behalf.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from utils.errors import UserError

# modules whose classes make up the pickled models that we read; their names become stand-ins
MODEL_MODULES = (
    "models.",
    "yolov5.models.",
    "ultralytics.nn.",
    "ultralytics.utils.",
    "ultralytics.yolo.utils.",
    "utils.torch_utils.",  # YOLOv7's traced models
    "torch.nn.modules.",
)
# options, paths, dates and single numbers that lie beside a model; stand-ins too
HARMLESS = frozenset(
    {
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
        ),
        "argparse.Namespace",
        "types.SimpleNamespace",
        "builtins.set",
    }
)
MAX_DEPTH = 64  # of modules within modules


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


def read_file(path: Path) -> Any:
    """The content of a checkpoint: plain data, tensors (on the CPU), and stand-ins for anything else.

    Raises:
        UserError: of a file that is not one, is damaged, or names what is not on the lists.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a weights file")
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UserError(f"{path} is empty; delete it and get it again")
    if start.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, not a weights file; delete it and get it again")
    return _read_zip(path) if start.startswith(b"PK") else _read_old(path)


def refused(names: list[str]) -> list[str]:
    """Those of the names in a file that are on no list."""
    return sorted(name for name in names if name not in HARMLESS and not name.startswith(MODEL_MODULES))


def _read_zip(path: Path) -> Any:
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a pickle that torch.save writes; it was not loaded ({error})") from error
    except Exception as error:  # whatever the parser stumbles over in a damaged file
        raise UserError(_damaged(path, error)) from error
    if strangers := refused(names):
        raise UserError(f"{path} refers to {', '.join(strangers)}; it was not loaded")
    stand_ins: list[Any] = [(type("StandIn", (StandIn,), {"origin": name}), name) for name in names]
    try:
        with safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_not_allowed(path, error)) from error
    except Exception as error:
        raise UserError(_damaged(path, error)) from error


def _read_old(path: Path) -> Any:
    """Files of torch before 1.6: plain data is read; stand-ins can't be had there."""
    try:
        with warnings.catch_warnings():  # of pickle protocols that torch does not write: the errors below say more
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{path} is not a weights file") from error
        name = found.group(1)
        if refused([name]):
            raise UserError(f"{path} refers to {name}; it was not loaded") from error
        raise UserError(
            f"{path} holds pickled modules in the format of torch before 1.6, which can't be read safely; convert it"
            " once where you trust it: load it there and save its state_dict()"
        ) from error
    except Exception as error:
        raise UserError(_damaged(path, error)) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: reading .safetensors needs the package safetensors") from error
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    silent = isinstance(error, LookupError) or not str(error)  # a key that the parser looked up in vain says nothing
    reason = type(error).__name__ if silent else str(error).splitlines()[0].split(". ")[0]
    if "torchscript" in reason.lower():
        return f"{path} is an exported TorchScript model; give the checkpoint that it was exported from"
    kind = "damaged or cut short" if zipfile.is_zipfile(path) or _is_cut_zip(path) else "not a weights file, or damaged"
    return f"{path} is {kind}; delete it and get it again ({reason})"


def _is_cut_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _not_allowed(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+)|function (<[^>]*>)", str(error))
    name = next(filter(None, found.groups())) if found else str(error).splitlines()[0]
    return f"{path} refers to {name}; it was not loaded"


def module_tensors(module: StandIn, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled module, entry by entry."""
    if depth > MAX_DEPTH:
        raise UserError("the pickled model nests modules without end; it was not loaded")
    transient = module.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in _mapping(module.get(group)).items():
            if isinstance(value, Tensor) and name not in transient:
                yield f"{prefix}{name}", value.detach()
    for name, child in _mapping(module.get("_modules")).items():
        if isinstance(child, StandIn):
            yield from module_tensors(child, f"{prefix}{name}.", depth + 1)


def submodules(module: StandIn, depth: int = 0) -> Iterator[tuple[str, StandIn]]:
    """Every pickled module below `module` with the attribute name that its parent has for it."""
    for name, child in _mapping(module.get("_modules")).items():
        if isinstance(child, StandIn) and depth <= MAX_DEPTH:
            yield str(name), child
            yield from submodules(child, depth + 1)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
