"""The benchmark of steps makes the trainer's own steps, and its tables are the medians of its rounds."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks import steps
from benchmarks.memory import resident
from benchmarks.peers import Peer
from benchmarks.step import Job, Parts, Step, first_batch, larger
from benchmarks.step_memory import Peaks
from benchmarks.step_peers import COMMON, SNIPPETS, publisher, wishes
from benchmarks.step_tables import Row, memory_table, parts_table, speed_table
from data.spec import read_data
from utils.errors import UserError

TINY = "yolov5p"  # of the demo
PEER = """
kept = {}

class Average:
    def update(self, model):
        pass

def make(name, classes, device, size):
    def loss(prediction, images, targets):
        kept.update(targets=targets.tolist(), brightest=images.max().item())
        return prediction.square().mean()
    return torch.nn.Conv2d(3, classes, 1), loss, Average()

def seen():
    return kept
"""


def draw(folder: Path) -> Path:
    """A coloured rectangle an image; gives the YAML file of the data set."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index in range(4):
        image = rng.integers(0, 80, (64, 64, 3)).astype(np.uint8)
        image[16:48, 16:40] = (60, 60, 255) if index % 2 else (60, 255, 60)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        (folder / "labels" / f"{index}.txt").write_text(f"{index % 2} 0.4375 0.5 0.375 0.5\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [red, green]\n")
    return file


