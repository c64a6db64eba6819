"""Nothing of a file is run, and what cannot be read is told in one line."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from models.safe_pickle import _Reader
from models.stand_ins import StandIn, module_tensors
from models.weights import read_checkpoint
from models.weights_file import OLD_START, read_file
from tests.models.limited import outcomes
from utils.errors import UserError


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def trap(tmp_path):
    """A file that a hostile pickle would make."""
    return tmp_path / "trap"


def hostile(kind, trap):
    return {
        "posix.system": lambda: Calls(os.system, f"touch {trap}"),
        "builtins.eval": lambda: Calls(eval, f"open({str(trap)!r}, 'w')"),
        "builtins.exec": lambda: Calls(exec, f"open({str(trap)!r}, 'w')"),
        "builtins.getattr": lambda: Calls(getattr, nn.Identity(), "forward"),
        "io.open": lambda: Calls(open, str(trap), "w"),
        "torch.hub.load": lambda: Calls(torch.hub.load, "somebody/something", "model"),
    }[kind]()


# since Python 3.12 the last is called _io.open
HOSTILE = ["posix.system", "builtins.eval", "builtins.exec", "builtins.getattr", "io.open"]


@pytest.mark.skipif(os.name != "posix", reason="the names of system calls are those of posix")
@pytest.mark.parametrize("kind", [*HOSTILE, "torch.hub.load"])
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(kind, trap, tmp_path):
    path = tmp_path / "yolov5s.pt"
    torch.save({"model": hostile(kind, trap), "epoch": 3}, path)
    with pytest.raises(UserError, match=rf"yolov5s.pt refers to _?{kind}; it was not loaded"):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.skipif(os.name != "posix", reason="the names of system calls are those of posix")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_without_zip_is_refused_too(kind, trap, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"model": hostile(kind, trap)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=rf"old.pt refers to _?{kind}; it was not loaded"):
        read_checkpoint(path)
    assert not trap.exists()


def test_a_class_of_torch_is_a_stand_in_too(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), tmp_path / "x.pt")
    content = read_file(tmp_path / "x.pt")
    assert isinstance(content, StandIn) and not isinstance(content, nn.Module)
    assert content.origin == "torch.nn.modules.container.Sequential"


def test_state_of_a_pickled_module_equals_its_state_dict(tmp_path):
    module = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 2, 3, bias=False), b=nn.Sequential(nn.BatchNorm2d(2))))
    module.register_buffer("passing", torch.zeros(1), persistent=False)
    torch.save(module, tmp_path / "x.pt")
    read = dict(module_tensors(read_file(tmp_path / "x.pt")))
    assert list(read) == list(module.state_dict())
    for key, value in module.state_dict().items():
        assert torch.equal(read[key], value)


def test_a_state_that_names_our_attributes_shadows_nothing(tmp_path):
    module = nn.Identity()
    module.__dict__.update(get="mine", state="mine", origin="mine", __class__="mine")
    torch.save(module, tmp_path / "x.pt")
    content = read_file(tmp_path / "x.pt")
    assert content.origin == "torch.nn.modules.linear.Identity" and content.get("get") == "mine"


def test_harmless_company_of_a_model_is_read(tmp_path):
    company = {
        "fitness": np.float64(0.5),
        "curve": np.arange(3.0),
        "kind": np.dtype("float32"),
        "where": pathlib.PurePosixPath("runs/exp"),
        "opt": argparse.Namespace(epochs=3),
        "more": types.SimpleNamespace(lr0=0.01),
        "save": {4, 6},
        "weight": torch.ones(2),
    }
    torch.save(company, tmp_path / "x.pt")
    content = read_file(tmp_path / "x.pt")
    assert content["save"] == {4, 6} and torch.equal(content["weight"], torch.ones(2))
    assert isinstance(content["fitness"], StandIn) and content["opt"].get("epochs") == 3


def test_an_old_file_of_plain_data_is_read(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_file(tmp_path / "old.pt")["a"], torch.arange(3))


def test_an_old_file_of_modules_is_refused_with_the_way_out(tmp_path):
    torch.save({"model": nn.Conv2d(1, 1, 1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"before 1\.6, which can't be read safely; convert it once where you trust it"):
        read_file(tmp_path / "old.pt")


def test_modules_nested_without_end_are_refused(tmp_path):
    module = nn.Sequential()
    module._modules["again"] = module
    torch.save(module, tmp_path / "x.pt")
    with pytest.raises(UserError, match="without end"):
        dict(module_tensors(read_file(tmp_path / "x.pt")))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_files_that_are_not_weights_are_told_in_one_line(name, tmp_path):
    path = tmp_path / name
    whole = tmp_path / "whole.pt"
    torch.save({"model.0.conv.weight": torch.rand(300)}, whole)
    contents = {
        "cut": whole.read_bytes()[:900],
        "garbage": bytes(range(256)) * 8,
        "text": b"hello, this is not a checkpoint at all",
        "page": b"<!DOCTYPE html><html>Not found</html>",
        "empty": b"",
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_web_page_an_empty_file_a_folder_and_nothing(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match="no weights file"):
        read_file(path)
    with pytest.raises(UserError, match="is a folder"):
        read_file(tmp_path)
    path.write_bytes(b"\n <html>")
    with pytest.raises(UserError, match="is a web page"):
        read_file(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_file(path)


def test_data_that_is_no_model_is_told(tmp_path):
    path = tmp_path / "x.pt"
    for content, message in (([1, 2], "no weights, but a list"), ({"a": 1}, "no weights of a YOLO model")):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            read_checkpoint(path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_exported_model_is_told(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.rand(1, 1, 4, 4)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="TorchScript"):
        read_file(tmp_path / "x.pt")


# -- pickles that torch.save never wrote ------------------------------------------------------------------------------


def checkpoint(path, pickled, storage=bytes(16), key="0", method=zipfile.ZIP_STORED):
    """A file whose pickle is this, and one storage."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("x/version", "3")
        archive.writestr(f"x/data/{key}", storage)
    return path


