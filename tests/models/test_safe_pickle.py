"""Nothing of a file is run, and what cannot be read is told in one line."""

from __future__ import annotations

import argparse
import os
import pathlib
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from models.safe_pickle import StandIn, module_tensors, read_file
from models.weights import read_checkpoint
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


HOSTILE = ["posix.system", "builtins.eval", "builtins.exec", "builtins.getattr", "io.open"]


@pytest.mark.skipif(os.name != "posix", reason="the names of system calls are those of posix")
@pytest.mark.parametrize("kind", [*HOSTILE, "torch.hub.load"])
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(kind, trap, tmp_path):
    path = tmp_path / "yolov5s.pt"
    torch.save({"model": hostile(kind, trap), "epoch": 3}, path)
    with pytest.raises(UserError, match=rf"yolov5s.pt refers to {kind}; it was not loaded"):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.skipif(os.name != "posix", reason="the names of system calls are those of posix")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_without_zip_is_refused_too(kind, trap, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"model": hostile(kind, trap)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=rf"old.pt refers to {kind.removeprefix('builtins.')}; it was not loaded"):
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
