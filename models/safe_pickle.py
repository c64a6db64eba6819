"""Pickles without running anything that is in them.

A published `.pt` is a pickle that names classes of its authors' code. Each such name must be on a short list and gets
an inert stand-in; nothing is imported, called or resolved on the file's behalf. What a file can call are the functions
of `_Reader.calls`, which take plain values and give plain values. Tensors are made last, of what was checked.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from torch import Tensor

from models.opcodes import MOST_BITS, MOST_OPCODES, check_opcodes
from models.stand_ins import StandIn
from utils.errors import UserError, shown

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
        "builtins.bytearray",
        "builtins.complex",
        "torch.device",
        "torch.Size",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        *(f"torch.{kind}" for kind in ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32")),
        *(f"torch.{kind}" for kind in ("int64", "bool", "strided")),
    }
)
# what the numbers of a tensor are kept in
STORAGES: Mapping[str, torch.dtype] = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.BoolStorage": torch.bool,
}
MOST_DIMENSIONS = 16
MOST_NUMBERS = 2**48  # of a tensor, repetitions counted: their product must not overflow in PyTorch
MOST_NAMES = 1000  # that become stand-ins, 2 kB each; models have a few dozen
LONG = 16  # letters, or bits of a number, that count as one object more: a message may write everything out
MOST_DEPTH = 150  # of containers in containers; a module is three of them

Storages = Callable[[str, torch.dtype, int], Tensor]  # key, dtype, count -> so many numbers of the file, flat


class Unpickled(NamedTuple):
    """A pickle's content, in which tensors are still to be made."""

    content: Any
    storages: dict[str, tuple[torch.dtype, int]]  # key -> what is kept there, and how many
    where: str

    def resolved(self, storages: Storages) -> Any:
        """Plain data, tensors on the CPU, and stand-ins.

        Raises:
            UserError: something in it contains itself, or it would be endless if written out.
            Exception: of `storages`.
        """
        return _Builder(storages, self.where).build(self.content, 0)


def unpickle(file: BinaryIO, where: str, modules: bool = True) -> Unpickled:
    """Reads one pickle and leaves the file behind it.

    Args:
        where: what errors begin with.
        modules: False refuses pickled modules, with the way out.

    Raises:
        UserError: it names what is not on the lists.
        Exception: whatever a damaged pickle comes to.
    """
    start = file.tell()
    check_opcodes(file)
    budget = _Budget(file.tell() - start)
    file.seek(start)
    reader = _Reader(file, where, modules, budget)
    content = reader.load()
    return Unpickled(content, reader.storages, where)


# -- inert objects -----------------------------------------------------------------------------------------------------


class _Inert:
    """Something that a pickle holds until its tensors are made; it takes no state."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError("state for something that has none")


class _Budget:
    """Letters and entries that the calls of a pickle may work on: as many as it has bytes, in which each is written."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("contents that are made again and again")


class _Call(_Inert):
    """One of the functions that a file can call."""

    __slots__ = ("budget", "function")

    def __init__(self, function: Callable[..., Any], budget: _Budget) -> None:
        self.function, self.budget = function, budget

    def __call__(self, *args: Any) -> Any:
        self.budget.take(sum(len(value) for value in args if isinstance(value, Sized)))
        return self.function(*args)