def number(value):
    return pickle.dumps(value, protocol=2)[2:-1]


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


STAND_IN = b"cmodels.yolo\nModel\n"
STORED = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(4) + b"tQ"


def tensor(offset, size, stride, stored=STORED):
    arguments = stored + number(offset) + numbers(*size) + numbers(*stride) + b"\x89N"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


OTHER_OPCODES = {
    "INST": b"(imodels.yolo\nModel\n",
    "OBJ": b"(" + STAND_IN + b"o",
    "NEWOBJ_EX": STAND_IN + b")}\x92",
    "STACK_GLOBAL": b"\x8c\x06models\x8c\x05Model\x93",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pstorage\n",
    "BYTEARRAY8": b"\x96" + (1 << 40).to_bytes(8, "little"),
    "FROZENSET": b"(\x91",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "POP": b"N0",
}


@pytest.mark.parametrize("name", OTHER_OPCODES)
def test_opcodes_that_torch_does_not_write_are_refused(name, tmp_path):
    path = checkpoint(tmp_path / "x.pt", OTHER_OPCODES[name] + b"N")
    with pytest.raises(UserError, match=r"x\.pt is "):
        read_file(path)


def test_all_that_can_be_called_is_inert(tmp_path, trap):
    """Whatever is on the stack is called, given a state and made anew: nothing has any effect."""
    for name in (*_Reader.calls, "torch.FloatStorage", "models.yolo.Model", "numpy.dtype"):
        known = "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()
        for after in (
            b"(" + text(str(trap)) + b"tR",
            b"}b",
            b"(Ntb",
            b")R}" + text("__class__") + known + b"sb",
            b")\x81",
        ):
            before = dict(vars(_Reader)), dict(vars(StandIn))
            try:
                read_file(checkpoint(tmp_path / "x.pt", known + after))
            except UserError as error:
                assert "\n" not in str(error)
            assert (dict(vars(_Reader)), dict(vars(StandIn))) == before
    assert not trap.exists()


def test_a_state_for_what_has_none_is_refused(tmp_path):
    for owner in (b"cbuiltins\nset\n", b"ctorch\nFloatStorage\n", tensor(0, [4], [1])):
        with pytest.raises(UserError, match="state for something that has none"):
            read_file(checkpoint(tmp_path / "x.pt", owner + b"}b"))


def test_attributes_of_an_ordered_mapping_are_left_out(tmp_path):
    made = b"ccollections\nOrderedDict\n)R" + text("model.0.w") + tensor(0, [4], [1]) + b"s"
    content = read_file(checkpoint(tmp_path / "x.pt", made + b"}" + text("get") + STAND_IN + b"sb"))
    assert type(content) is dict and list(content) == ["model.0.w"]


