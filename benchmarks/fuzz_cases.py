"""What foreign files may look like: valid ones with something changed in them, and ones made of their parts at random.

Strategies of hypothesis; every case is the bytes of a file.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# what parsers stumble over: ends of ranges, other encodings, beginnings of other formats
ODD = (
    b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\n", b"-1", b"1e999", b"nan",
    b"inf", b"9" * 30, b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[8m", b"..", b"/", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8",
    b"%!PS-Adobe",
)  # fmt: skip
NAMES = (
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "__builtin__ set",
    "torch FloatStorage", "torch HalfStorage", "torch LongStorage", "torch.nn.modules.conv Conv2d", "models.yolo Model",
    "_codecs encode", "numpy dtype", "torch._tensor _rebuild_from_type_v2", "torch Size", "os system", "builtins eval",
    "__builtin__ getattr", "torch.storage UntypedStorage", "torch.hub load",
)  # fmt: skip
CALLED = (
    "collections OrderedDict", "collections Counter", "__builtin__ set", "__builtin__ bytes", "_codecs encode",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch._tensor _rebuild_from_type_v2",
    "models.yolo Model", "torch Size", "numpy dtype",
)  # fmt: skip
WHOLE = st.sampled_from([0, 1, 2, 3, 8, 255, 65535, 2**31 - 1, -1, 2**40, 2**62, 2**63 - 1])


class Files(tuple[bytes, ...]):
    """Valid files; hypothesis writes out what strategies are made of, and shall not write these."""

    def __repr__(self) -> str:
        return f"<{len(self)} files>"


@st.composite
def changed(draw: st.DrawFn, files: Files) -> bytes:
    """One of the files with one to eight changes: bytes replaced, taken out, repeated, or cut off."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4, 8]))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        stop = start + draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1024]))
        kind = draw(st.sampled_from(["odd", "bit", "out", "again", "cut", "random"]))
        if kind == "odd":
            content[start:stop] = draw(st.sampled_from(ODD))
        elif kind == "bit" and content:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "out":
            del content[start:stop]
        elif kind == "again":
            content[start:start] = content[start:stop] * draw(st.sampled_from([1, 2, 100]))
        elif kind == "cut":
            del content[start:]
        elif kind == "random":
            content[start:stop] = draw(st.binary(max_size=8))
    return bytes(content)


# -- archives of parts -------------------------------------------------------------------------------------------------


