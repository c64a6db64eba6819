"""What the stages of a run hand to each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from data.device_loader import DeviceLoader
from engine import checkpoint
from engine.options import train_options
from engine.run import open_session
from engine.session import Session, freeze, rounded_size
from engine.task import DetectionTask
from models.families import read_spec
from models.yolo import Model
from utils.errors import UserError

NAMES = ("ball", "box")
COMMON = ("--imgsz", 64, "--batch", 4, "--epochs", 1, "--device", "cpu", "--workers", 0, "--amp", "off", "--noplots")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of noise, each with three objects of different shapes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for index in range(6):
        cv2.imwrite(str(folder / f"images/{index}.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        rows = [f"{k % 2} 0.5 0.5 {rng.uniform(0.1, 0.9):.4f} {rng.uniform(0.1, 0.9):.4f}\n" for k in range(3)]
        (folder / f"labels/{index}.txt").write_text("".join(rows))
    content = {"path": str(folder), "train": "images", "val": "images", "names": list(NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three classes whose anchors are its own."""
    model = Model(read_spec("yolov5p"), 3, ("a", "b", "c"))
    model.head.set_anchors_px(model.head.anchors_px + 1)
    return checkpoint.save(tmp_path_factory.mktemp("w") / "own.pt", model, options={}, hyp={}, metrics={}, half=False)


Opens = Callable[..., Session]


@pytest.fixture
def opens(data: Path, tmp_path: Path) -> Iterator[Opens]:
    """Opens a session for a command line, with its data loaded."""
    with ExitStack() as stack:

        def enter(*words: object, source: Path = data, common: bool = True) -> Session[Any]:
            named = ["--data", source, *COMMON] if common else []
            options = train_options([str(word) for word in ("--project", tmp_path, *named, *words)])
            session = stack.enter_context(open_session(options))
            session.load_data(32)
            return session

        yield enter


