"""--batch-size -1: what fits is found, and finding it leaves no trace."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import train
import train_distill
from data.loader import train_loader
from data.spec import read_data
from engine import auto_batch, checkpoint
from engine.auto_batch import SEEN, Line, batch_like, fitted, in_equal_parts, measured, settle_batch
from engine.options import train_options
from engine.run import open_session
from engine.task import DetectionTask
from models.families import read_spec
from models.yolo import Model
from utils import dist
from utils.errors import UserError
from utils.hyp import Hyp

SHORT = ("--imgsz", 64, "--epochs", 2, "--device", "cpu", "--workers", 0, "--amp", "off", "--noplots")
GB = 1e9


class Machine:
    """Steps and the memory that they take, without either."""

    def __init__(self, free: float, base: float = 0.0, image: float = 0.0, spare: float = 0.0) -> None:
        self.free = free
        self.base = base
        self.image = image
        self.spare = spare  # that the process has already
        self.made: list[int] = []

    def step(self, images: int) -> None:
        self.made.append(images)
        if self.base + self.image * images > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def forget(self) -> None: ...

    def peak(self) -> float:
        return max(0.0, self.base + self.image * self.made[-1] - self.spare)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of noise with 1, 2, 3 ... 12 boxes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index in range(12):
        cv2.imwrite(str(folder / f"images/{index}.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        rows = [f"{k % 2} 0.5 0.5 {w:.4f} {h:.4f}\n" for k, (w, h) in enumerate(rng.uniform(0.1, 0.9, (index + 1, 2)))]
        (folder / f"labels/{index}.txt").write_text("".join(rows))
    content = {"path": str(folder), "train": "images", "val": "images", "names": ["ball", "box"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Model(read_spec("yolov5n"), 2, ("ball", "box"))
    return checkpoint.save(tmp_path_factory.mktemp("w") / "t.pt", model, options={}, hyp={}, metrics={}, half=True)


def words(data: Path, project: Path, *more: object) -> list[str]:
    return [str(word) for word in ("--data", data, "--cfg", "yolov5p", "--project", project, *SHORT, *more)]


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_what_a_line_says_fits_does_and_one_more_does_not() -> None:
    line = Line(base=2 * GB, image=0.3 * GB)
    fits = line.images(8 * GB)
    assert line.base + fits * line.image <= 8 * GB < line.base + (fits + 1) * line.image
    assert line.images(1 * GB) == 0


@pytest.mark.parametrize("count", [2, 4])
def test_the_line_is_that_of_the_steps(count: int) -> None:
    machine = Machine(80 * GB, 2 * GB, 0.3 * GB)
    found = measured(machine.step, machine, 1, 64, count)
    assert [images for images, _ in found] == [2, 4, 8, 16][:count]
    assert fitted(found) == pytest.approx((2 * GB, 0.3 * GB))


def test_memory_that_the_process_has_to_spare_hides_nothing() -> None:
    machine = Machine(80 * GB, 0.1 * GB, 0.3 * GB, spare=2.5 * GB)
    found = measured(machine.step, machine, 1, 64, 2)
    assert [images for images, _ in found] == [2, 4, 8, 16, 32]
    line = fitted(found)
    assert line.image == pytest.approx(0.3 * GB)
    assert line.images(10 * GB) <= 41  # so many fit beside what is there


def test_where_nothing_is_ever_seen_the_largest_batch_was_tried() -> None:
    machine = Machine(80 * GB, 0.0, SEEN / 100)
    found = measured(machine.step, machine, 1, 48, 2)
    assert machine.made == [2, 2, 4, 8, 16, 32, 48]
    assert fitted(found).images(80 * GB) >= 48


def test_steps_that_do_not_fit_end_the_search_and_are_never_taken() -> None:
    machine = Machine(4 * GB, 1 * GB, 0.5 * GB)
    found = measured(machine.step, machine, 1, 64, 4)
    assert machine.made == [2, 2, 4, 8]
    assert fitted(found).images(0.8 * machine.free) == 4
    assert fitted(found[:1]).images(0.8 * machine.free) == 3  # too few rather than too many
    assert fitted([]).images(machine.free) == 0


def test_where_two_images_do_not_fit_one_may() -> None:
    machine = Machine(2 * GB, 0.5 * GB, 1 * GB)
    found = measured(machine.step, machine, 1, 64, 4)
    assert machine.made == [2, 1, 1, 2]
    assert found == [(1, pytest.approx(1.5 * GB))]
    assert fitted(found).images(0.8 * machine.free) == 1


def test_a_mistake_in_a_step_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(_: int) -> None:
        raise RuntimeError("shape '[3]' is invalid")

    with pytest.raises(RuntimeError, match="shape"):
        measured(broken, Machine(GB), 1, 64, 2)


@pytest.mark.parametrize(
    ("fits", "unit", "expected"),
    [(64, 1, 64), (63, 1, 32), (43, 1, 32), (31, 1, 21), (20, 1, 16), (1, 1, 1), (90, 1, 90), (50, 3, 30), (2, 4, 4)],
)
def test_the_batch_makes_up_the_nominal_one_in_equal_parts(fits: int, unit: int, expected: int) -> None:
    assert in_equal_parts(fits, 64, unit) == expected


def test_a_batch_has_the_labels_of_as_many_images_as_its_samples_show(data: Path) -> None:
    labels = train_loader(
        read_data(str(data)), Hyp(), image_size=(64, 64), batch_size=2, stride=32, seed=0
    ).dataset.labels
    batch = batch_like(labels, 40, 2, (64, 96), 4, np.random.default_rng(0))
    assert batch.images.shape == (40, 3, 128, 192) and batch.images.dtype == torch.uint8
    assert batch.targets.dtype == torch.float32 and batch.labelled.all()
    assert set(batch.targets[:, 0].tolist()) == set(range(40))
    mean_boxes = 6.5
    assert len(batch.targets) / 40 == pytest.approx(16 * mean_boxes, rel=0.1)


# -- of a run ---------------------------------------------------------------------------------------------------------


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("script", ["train", "train_distill"])
def test_the_batch_that_is_found_trains_as_if_it_had_been_named(
    script: str, data: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So no weight, batch statistic, average or chance was moved by finding it."""
    main: Callable[[Any], None] = {"train": train.main, "train_distill": train_distill.main}[script]
    taught = ["--t_weights", teacher, "--d_feature"] if script == "train_distill" else []
    with caplog.at_level("INFO"):
        main(words(data, tmp_path / "found", "--batch-size", -1, "--epochs", 1, *taught))
    assert "--batch-size -1: 10 (" in caplog.text  # all 12 images fit, and 10 are a part of the nominal batch
    stored = yaml.safe_load((tmp_path / "found/exp/opt.yaml").read_text())
    assert stored["batch_size"] == 10
    main(words(data, tmp_path / "named", "--batch-size", 10, "--epochs", 1, *taught))
    assert results(tmp_path / "found/exp") == results(tmp_path / "named/exp")
    assert len(results(tmp_path / "named/exp")) == 1