def zipped(parts: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive whose checksums are right, so that what is in it is looked at."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@st.composite
def rezipped(draw: st.DrawFn, files: Files, parts: SearchStrategy[bytes] | None = None) -> bytes:
    """A zip archive with one member changed, or replaced by one of the `parts`, under its own or another name."""
    members = unzipped(draw(st.sampled_from(files)))
    name = draw(st.sampled_from(sorted(members, key=len)))
    own = changed(Files([members[name]]))
    members[name] = draw(own if parts is None else st.one_of(own, parts))
    if draw(st.integers(0, 9)) == 0:
        members[draw(st.sampled_from(["../outside", "/outside", "a/../../b", "x" * 300, "C:/x", "a\0b"]))] = b"x"
    return zipped(members, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


# -- pickles -----------------------------------------------------------------------------------------------------------


def _number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


@st.composite
def storage(draw: st.DrawFn) -> bytes:
    """A reference to numbers of the file, which may be there."""
    kind = draw(st.sampled_from(["FloatStorage", "HalfStorage", "LongStorage", "BoolStorage"]))
    key, count = draw(st.sampled_from("0123")), draw(st.one_of(st.integers(0, 64), WHOLE))
    return b"(" + _text("storage") + f"ctorch\n{kind}\n".encode() + _text(key) + _text("cpu") + _number(count) + b"tQ"


@st.composite
def tensor(draw: st.DrawFn) -> bytes:
    """A tensor, which may claim anything."""
    sides = draw(st.lists(st.one_of(st.integers(0, 9), WHOLE), max_size=5))
    steps = draw(st.lists(st.one_of(st.integers(0, 9), WHOLE), min_size=len(sides), max_size=len(sides) + 1))
    lists = b"".join(b"(" + b"".join(map(_number, numbers)) + b"t" for numbers in (sides, steps))
    offset = _number(draw(st.one_of(st.integers(0, 9), WHOLE)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + draw(storage()) + offset + lists + b"\x89NtR"


OPCODE = st.one_of(
    st.sampled_from([*b"(t)}]\x85\x86\x87R\x81bQasueN\x88\x89.0l"]).map(lambda code: bytes([code])),
    st.sampled_from(NAMES).map(lambda name: "c{}\n{}\n".format(*name.split()).encode()),
    st.integers(0, 255).map(lambda index: bytes([ord("h"), index])),
    st.integers(0, 255).map(lambda index: bytes([ord("q"), index])),
    st.sampled_from([b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"\x82\x01", b"\x8a\xff", b"\x96" + b"\xff" * 8]),
    WHOLE.map(_number),
    st.sampled_from(["model", "ema", "yaml", "format", "backbone", "model.0.conv.weight"]).map(_text),
    storage(),
    tensor(),
)
PICKLE = st.lists(OPCODE, max_size=60).map(lambda codes: b"\x80\x02" + b"".join(codes) + b".")


# what functions of PyTorch and Python are called with; others with anything
LONG = st.sampled_from([1, 1000, 100_000]).map(lambda count: _text("a" * count))
MANY = st.sampled_from([0, 3, 20_000]).map(lambda count: b"](" + b"".join(map(_number, range(count))) + b"e")


def _arguments(name: str, value: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    if name == "_codecs encode":
        parts = [LONG, st.just(_text("latin1"))]
    elif name.startswith("torch._utils _rebuild_tensor"):
        sides = st.one_of(st.just(b"K\x01\x85"), value, _folded(value), _folded(value).map(lambda one: one + b"\x85"))
        parts = [storage(), st.just(_number(0)), sides, sides, st.just(b"\x89N")]
    elif name.startswith("torch._tensor"):
        parts = [st.sampled_from(CALLED).map(_named), st.just(b"N"), value, st.just(b"N")]
    elif name.startswith("torch._utils"):
        parts = [st.one_of(tensor(), value), st.just(b"\x89N")]
    else:
        return st.one_of(
            st.one_of(MANY, value).map(lambda one: one + b"\x85"),
            st.sampled_from([0, 2, 50_000]).map(lambda count: b"(" + b"N" * count + b"t"),
        )
    return st.tuples(*parts).map(lambda made: b"(" + b"".join(made) + b"t")


def _named(name: str) -> bytes:
    return "c{}\n{}\n".format(*name.split()).encode()


@st.composite
def called(draw: st.DrawFn, value: SearchStrategy[bytes]) -> bytes:
    """What a function gives, or a list of what it gives again and again for the same arguments."""
    name = draw(st.sampled_from(CALLED))
    arguments, times = draw(_arguments(name, value)), draw(st.sampled_from([0, 0, 1, 20_000]))
    if not times:
        return _named(name) + arguments + b"R"
    return b"](" + arguments + b"q\x01" + _named(name) + b"q\x02" + b"h\x02h\x01R" * times + b"e"


def _made_of(value: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """A value made of a value, by opcodes that find what they want."""
    times = st.sampled_from([0, 1, 8, 1000])
    nothing = st.sampled_from([b"", b"Nb", b"(e", b"(u", b"}b"])  # is done to it
    key = st.builds(lambda one, after: one + after, st.one_of(value, _folded(value)), nothing)
    return st.one_of(
        _folded(value),
        st.builds(lambda one, count: one + b"\x85" * count * 100, value, times),
        st.builds(lambda one, count: b"](" + one + b"q\x00" + b"h\x00" * count * 100 + b"e", value, times),
        st.builds(lambda one, other: b"}" + one + other + b"s", key, value),
        st.builds(lambda one, other: b"(" + one + other + b"t", value, value),
        called(value),
        called(value),
    )


def _folded(value: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """A tuple that has a value twice, and one that has this twice, and so on."""
    return st.builds(lambda one, count: one + b"q\x00h\x00\x86" * count, value, st.sampled_from([1, 8, 60, 60, 1000]))


SIMPLE = st.one_of(
    st.sampled_from([b"N", b"\x88", b")", b"]", b"}", b"\x8f", _number(2**61 - 1 << 200)]),
    *(WHOLE.map(_number), LONG, MANY, storage(), tensor()),
)
VALUE = st.recursive(SIMPLE, _made_of, max_leaves=8)
PLACES = st.sampled_from(["model", "ema", "yaml", "format", "names", "model.0.conv.weight"]).map(_text)
FITTING = st.one_of(VALUE, st.builds(lambda key, value: b"}" + key + value + b"s", PLACES, VALUE)).map(
    lambda content: b"\x80\x02" + content + b"."
)


# -- text --------------------------------------------------------------------------------------------------------------

SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(),
    st.sampled_from(["Conv", "Detect", "nc", "../x", "/", "~nobody/x", "\x1b[2J", "a" * 300, "None", "bash x.sh"]),
)  # fmt: skip


def content(keys: Sequence[str]) -> SearchStrategy[Any]:
    """Plain data whose mappings have some of these keys."""
    key = st.one_of(st.sampled_from(list(keys)), st.integers(-1, 9), st.text(max_size=5))
    return st.recursive(
        SCALAR,
        lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(key, inner, max_size=6)),
        max_leaves=25,
    )


def laughs(line: str) -> str:
    """Eight lines, each of which says the one before nine times: 43 million entries in half a kilobyte."""
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    return "a: &a {x: 1}\n" + "".join(line.format(b, ", ".join([f"*{a}"] * 9)) for a, b in pairs)


BOMBS = (
    laughs("{0}: &{0} [{1}]\n"), laughs("{0}: &{0} {{<<: [{1}]}}\n"),
    "a: &a [*a]", "[" * 5000, "{a: " * 3000, "- " * 3000, "nc: " + "9" * 5000, "nc: 0x" + "f" * 5000,
    "lr0: " + "1" * 100_000, "nc: " + "1:1" * 3000, "nc: 1000000000", "when: 2020-13-45", "a: !!timestamp x",
    "a: !!int ''", "when: 9999-12-31T23:59:59-23:00", "? [a]\n: b", "? {a: b}\n: c", "\t", "%YAML 3.0",
    "!!python/object/apply:os.system [id]", "names: {.inf: a}", "path: ..",
    "train: /dev/zero\nval: /dev/zero\nnames: [a]",
)  # fmt: skip


@st.composite
def yaml_text(draw: st.DrawFn, files: Files, keys: Sequence[str]) -> bytes:
    """YAML: a valid file with changes, with some keys replaced, or with a line that parsers fear; or plain data."""
    kind = draw(st.sampled_from(["changed", "replaced", "line", "plain"]))
    valid = draw(st.sampled_from(files))
    if kind == "changed":
        return draw(changed(files))
    if kind == "line":
        return draw(st.sampled_from([valid, b""])) + b"\n" + draw(st.sampled_from(BOMBS)).encode()
    values = yaml.safe_load(valid) if kind == "replaced" else {}
    for key in draw(st.lists(st.sampled_from(list(keys)), max_size=3)):
        values[key] = draw(content(keys))
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False).encode("utf-8", errors="replace")


FIELD = st.one_of(
    st.floats(0, 1).map(str), st.integers(-2, 9).map(str), st.floats().map(str), st.text(max_size=4),
    st.sampled_from(["nan", "inf", "-inf", "1e300", "1e-300", "0.0000001", "1_0", "\0", "9" * 400, "0x1", "\u0663"]),
)  # fmt: skip
LABELS = st.lists(st.lists(FIELD, max_size=9).map(" ".join), max_size=9).map(
    lambda rows: "\n".join(rows).encode("utf-8", errors="replace")
)


# -- arrays ------------------------------------------------------------------------------------------------------------


@st.composite
def array_file(draw: st.DrawFn) -> bytes:
    """An .npy file: any small array, whose header may claim something else."""
    kind = draw(st.sampled_from(["<i8", "<i4", "<f4", "<f8", "|b1", "|u1", "<U3"]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = draw(st.lists(st.sampled_from([0, 1, 2, 3, -1, 0.5, 2**31 - 1]), min_size=1, max_size=4))
    file = io.BytesIO()
    np.save(file, np.resize(np.array(values), shape).astype(kind))
    own, claimed = str(tuple(shape)).encode(), draw(st.sampled_from([b"", b"(9999999999999,)", b"(-1, -8)"]))
    longer = len(claimed) - len(own)
    if longer <= 0:
        return file.getvalue()
    return file.getvalue().replace(own, claimed, 1).replace(b" " * longer + b"\n", b"\n", 1)  # as long as it was