def recipe(folder: Path, **keys: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def anchors_of(session: Session) -> torch.Tensor:
    return session.student().head.anchors_px


def test_options_recipe_and_origin_are_on_disk_before_the_first_step(opens: Opens) -> None:
    folder = opens("--cfg", "yolov5p", "--seed", 7).folder
    assert yaml.safe_load((folder / "opt.yaml").read_text())["seed"] == 7
    assert yaml.safe_load((folder / "hyp.yaml").read_text())["lr0"] == 0.01
    origin = yaml.safe_load((folder / "environment.yaml").read_text())
    assert {"command", "git_commit", "torch", "device"} <= origin.keys()


def test_every_student_of_a_run_starts_the_same(opens: Opens) -> None:
    session = opens("--cfg", "yolov5p")
    first, torch_draws = session.student(), torch.rand(3)
    assert torch_draws.shape == (3,)
    for one, other in zip(first.state_dict().values(), session.student().state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert first.names == NAMES


def test_a_number_of_anchors_is_estimated_once_and_reaches_every_later_student(opens: Opens, tmp_path: Path) -> None:
    session = opens("--cfg", "yolov5p", "--hyp", recipe(tmp_path, anchors=2.4), "--noautoanchor")
    first = session.student()
    assert first.head.provisional
    session.fit_anchors(first)
    assert first.head.anchors.shape == (3, 2, 2)
    assert torch.equal(anchors_of(session), first.head.anchors_px)
    assert not session.student().head.provisional


def test_a_number_of_anchors_in_a_model_file_is_estimated_too(opens: Opens, tmp_path: Path) -> None:
    content = read_spec("yolov5p").to_dict() | {"anchors": 2}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    session = opens("--cfg", tmp_path / "own.yaml", "--noautoanchor")
    first = session.student()
    session.fit_anchors(first)
    assert session.anchors is not None
    assert torch.equal(anchors_of(session), first.head.anchors_px)


def test_anchors_of_recipe_or_model_file_win_over_the_checkpoints(opens: Opens, weights: Path, tmp_path: Path) -> None:
    published = Model(read_spec("yolov5p"), 1).head.anchors_px
    assert torch.equal(anchors_of(opens("--weights", weights)), published + 1)
    assert torch.equal(anchors_of(opens("--weights", weights, "--cfg", "yolov5p")), published)
    rows = [[10.0, 12, 14, 16], [20, 22, 24, 26], [30, 32, 34, 36]]
    session = opens("--weights", weights, "--hyp", recipe(tmp_path, anchors=rows))
    assert anchors_of(session).flatten(1).tolist() == rows


def test_a_resumed_run_keeps_its_own_anchors_and_one_not_begun_starts_anew(opens: Opens, weights: Path) -> None:
    begun = opens("--weights", weights, "--cfg", "yolov5p")
    student = begun.student()
    begun.fit_anchors(student)
    assert not opens("--resume", begun.folder, common=False).continues()
    assert torch.equal(anchors_of(opens("--resume", begun.folder, common=False)), anchors_of(begun))

    student.head.set_anchors_px(student.head.anchors_px + 2)
    last = begun.folder / "weights" / "last.pt"
    checkpoint.save(last, student, options={}, hyp={}, metrics={}, half=False)
    resumed = opens("--resume", begun.folder, common=False)
    assert resumed.continues()
    own = resumed.student()
    assert torch.equal(own.head.anchors_px, student.head.anchors_px)
    resumed.fit_anchors(own)
    assert torch.equal(own.head.anchors_px, student.head.anchors_px)


def learnt(session: Session) -> Path:
    model = session.student()
    session.fit_anchors(model)
    return session.fit(DetectionTask(model, session.criterion(model))).best


@pytest.mark.parametrize("keys", [{}, {"end2end": True, "reg_max": 1}], ids=["one branch", "two branches"])
def test_a_model_without_anchors_has_its_familys_defaults_and_keeps_them(
    opens: Opens, anchor_free_cfg: Callable[..., Path], keys: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        session = opens("--cfg", anchor_free_cfg(**keys), "--epochs", 2)
    assert "--hyp: v8, the default of models without anchors" in caplog.text
    written = yaml.safe_load((session.folder / "hyp.yaml").read_text())
    assert (written["box"], written["close_mosaic"], written["optimizer"]) == (
        7.5,
        0,
        "auto",
    )  # too short for 10 without mosaics
    assert yaml.safe_load((session.folder / "opt.yaml").read_text())["hyp"] == ["v8"]

    with caplog.at_level(logging.INFO):
        best = learnt(session)
    assert "optimizer auto: AdamW" in caplog.text and "best possible recall" not in caplog.text
    assert yaml.safe_load((session.folder / "opt.yaml").read_text()).get("close_mosaic") is None
    scored, report = session.score(best)
    assert scored.head.nms_free == bool(keys)
    assert report.images == 6
    assert opens("--resume", session.folder, common=False).hyp == session.hyp


def test_weights_without_anchors_have_their_familys_defaults_too(
    opens: Opens, anchor_free_cfg: Callable[..., Path]
) -> None:
    model = Model(read_spec(str(anchor_free_cfg())), 2, NAMES)
    path = anchor_free_cfg().with_name("own.pt")
    checkpoint.save(path, model, options={}, hyp={}, metrics={}, half=False)
    session = opens("--weights", path, "--hyp", "finetune")
    assert (session.hyp.box, session.hyp.optimizer) == (7.5, "auto")
    assert session.criterion(session.student()).gains.box == 7.5
    # a teacher with anchors that learns along has the gains of its own kind
    assert session.criterion(Model(read_spec("yolov5p"), 2)).gains.box == pytest.approx(0.05)
    assert opens("--cfg", "yolov5p", "--hyp", "finetune").hyp.box == 0.05


@pytest.mark.parametrize("flag", ["--noautoanchor", "--anchors auto"])
def test_anchors_are_not_asked_of_a_model_without(
    opens: Opens, anchor_free_cfg: Callable[..., Path], flag: str
) -> None:
    with pytest.raises(UserError, match=f"{flag}: the student's head has no anchors; leave it out"):
        opens("--cfg", anchor_free_cfg(), *flag.split())


def test_classes_without_names_stay_without(opens: Opens, data: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(data.read_text())
    del content["names"]
    (tmp_path / "unnamed.yaml").write_text(yaml.safe_dump(content | {"nc": 2}))
    assert not opens("--cfg", "yolov5p", source=tmp_path / "unnamed.yaml").student().named
    assert opens("--cfg", "yolov5p").student().named


def test_a_single_class_has_one_output(opens: Opens) -> None:
    session = opens("--cfg", "yolov5p", "--single-cls")
    assert session.student().num_classes == 1
    assert session.data.names == ("item",)


def test_other_classes_than_the_checkpoints_are_told(
    opens: Opens, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert opens("--weights", weights).student().num_classes == 2
    assert "because nc 3 != 2" in caplog.text


def test_sync_bn_on_a_cpu_is_one_line(opens: Opens, caplog: pytest.LogCaptureFixture) -> None:
    session = opens("--cfg", "yolov5p", "--sync-bn")
    model = session.student()
    with caplog.at_level(logging.INFO):
        task = session._synchronised(DetectionTask(model, session.criterion(model)))
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in task.modules())
    assert caplog.text.count("--sync-bn: needs several CUDA ranks") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--batch", 64), {"one_shape": True, "graphs": True}),
        (("--batch", 4), {"one_shape": True, "graphs": False}),  # gradients of 16 batches are collected
        (("--batch", 64, "--multi-scale"), {"one_shape": False, "graphs": False}),
        (("--batch", 64, "--rect"), {"one_shape": False, "graphs": False}),
    ],
)
def test_compiled_networks_are_replayed_whole_only_where_each_step_is_like_the_last(
    opens: Opens, monkeypatch: pytest.MonkeyPatch, words: tuple[Any, ...], expected: dict[str, bool]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("engine.run.require_compiler", lambda device: None)
    monkeypatch.setattr("engine.session.compile_networks", lambda *args, **more: asked.append((*args, more)))
    monkeypatch.setattr("engine.session.Trainer.fit", lambda self: self.plan)
    session = opens("--cfg", "yolov5p", "--compile", *words)
    model = session.student()
    plan: Any = session.fit(DetectionTask(model, session.criterion(model)))
    ((networks, one_shape, more),) = asked
    assert networks == [model]
    assert {"one_shape": one_shape, **more} == expected
    assert plan.compile


def test_a_batch_is_shared_evenly_by_all_ranks(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opens("--cfg", "yolov5p")
    monkeypatch.setattr("engine.session.dist.world_size", lambda: 3)
    with pytest.raises(UserError, match="--batch-size 4 is shared by 3 ranks; choose a multiple of 3"):
        session.load_data(32)


def test_a_run_leaves_what_it_promises_and_is_complete(opens: Opens, caplog: pytest.LogCaptureFixture) -> None:
    session = opens("--cfg", "yolov5p", "--imgsz", 64, 32)
    model = session.student()
    outcome = session.fit(DetectionTask(model, session.criterion(model)))
    written = {path.name for path in session.folder.rglob("*")}
    assert {"opt.yaml", "hyp.yaml", "environment.yaml", "results.csv", "best.pt", "last.pt"} <= written
    scored, report = session.score(outcome.best)
    assert scored.names == NAMES
    assert len(report.detections) == 6

    again = opens("--resume", session.folder, common=False)
    model = again.student()
    with caplog.at_level(logging.INFO):
        assert again.fit(DetectionTask(model, again.criterion(model))).epochs_run == 0
    assert "is complete: nothing to resume" in caplog.text


def test_a_run_whose_images_the_device_draws_learns_the_same(opens: Opens) -> None:
    """The device is a CPU here, so that the two kinds of loader are all that differs."""
    batches, losses = [], []
    for place in ("device", "cpu"):
        session = opens("--cfg", "yolov5p", "--cache", "packed", "--augment-on", place, "--epochs", 2)
        assert isinstance(session.loader, DeviceLoader) == (place == "device")
        session.loader.set_epoch(0)
        batches.append(list(session.loader))
        assert learnt(session).is_file()
        rows = np.genfromtxt(session.folder / "results.csv", delimiter=",", names=True)
        losses.append(np.array([rows[name] for name in rows.dtype.names if name.startswith("train")]))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.targets, other.targets)
        assert (one.images.int() - other.images.int()).abs().float().mean() < 1
    assert losses[0].shape == (3, 2)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)


def test_a_recipe_that_the_device_cannot_draw_is_refused_by_its_key(opens: Opens, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--augment-on device: the recipe's paste_in"):
        opens(
            "--cfg", "yolov5p", "--cache", "packed", "--augment-on", "device", "--hyp", recipe(tmp_path, paste_in=0.5)
        )


def test_a_teacher_without_a_description_is_scored_by_its_model_file(opens: Opens, tmp_path: Path) -> None:
    session = opens("--cfg", "yolov5p")
    content = read_spec("yolov5p").to_dict() | {"width_multiple": 0.0625}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(content))
    odd = Model(read_spec(str(tmp_path / "odd.yaml")), 2, NAMES)
    torch.save(odd.state_dict(), tmp_path / "odd.pt")
    with pytest.raises(UserError, match="bare state dict of no model that we know"):
        session.score(tmp_path / "odd.pt")
    assert session.score(tmp_path / "odd.pt", str(tmp_path / "odd.yaml"))[1].images == 6


def test_sizes_are_rounded_up_to_the_stride_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert rounded_size((416, 736), 32) == (416, 736)
        assert caplog.text == ""
        assert rounded_size((400, 730), 64) == (448, 768)
    assert "--imgsz 400 730: rounded up to 448 768, multiples of the stride 64" in caplog.text


def test_only_layers_that_are_there_can_be_frozen() -> None:
    model = Model(read_spec("yolov5p"), 2)
    with pytest.raises(UserError, match=r"--freeze: .*layers 0 to 24"):
        freeze(model, (2, 30))
    freeze(model, (0, 3))
    frozen = {name.split(".")[1] for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {"0", "3"}


def test_a_batch_that_fewer_processes_cannot_share_is_a_mistake_and_at_resume_the_next_smaller(
    opens: Opens, caplog: pytest.LogCaptureFixture
) -> None:
    session = opens("--weights", "", "--cfg", "yolov5p")  # batches of 4
    assert session._shared_batch(2) == 4
    with pytest.raises(UserError, match="--batch-size 4 is shared by 3 ranks; choose a multiple of 3"):
        session._shared_batch(3)
    session.resuming = True
    assert session._shared_batch(3) == session.options.batch_size == 3
    assert "--batch-size 4 cannot be shared by 3 ranks: 3 from here on" in caplog.text
    with pytest.raises(UserError, match="choose a multiple of 8"):
        session._shared_batch(8)