class _Kind(_Inert):
    """The class of a storage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Stored(_Inert):
    """Numbers that lie elsewhere in the file."""

    __slots__ = ("count", "dtype", "key")

    def __init__(self, key: str, dtype: torch.dtype, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count


class _View(_Inert):
    """A tensor to be."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if type(storage) is not _Stored or len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
            raise ValueError("a tensor of something else than numbers in the file")
        numbers = (offset, *size, *stride)
        if others := {type(number).__name__ for number in numbers} - {"int"}:  # which may be endless if written out
            raise ValueError(f"a tensor whose shape has a {min(others)} where a number belongs")
        size, stride = tuple(size), tuple(stride)
        if not all(0 <= number < MOST_NUMBERS for number in numbers):
            raise ValueError(f"a tensor of shape {size} and strides {stride} from {offset}")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if math.prod(size) >= MOST_NUMBERS or (0 not in size and last >= storage.count):
            raise ValueError(f"a tensor of shape {size} over {storage.count} numbers")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class _Items(dict[Any, Any]):
    """An ordered mapping, without the attributes that the file would give it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None: ...


def _same_tensor(tensor: Any, *_: Any) -> _View:
    """Of a parameter, the tensor."""
    if type(tensor) is not _View:
        raise ValueError("a parameter that is no tensor")
    return tensor


def _plain_tensor(made_by: Any, _: Any, args: Any, *__: Any) -> _View:
    """Of a tensor with attributes, the tensor."""
    if type(made_by) is not _Call or made_by.function is not _View or type(args) is not tuple:
        raise ValueError("a tensor that nothing here makes")
    tensor: _View = made_by(*args)
    return tensor


def _no_bytes() -> bytes:
    """How protocol 2 writes them."""
    return b""


def _bytes(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another form than pickles have them")
    return text.encode("latin-1")


def _ordered(items: Any = ()) -> _Items:
    return _Items((_key(key), value) for key, value in (items.items() if isinstance(items, dict) else items))


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {_key(item) for item in items}


def _key(value: Any) -> Any:
    """What is hashed: a name or a small number."""
    small = type(value) is not int or value.bit_length() <= MOST_BITS
    if not small or (value is not None and type(value) not in (str, int, float, bool, bytes)):
        raise ValueError(f"a {type(value).__name__} where a name or a number belongs")
    return value


# -- unpickling --------------------------------------------------------------------------------------------------------


class _Reader(pickle.Unpickler):
    """Gives a pickle what it asks for by name: stand-ins, and the few functions that a tensor needs."""

    calls: Mapping[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _View,
        "torch._utils._rebuild_tensor_v2": _View,
        "torch._utils._rebuild_parameter": _same_tensor,
        "torch._utils._rebuild_parameter_with_state": _same_tensor,
        "torch._tensor._rebuild_from_type_v2": _plain_tensor,
        "collections.OrderedDict": _ordered,
        "collections.Counter": _ordered,
        "builtins.set": _set,
        "builtins.bytes": _no_bytes,
        "_codecs.encode": _bytes,
    }

    def __init__(self, file: BinaryIO, where: str, modules: bool, budget: _Budget) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.where = where
        self.modules = modules
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self.budget = budget
        self.stand_ins: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # as Python 2 calls it
        if full in self.calls:
            return _Call(self.calls[full], self.budget)
        if full in STORAGES:
            return _Kind(STORAGES[full])
        is_module = full.startswith(MODEL_MODULES)
        if full not in HARMLESS and not is_module:
            raise UserError(f"{self.where} refers to {shown(full)}; it was not loaded")
        if is_module and not self.modules:
            raise UserError(
                f"{self.where} holds pickled modules in the format of torch before 1.6, which can't be read safely; "
                "convert it once where you trust it: load it there and save its state_dict()"
            )
        if full not in self.stand_ins:
            if len(self.stand_ins) == MOST_NAMES:
                raise ValueError(f"more than {MOST_NAMES} kinds of objects")
            self.stand_ins[full] = type("StandIn", (StandIn,), {"origin": full})
        return self.stand_ins[full]

    def persistent_load(self, pid: Any) -> _Stored:
        if type(pid) is not tuple or len(pid) not in (5, 6):  # before torch 1.6 with a view, which is None
            raise ValueError("a storage that is described otherwise")
        _, kind, key, _, count = pid[:5]
        if type(kind) is not _Kind or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a storage of something else than numbers")
        if self.storages.setdefault(key, (kind.dtype, count)) != (kind.dtype, count):
            raise ValueError(f"two storages called {shown(key)}")
        return _Stored(key, kind.dtype, count)


class _Builder:
    """Copies what was unpickled, tensors made and everything inert left out."""

    def __init__(self, storages: Storages, where: str) -> None:
        self.storages = storages
        self.where = where
        self.flat: dict[str, Tensor] = {}
        self.tensors: dict[int, Tensor] = {}  # by the identity of the view: what stands twice is one tensor
        self.left = MOST_OPCODES  # objects, each counted as often as it is referred to, and long ones by their length

    def build(self, value: Any, depth: int) -> Any:
        self._count(value)
        if depth > MOST_DEPTH:
            raise self._endless()
        if isinstance(value, dict):
            for key in value:
                self._count(key)
            return {key: self.build(item, depth + 1) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)([self.build(item, depth + 1) for item in value])
        if isinstance(value, StandIn):
            value.state = self.build(getattr(value, "state", {}), depth + 1)
        elif isinstance(value, _View):
            return self._tensor(value)
        elif isinstance(value, _Inert):
            return None
        return value

    def _count(self, value: Any) -> None:
        self.left -= 1
        kind = type(value)
        if kind is str or kind is bytes:
            self.left -= len(value) // LONG
        elif kind is int:
            self.left -= value.bit_length() // LONG
        if self.left < 0:
            raise self._endless()

    def _endless(self) -> UserError:
        return UserError(f"{self.where} nests modules or lists without end; it was not loaded")

    def _tensor(self, view: _View) -> Tensor:
        stored = view.storage
        if stored.key not in self.flat:
            self.flat[stored.key] = self.storages(stored.key, stored.dtype, stored.count)
        if id(view) not in self.tensors:
            self.tensors[id(view)] = self.flat[stored.key].as_strided(view.size, view.stride, view.offset)
        return self.tensors[id(view)]