@pytest.mark.parametrize("more", [(), ("--rect",), ("--quad",), ("--multi-scale",), ("--image-weights",)])
def test_finding_it_leaves_the_task_and_chance_as_they_were(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    machine = Machine(1.06 * GB, 0.1 * GB, 0.1 * GB)
    monkeypatch.setattr(auto_batch, "memory_of", lambda device: machine)
    monkeypatch.setattr(machine, "peak", lambda: machine.base + machine.image * len(made[-1].images))
    made: list[Any] = []
    forward = DetectionTask.forward
    monkeypatch.setattr(DetectionTask, "forward", lambda self, batch: made.append(batch) or forward(self, batch))
    with open_session(train_options(words(data, tmp_path, "--batch-size", -1, *more))) as session:
        model = session.student()
        session.load_data(model.stride)
        task = DetectionTask(model, session.criterion(model))
        before = {key: value.clone() for key, value in task.state_dict().items()}
        chance = torch.get_rng_state()
        session.settle_batch(task)
        # 0.85 GB are 7 images, and 6 are a part of the nominal 64; with --quad all 12 fit, and 8 are such a part
        assert session.options.batch_size == (8 if "--quad" in more else 6)
        assert sum(len(keys) for keys in session.loader.sampler) == 12
        assert max(len(keys) for keys in session.loader.sampler) == session.options.batch_size
    assert torch.equal(torch.get_rng_state(), chance)
    for key, value in task.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in task.parameters())
    side = {"--quad": 128, "--multi-scale": 96}.get(more[0] if more else "", 64)
    assert {tuple(batch.images.shape[2:]) for batch in made} == {(side, side)}


def settled(data: Path, project: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine | None, *more: object) -> int:
    """What is found, without a step being made."""
    monkeypatch.setattr(auto_batch, "memory_of", lambda device: machine)
    monkeypatch.setattr(auto_batch, "Rehearsal", lambda *_: step)

    def step(images: int) -> None:
        assert machine is not None
        machine.step(images)

    step.size = (64, 64)  # type: ignore[attr-defined]
    with open_session(train_options(words(data, project, "--batch-size", -1, *more))) as session:
        session.load_data(32)
        monkeypatch.setattr("data.dataset.LabelledImages.__len__", lambda self: 1000)
        return settle_batch(session, torch.nn.Linear(1, 1))


def test_no_more_than_the_nominal_batch_is_taken(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(data, tmp_path, monkeypatch, Machine(800 * GB, GB, GB / 10)) == 64


@pytest.mark.parametrize(("ranks", "least", "expected"), [(2, 12, 20), (8, 20, 128), (3, 7, 15)])
def test_all_ranks_take_what_the_smallest_can(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, least: int, expected: int
) -> None:
    """8 ranks may have 16 images each, though the nominal batch is 64."""
    monkeypatch.setattr(dist, "world_size", lambda: ranks)
    asked: list[int] = []
    monkeypatch.setattr(dist, "smallest", lambda number: asked.append(number) or min(number, least))
    with_room = Machine(800 * GB, GB, GB / 10)
    assert settled(data, tmp_path, monkeypatch, with_room) == expected
    assert asked == [max(64, 16 * ranks) // ranks]


def test_what_does_not_fit_at_all_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--batch-size -1: 1 of 64 x 64 pixels do not fit into the 1.0 GB that"):
        settled(data, tmp_path, monkeypatch, Machine(GB, 3 * GB, GB))
    with pytest.raises(UserError, match="this system does not say how much memory is free; name a number"):
        settled(data, tmp_path, monkeypatch, None)
    assert not list(tmp_path.iterdir())