OUTSIDE = {
    "longer than the storage": tensor(0, [5], [1]),
    "beyond it by a step": tensor(0, [2, 2], [4, 1]),
    "beyond it from the start": tensor(4, [1], [1]),
    "a product that overflows": tensor(0, [2**40, 2**40], [0, 0]),
    "a step that overflows": tensor(0, [3], [2**62]),
    "negative side": tensor(0, [-1], [1]),
    "negative step": tensor(3, [4], [-1]),
    "negative start": tensor(-1, [4], [1]),
    "sides and steps": tensor(0, [4], [1, 1]),
    "a side that is no number": tensor(0, [], [], STORED).replace(b"(t(t", b"(" + text("a") + b"t(" + text("a") + b"t"),
    "very many sides": tensor(0, [1] * 100, [1] * 100),
    "more numbers than bytes": tensor(0, [4], [1], STORED.replace(number(4), number(1 << 40))),
    "no storage": tensor(0, [4], [1], b"N"),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_tensors_beyond_their_numbers_are_refused(kind, tmp_path):
    with pytest.raises(UserError, match="damaged or cut short"):
        read_file(checkpoint(tmp_path / "x.pt", OUTSIDE[kind]))
    assert read_file(checkpoint(tmp_path / "x.pt", tensor(1, [3], [1]))).tolist() == [0, 0, 0]


def test_one_number_cannot_stand_for_many_weights(tmp_path):
    weights = b"}" + text("model.0.conv.weight") + tensor(0, [1 << 20, 1 << 20], [0, 0]) + b"s"
    with pytest.raises(UserError, match=r"its tensors have 1099511627776 numbers, and the file has \d+ bytes"):
        read_checkpoint(checkpoint(tmp_path / "x.pt", weights))


def named(name):
    return "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()


def called(name, arguments):
    """What a function gives for a tuple of arguments."""
    return named(name) + arguments + b"R"


def again(name, arguments, times):
    """A list of what a function gives for the same arguments, made anew each time."""
    return b"](" + named(name) + b"q\x00" + arguments + b"q\x01" + b"R" + b"h\x00h\x01R" * times + b"e"


def mapping(**entries):
    return b"}" + b"".join(text(key) + value + b"s" for key, value in entries.items())


LAUGHS = b")" + b"q\x00h\x00\x86" * 60  # a tuple of two, which are the same tuple of two, and so on
TALL = b")" + b"\x85" * 400_000
LONG_TEXT = text("a" * 200_000)
MANY = b"](" + b"".join(map(number, range(20_000))) + b"e"
PARAMETER, TENSOR = "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2"
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
COLLIDING = number((2**61 - 1) << 200)

TAKES_TIME = {
    "a memo of billions": b"Nr\xff\xff\xff\xff",
    "a tuple of tuples as a key": b"}" + LAUGHS + b"Ns",
    "such a key as a parameter": b"}" + called(PARAMETER, LAUGHS + b"\x85") + b"Ns",
    "such a key as a tensor": b"}" + called(FROM_TYPE, b"(" + named(PARAMETER) + b"N" + LAUGHS + b"\x85Nt") + b"Ns",
    "such a key with a state of none": b"}" + LAUGHS + b"Nb" + b"Ns",
    "such a key with nothing appended": b"}" + LAUGHS + b"(e" + b"Ns",
    "such a key with no items set": b"}" + LAUGHS + b"(u" + b"Ns",
    "such a key behind another": b"}(NN" + LAUGHS + b"Nu",
    "such a key in a set": called("builtins.set", b"](" + LAUGHS + b"e\x85"),
    "a tall tuple as a key": b"}" + called(PARAMETER, TALL + b"\x85") + b"Ns",
    "numbers that collide": b"}" + COLLIDING + b"Ns",
    "numbers that collide, by a call": b"}" + called(PARAMETER, COLLIDING + b"\x85") + b"Ns",
    "lists of lists": b"]" + b"q\x00]h\x00ah\x00a" * 60,
    "a list in itself": b"]q\x00h\x00a",
    "a tower of lists": b"]" * 100_000 + b"a" * 99_999,
    "a shape that is endless if written out": called(
        TENSOR, b"(" + STORED + number(0) + LAUGHS + b"\x85" + numbers(1) + b"t"
    ),
    "steps that are endless if written out": called(TENSOR, b"(" + STORED + number(0) + numbers(1) + LAUGHS + b"\x85t"),
    "bytes made again and again": again("_codecs.encode", LONG_TEXT + text("latin1") + b"\x86", 20_000),
    "sets made again and again": again("builtins.set", MANY + b"\x85", 20_000),
    "mappings made again and again": again(
        "collections.OrderedDict", b"}(" + b"".join(number(i) + b"N" for i in range(20_000)) + b"u\x85", 20_000
    ),
    "arguments copied again and again": again("models.yolo.Model", b"(" + b"N" * 300_000 + b"t", 100_000),
    "storages described again and again": b"]("
    + STORED[:-2]
    + b"N" * 300_000
    + b"tq\x00Q"
    + b"h\x00Q" * 100_000
    + b"e",
    "names of which each is a class": b"](" + b"".join(b"cmodels.a\n%d\n" % i for i in range(2_000)) + b"e",
    "words written out again and again": mapping(
        format=text("yolo-distill"),
        names=b"]",
        named=b"\x89",
        model=b"}",
        description=mapping(head=b"]", backbone=mapping(a=b"](" + LONG_TEXT + b"q\x00" + b"h\x00" * 500_000 + b"e")),
    ),
}
TAKES_NONE = {
    "tensors of one storage": b"".join(b"(" + tensor(0, [4], [1]) + b"q\x01h\x01h\x01h\x01tq\x01" for _ in range(9)),
    "one class": b"](" + STAND_IN * 500_000 + b"e",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What comes of each file, read by a process that has little memory and time."""
    folder = tmp_path_factory.mktemp("small")
    contents = {**TAKES_TIME, **TAKES_NONE}
    paths = [checkpoint(folder / f"{index}.pt", content) for index, content in enumerate(contents.values())]
    keys = folder / "old.pt"
    keys.write_bytes(old_file(b"](" + LAUGHS + b"e"))
    return dict(zip((*contents, "keys of an old file"), outcomes([*paths, keys]), strict=True))


def old_file(keys):
    """A file of torch before 1.6, whose last pickle is this."""
    return OLD_START + b"".join(b"\x80\x02" + content + b"." for content in (number(1001), b"}", b"}", keys))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are Linux's")
@pytest.mark.parametrize("kind", [*TAKES_TIME, "keys of an old file"])
def test_small_files_that_mean_very_much_end_at_once(kind, ended):
    assert re.match(r"\S+\.pt (is|nests) ", ended[kind]) and "MemoryError" not in ended[kind], ended[kind]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are Linux's")
@pytest.mark.parametrize("kind", TAKES_NONE)
def test_what_is_said_often_is_kept_once(kind, ended):
    assert re.search(r"holds no weights, but a (tuple|list)$", ended[kind]), ended[kind]


def test_empty_bytes_of_protocol_2_are_read(tmp_path):
    torch.save({"curve": np.empty(0), "raw": b"", "weight": torch.ones(2)}, tmp_path / "x.pt")
    content = read_file(tmp_path / "x.pt")
    assert content["raw"] == b"" and torch.equal(content["weight"], torch.ones(2))
    with pytest.raises(UserError, match="damaged or cut short"):
        read_file(checkpoint(tmp_path / "y.pt", called("__builtin__.bytes", number(1 << 40) + b"\x85")))


def test_a_tensor_that_stands_twice_is_one(tmp_path):
    weight = torch.ones(2)
    torch.save([weight, weight], tmp_path / "x.pt")
    first, second = read_file(tmp_path / "x.pt")
    assert first is second


def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path):
    path = checkpoint(tmp_path / "x.pt", tensor(0, [4], [1]), bytes(50_000_000), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"has 0\.\d MB and would unpack to 50 MB, as no weights do"):
        read_file(path)


def test_a_zip_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="is a zip archive without a checkpoint"):
        read_file(tmp_path / "x.pt")


@pytest.mark.parametrize("keep", [40, 200, -1, -9])
def test_an_old_file_that_was_cut_is_told(keep, tmp_path):
    torch.save({"a": torch.arange(300)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:keep])
    with pytest.raises(UserError, match=r"old\.pt is not a weights file, or damaged"):
        read_file(tmp_path / "old.pt")


def test_what_is_read_is_what_torch_reads(tmp_path):
    """Every kind of number, views, shared storages, empty tensors: against torch's own reader."""
    base = torch.arange(24.0)
    kinds = (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
    content = {
        **{str(kind): base.to(kind) for kind in kinds},
        "bool": base > 3,
        "view": base.view(4, 6)[1:, ::2].t(),
        "expanded": base[:1].expand(3, 5),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": nn.Parameter(torch.rand(3)),
        "nested": [({"x": (base, 1, None, True, 2**80, 1e300, "ü", b"\x00\xff")},)],
        "names": OrderedDict([(0, "a"), (1, "b")]),
    }
    for new in (True, False):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        own, theirs = read_file(tmp_path / "x.pt"), torch.load(tmp_path / "x.pt", weights_only=True)
        assert list(own) == list(theirs)
        for key, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(own[key], value.detach()) and own[key].dtype == value.dtype, key
                assert own[key].stride() == value.stride(), key
        assert own["nested"][0][0]["x"][1:] == theirs["nested"][0][0]["x"][1:]
        assert own["names"] == {0: "a", 1: "b"}


def test_published_files_are_read_as_torch_reads_them(shared):
    path = shared / "weights/yolov5s_state_dict.pt"
    own, theirs = read_file(path), torch.load(path, weights_only=True)
    assert list(own) == list(theirs) and all(torch.equal(own[key], theirs[key]) for key in theirs)