def words(data: Path, *more: str) -> list[str]:
    given = ["--data", data, "--models", TINY, "--teacher", TINY, "--imgsz", 64, "--batch-size", 2, "--rounds", 1]
    return [str(word) for word in (*given, "--device", "cpu", *more)]


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of the table that begins with this head."""
    after = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [re.split(r" *\| *", line)[1:-1] for line in after]


def job(tmp_path: Path, name: str = TINY) -> tuple[Job, Any, Any]:
    options = steps.parser().parse_args(words(draw(tmp_path / "data")))
    data = read_data(options.data)
    made = Job(name, 2, options, torch.device("cpu"), torch.bfloat16, tmp_path)
    return made, data, first_batch(data, 2, 64)


def parts(step: float) -> Parts:
    return Parts(step, 0.0, step / 4, step / 8, step / 2, step / 16, step / 16)


def row(**seconds: list[float]) -> Row:
    """Names with underscores for blanks."""
    bare = seconds.pop("bare", [0.1])
    made = Job("yolov5n", 8, argparse.Namespace(teacher=""), torch.device("cpu"), None, Path())
    found = {name.replace("_", " "): [parts(one) for one in values] for name, values in seconds.items()}
    return Row(made, found, bare, "yolov5" if "yolov5" in seconds else "")


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_overhead_is_the_step_over_student_and_bare_teacher() -> None:
    one = row(ours=[0.3, 0.2, 9.0], with_teacher=[0.44, 0.1, 0.5], bare=[0.1, 5.0, 0.01])
    assert one.overhead == pytest.approx(0.44 / (0.3 + 0.1))


def test_ratios_are_the_peers_median_over_ours() -> None:
    one = row(ours=[0.2, 0.1, 0.3], float32=[0.4, 0.4, 9.0], with_teacher=[0.4], yolov5=[0.6, 0.5, 0.7])
    (found,) = cells(speed_table([one]), "model")
    assert found == ["yolov5n", "8", "200.0", "400.0", "2.00", "yolov5", "600.0", "3.00", "1.50"]


def test_without_a_peer_its_columns_are_empty() -> None:
    (found,) = cells(speed_table([row(ours=[0.2], with_teacher=[0.4])]), "model")
    assert found == ["yolov5n", "8", "200.0", "200.0", "1.00", "-", "-", "-", "-"]


def test_parts_are_medians_of_each_in_milliseconds() -> None:
    found = cells(parts_table([row(ours=[0.1, 0.3, 0.2], with_teacher=[0.4])]), "model")
    assert found[0] == ["yolov5n", "8", "ours", "200.0", "0.0", "50.0", "25.0", "100.0", "12.5", "12.5"]
    assert found[1][:4] == ["yolov5n", "8", "with teacher", "400.0"]


def test_memory_is_told_in_megabytes_beside_the_peers() -> None:
    made = Job("yolov5n", 8, argparse.Namespace(teacher=""), torch.device("cpu"), None, Path())
    with_peer, without = cells(memory_table([Peaks(made, 2e8, 3e8, 5e8), Peaks(made, 2e8, 3e8, None)]), "student")
    assert with_peer == ["yolov5n", "yolov5s", "8", "200", "300", "500", "2.50"]
    assert without[-2:] == ["-", "-"]


def test_the_teacher_is_one_size_larger() -> None:
    pairs = {"yolov5n": "yolov5s", "yolov8m": "yolov8l", "yolov9t": "yolov9s", "yolo11l": "yolo11x"}
    assert {name: larger(name) for name in pairs} == pairs
    with pytest.raises(UserError, match=r"^--models: no size above 'yolov5x' is known; name the teacher"):
        larger("yolov5x")


def test_every_model_has_the_peer_that_publishes_it() -> None:
    both = ["yolov5", "ultralytics"]
    found = [publisher(name, both) for name in ("yolov5n", "yolov8s", "yolo26n", "yolov7-tiny", TINY)]
    assert found == ["yolov5", "ultralytics", "ultralytics", "", ""]
    assert publisher("yolov8s", ["yolov5"]) == ""


# -- steps -------------------------------------------------------------------------------------------------------------


def test_a_step_is_the_trainers_and_its_parts_add_up(tmp_path: Path) -> None:
    made, data, batch = job(tmp_path)
    step = Step(made, batch, data, "", torch.bfloat16)
    before = {name: value.clone() for name, value in step.trainer.task.model.state_dict().items()}
    first, second = step(), step()
    after = step.trainer.task.model.state_dict()
    assert step.trainer.stepper.count == 2
    assert step.trainer.ema.average.updates == 2
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    for one in (first, second):
        assert one.teacher == 0.0
        assert all(value > 0 for name, value in one._asdict().items() if name != "teacher")
        assert 0.8 * one.step < sum(one[1:]) <= one.step


def test_a_step_with_a_teacher_runs_it_once_and_asks_it_alone_for_the_same(tmp_path: Path) -> None:
    made, data, batch = job(tmp_path)
    step = Step(made, batch, data, TINY, torch.bfloat16)
    counted: list[Any] = []
    step.guide.register_forward_hook(lambda _module, args, _output: counted.append(args))
    found = step()
    assert len(counted) == 1
    assert 0 < found.teacher < found.step
    assert 0.8 * found.step < sum(found[1:]) <= found.step
    assert step.teach() > 0
    alone, within = counted[1], counted[0]
    assert alone[0] is within[0]
    assert alone[1:] == within[1:]


def test_the_peak_of_a_process_is_not_below_what_it_has() -> None:
    assert resident(peak=True) >= resident() > 1e6


def test_a_peer_is_asked_for_the_same_parts_on_the_same_batch(tmp_path: Path) -> None:
    made, data, batch = job(tmp_path)
    with Peer("yolov5", sys.executable, COMMON + PEER) as peer:
        peer.ask("prepare", **wishes(made, batch, data))
        found = Parts(**peer.ask("step"))
        assert sum(found[1:]) == pytest.approx(found.step)
        assert found.teacher == 0.0
        assert peer.ask("seen") == {"targets": batch.targets.tolist(), "brightest": batch.images.max().item() / 255}
        assert peer.ask("peak", count=2, **wishes(made, batch, data)) >= 0


@pytest.mark.parametrize("name", sorted(SNIPPETS))
def test_what_a_peer_runs_is_python_that_makes_a_model(name: str) -> None:
    tree = ast.parse(SNIPPETS[name])
    functions = {
        node.name: [one.arg for one in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    assert functions["make"] == ["name", "classes", "device", "size"]
    assert {"prepare", "step", "peak"} <= set(functions)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_tiny_run_prints_every_table(tmp_path: Path, capsys: Any) -> None:
    steps.main(words(draw(tmp_path / "data"), "--amp", "bf16"))
    text = capsys.readouterr().out
    assert "Not given by --peer, so not measured: ultralytics, yolov5." in text
    assert str(tmp_path) not in text
    assert [line[:3] for line in cells(text, "student | teacher | batch | student alone | teacher alone")] == [
        [TINY, TINY, "2"]
    ]
    assert [line[2] for line in cells(text, "model | batch | whose")] == ["ours", "with teacher", "float32"]
    (memory,) = cells(text, "student | teacher | batch | student alone | with teacher")
    assert all(float(value) > 0 for value in memory[3:5])


def test_a_peer_without_its_package_is_one_line(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        steps.main(words(draw(tmp_path / "data"), "--peer", f"yolov5={tmp_path / 'none'}"))
    assert left.value.code == 2
    assert re.fullmatch(r"error: --peer yolov5=\S+: No such file or directory; [^\n]+\n", capsys.readouterr().err)
