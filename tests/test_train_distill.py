"""What train_distill.py decides before it trains."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from distill.guides import OnlineTeacher
from engine.callbacks import EpochRecord
from engine.options import DistillOptions
from models.families import read_spec
from models.weights import read_checkpoint
from models.yolo import Model
from train_distill import KeepTeachers, require_same_teachers, settle_anchors, takes_anchors, validate_teacher
from utils.config import write_mapping
from utils.errors import UserError
from utils.hyp import Hyp, TeacherRole
from utils.yaml_file import read_yaml

ROWS = [[12.0, 14, 18, 32, 35, 25], [32, 63, 64, 47, 61, 121], [118, 92, 158, 200, 375, 328]]


def session(cfg: str = "", begun: bool = False, score: float = 0.0, **recipe: Any) -> Any:
    evaluation = SimpleNamespace(map50=score, map=score / 2)
    return SimpleNamespace(
        options=replace(DistillOptions(), cfg=cfg, t_weights=("t.pt",)),
        hyp=Hyp(**recipe),
        anchors=None,
        resuming=begun,
        continues=lambda: begun,
        evaluator=lambda teacher: SimpleNamespace(evaluation=evaluation),
    )


def student(anchors: Any = None) -> Model:
    spec = read_spec("yolov5p")
    return Model(spec if anchors is None else spec.with_anchors(anchors), 2)


@pytest.fixture(scope="module")
def teacher() -> Model:
    return student(ROWS)


def test_the_student_takes_the_teachers_anchors_and_it_is_said(
    teacher: Model, caplog: pytest.LogCaptureFixture
) -> None:
    run = session(cfg="yolov5p")
    with caplog.at_level(logging.INFO):
        assert takes_anchors(run, student(), teacher)
    assert run.anchors == ROWS
    assert "takes the teacher's anchors" in caplog.text


def test_equal_anchors_are_no_news(teacher: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert takes_anchors(session(anchors=ROWS), student(ROWS), teacher)
    assert caplog.text == ""


@pytest.mark.parametrize("anchors", [3.4, [[1, 2, 3, 4, 5, 6]] * 3])
def test_anchors_of_the_recipe_stand(teacher: Model, anchors: Any) -> None:
    run = session(anchors=anchors)
    assert not takes_anchors(run, student(anchors), teacher)
    assert run.anchors is None


def test_anchors_of_the_users_own_model_file_stand_unless_it_leaves_them_open(teacher: Model, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(read_spec("yolov5p").to_dict()))
    assert not takes_anchors(session(cfg=str(path)), student(), teacher)
    assert takes_anchors(session(cfg=str(path)), student(3), teacher)


def test_a_student_that_was_begun_keeps_its_anchors(teacher: Model) -> None:
    assert not takes_anchors(session(begun=True), student(), teacher)


def test_heads_that_differ_in_levels_have_no_common_anchors(teacher: Model) -> None:
    assert not takes_anchors(session(), student(2), teacher)


def test_without_anchors_on_one_side_the_student_keeps_its_own(
    teacher: Model, anchor_free_cfg: Callable[..., Path]
) -> None:
    free = Model(read_spec(str(anchor_free_cfg())), 2)
    for own, other in ((free, teacher), (student(), free), (free, free)):
        assert not takes_anchors(session(), own, other)


def test_a_teacher_with_anchors_that_learns_beside_a_student_without_has_its_own_checked(
    teacher: Model, anchor_free_cfg: Callable[..., Path]
) -> None:
    checked: list[Model] = []
    run = session(teachers=(TeacherRole(kind="online"), TeacherRole(kind="online")))
    run.fit_anchors = checked.append
    free, other = (Model(read_spec(str(anchor_free_cfg())), 2) for _ in range(2))
    settle_anchors(run, free, [teacher, other], use_outputs=True)
    assert checked == [free, teacher]


# -- a run that goes on -----------------------------------------------------------------------------------------------


@pytest.fixture
def going_on(tmp_path: Path) -> Callable[..., Any]:
    """A run in `tmp_path` whose teacher is t.pt there: as it begins, or as it goes on."""
    (tmp_path / "t.pt").write_bytes(b"weights")
    write_mapping(tmp_path / "opt.yaml", {"t_weights": [str(tmp_path / "t.pt")], "epochs": 3})

    def make(resuming: bool = True, named: Path | None = None) -> Any:
        own = options_of(tmp_path, named)
        return SimpleNamespace(folder=tmp_path, options=own, resuming=resuming)

    require_same_teachers(make(resuming=False))
    return make


def options_of(folder: Path, named: Path | None) -> DistillOptions:
    weights = str(named) if named else read_yaml(folder / "opt.yaml")["t_weights"][0]
    explicit = frozenset({"t_weights"} if named else ())
    return replace(DistillOptions(), t_weights=(weights,), explicit=explicit)


def test_what_the_teachers_files_hold_is_written_down(going_on: Callable[..., Any], tmp_path: Path) -> None:
    assert read_yaml(tmp_path / "teachers.yaml") == {"teacher 1": hashlib.sha256(b"weights").hexdigest()}
    require_same_teachers(going_on())


def test_a_teacher_that_has_changed_stops_the_run(going_on: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "t.pt").write_bytes(b"others")
    with pytest.raises(UserError, match=r"teacher .*t\.pt: not what it was .* or say by --t_weights"):
        require_same_teachers(going_on())
    assert read_yaml(tmp_path / "teachers.yaml") == {"teacher 1": hashlib.sha256(b"weights").hexdigest()}


def test_a_teacher_that_is_gone_stops_the_run_and_how_to_name_it_is_said(
    going_on: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "t.pt").unlink()
    with pytest.raises(UserError, match=r"t\.pt.*if it has moved, say where: --t_weights"):
        require_same_teachers(going_on())
    with pytest.raises(UserError) as first:
        require_same_teachers(going_on(resuming=False))
    assert "moved" not in str(first.value)


def test_another_teacher_that_is_named_is_the_runs_from_then_on(
    going_on: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "new.pt").write_bytes(b"others")
    require_same_teachers(going_on(named=tmp_path / "new.pt"))
    assert "another one than so far in this run" in caplog.text
    assert read_yaml(tmp_path / "opt.yaml") == {"t_weights": [str(tmp_path / "new.pt")], "epochs": 3}
    caplog.clear()
    require_same_teachers(going_on())
    assert caplog.text == ""


def test_a_teacher_that_learned_is_written_with_the_last_epoch(tmp_path: Path, teacher: Model) -> None:
    guide = OnlineTeacher.__new__(OnlineTeacher)
    torch.nn.Module.__init__(guide)
    guide.model, guide.average = teacher, None
    run: Any = SimpleNamespace(
        task=SimpleNamespace(courses=[SimpleNamespace(guide=guide, own_term="teacher")]),
        plan=SimpleNamespace(options={}, hyp={}),
        weights=tmp_path,
    )
    keep = KeepTeachers()
    record = EpochRecord(0, 2, {}, None, {}, None, False, 1.0, 1)
    keep.on_epoch_end(run, record)
    assert not (tmp_path / "teacher.pt").exists()
    keep.on_epoch_end(run, replace(record, final=True))
    written = read_checkpoint(tmp_path / "teacher.pt").state
    assert all(torch.equal(written[key], value.half()) for key, value in teacher.state_dict().items() if "bn.w" in key)


def test_a_teacher_that_finds_nothing_is_seen_at_once(teacher: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert validate_teacher(session(score=0.6), "t.pt", teacher, needed=True)
        assert "teacher t.pt: mAP50 0.600, mAP50-95 0.3000 on val" in caplog.text
        assert "next to nothing" not in caplog.text
        assert validate_teacher(session(score=0.001), "t.pt", teacher, needed=True)
    assert "the teacher finds next to nothing here" in caplog.text
