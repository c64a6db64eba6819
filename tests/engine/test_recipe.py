"""The recipe and the command line: who wins, which methods are used, and how teachers teach."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from engine.options import DistillOptions, Options, distill_options, options_from_file, train_options
from engine.recipe import recipe, whole_run
from utils.errors import UserError
from utils.family import ANCHOR_FREE, ANCHORS
from utils.hyp import read_hyp, write_hyp

MINE = "--data mine.yaml --weights yolov5n.pt"
TAUGHT = f"{MINE} --t_weights t.pt"


def train(line: str) -> Options:
    return train_options(shlex.split(line))


def distill(line: str) -> DistillOptions:
    return distill_options(shlex.split(line))


def refused(line: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe(distill(line))
    return str(caught.value)


def test_what_nobody_says_is_the_familys() -> None:
    for family, expected in ((ANCHORS, ("SGD", 0, 0.05)), (ANCHOR_FREE, ("auto", 10, 7.5))):
        hyp = recipe(train(MINE), family)
        assert (hyp.optimizer, hyp.close_mosaic, hyp.box) == expected
        hyp = recipe(train(f"{MINE} --optimizer MuSGD --close-mosaic 3"), family)
        assert (hyp.optimizer, hyp.close_mosaic) == ("MuSGD", 3)
        assert recipe(train(f"{MINE} --close-mosaic 0 --hyp v26"), family).close_mosaic == 0


def test_the_log_says_which_recipe_nobody_chose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        recipe(train(MINE), ANCHOR_FREE)
    assert "--hyp: v8, the default of models without anchors" in caplog.text
    assert "the last 10 epochs have no mosaics (--close-mosaic 0 keeps them)" in caplog.text


OURS = sorted(path.stem for path in (Path(__file__).parents[2] / "hyp").glob("*.yaml"))


@pytest.mark.parametrize("name", OURS)
def test_every_recipe_of_ours_has_gains_for_every_family(name: str, caplog: pytest.LogCaptureFixture) -> None:
    for family, low, high in ((ANCHORS, 0.01, 0.1), (ANCHOR_FREE, 5, 10)):
        hyp = recipe(train(f"{MINE} --hyp {name}"), family)
        assert low < hyp.box < high
        assert family is ANCHORS or hyp.anchors is None
    written = read_hyp(name)
    assert len(caplog.records) == (0 if written.box is None else 1)  # a file for one kind is for that kind alone


def test_gains_of_the_other_kind_are_left_out_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    hyp = recipe(train(f"{MINE} --hyp objects365"), ANCHOR_FREE)
    assert (hyp.box, hyp.cls, hyp.dfl, hyp.lr0) == (7.5, 0.5, 1.5, 0.00258)
    (record,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert record.getMessage() == (
        "--hyp objects365: box 0.0539 is a gain for models with anchors; this one, without anchors, takes box 7.5, "
        "cls 0.5, dfl 1.5 (--hyp v8 has them)"
    )


def test_gains_beside_no_box_gain_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("cls: 0.8\ndfl: 3")
    hyp = recipe(train(f"{MINE} --hyp finetune {tmp_path / 'mine.yaml'}"), ANCHOR_FREE)
    assert (hyp.box, hyp.cls, hyp.dfl) == (7.5, 0.8, 3)


def test_what_was_settled_stays_as_it_is_when_read_again(tmp_path: Path) -> None:
    for family in (ANCHORS, ANCHOR_FREE):
        hyp = recipe(train(f"{MINE} --hyp voc --close-mosaic 2"), family)
        assert recipe(train(f"{MINE} --hyp {write_hyp(tmp_path / 'hyp.yaml', hyp)}"), family) == hyp


def test_a_run_too_short_for_its_last_part_without_mosaics_has_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert recipe(train(f"{MINE} --epochs 10"), ANCHOR_FREE).close_mosaic == 0
    assert "mosaics until the end: 10 epochs are too few for 10 without" in caplog.text
    assert recipe(train(f"{MINE} --epochs 11"), ANCHOR_FREE).close_mosaic == 10
    assert recipe(train(f"{MINE} --epochs 5 --close-mosaic 5"), ANCHOR_FREE).close_mosaic == 5  # asked for


def test_keys_that_a_head_without_anchors_does_not_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        recipe(train(f"{MINE} --hyp v7-p5 --label-smoothing 0.1"), ANCHOR_FREE)
        assert "obj, loss_ota, label_smoothing: of heads with anchors, not used here" in caplog.text
        caplog.clear()
        recipe(train(f"{MINE} --hyp v7-p5 --label-smoothing 0.1"), ANCHORS)
        recipe(train(MINE), ANCHOR_FREE)
    assert "not used here" not in caplog.text


def test_the_command_line_wins_over_the_recipe() -> None:
    assert recipe(train(MINE)).optimizer == "SGD"
    assert recipe(train(f"{MINE} --hyp finetune")).optimizer == "auto"
    changed = recipe(train(f"{MINE} --hyp finetune --optimizer SGD --label-smoothing 0.1"))
    assert (changed.optimizer, changed.label_smoothing) == ("SGD", 0.1)


BOTH = {"outputs": {"kl": {"temperature": 2.0}}, "features": {"cwd": {"weight": 2.0}}}


def methods(line: str, tmp_path: Path, **written: object) -> tuple[object, object]:
    """Outputs and features of the recipe after the command line had its say."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"lr0": 0.01, **written}))
    hyp = recipe(distill(f"{TAUGHT} --hyp {file} {line}"))
    return hyp.outputs, hyp.features


def test_without_names_the_recipes_methods_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert methods("--d_feature", tmp_path, **BOTH) == (BOTH["outputs"], BOTH["features"])
    assert not caplog.text
    assert methods("", tmp_path, **BOTH) == (BOTH["outputs"], {})
    assert "features of the recipe are not used: cwd" in caplog.text
    assert methods("--d_output --d_feature", tmp_path) == (None, None)  # the defaults
    assert methods("--d_output", tmp_path) == (None, {})


def test_named_methods_keep_the_recipes_options(tmp_path: Path) -> None:
    outputs, features = methods("--d_output bckd kl --d_feature mgd", tmp_path, **BOTH)
    assert outputs == {"bckd": {}, "kl": {"temperature": 2.0}}
    assert features == {"mgd": {}}


def test_a_recipe_without_outputs_distils_features_unasked(tmp_path: Path) -> None:
    assert methods("", tmp_path, outputs={}, features={"cwd": {}}) == ({}, {"cwd": {}})
    assert methods("--d_output none --d_feature mgd", tmp_path) == ({}, {"mgd": {}})
    with pytest.raises(UserError, match="so nothing is left; name a method"):
        methods("--d_output", tmp_path, outputs={})


def test_the_command_lines_methods_survive_the_run_folder(tmp_path: Path) -> None:
    """Resume reads the recipe that was written, and asks the same options again."""
    options = distill(f"{TAUGHT} --d_output kl --d_feature mgd")
    hyp = recipe(options)
    write_hyp(tmp_path / "hyp.yaml", hyp)
    options.save(tmp_path / "opt.yaml")
    again = dataclasses.replace(options_from_file(tmp_path, DistillOptions), hyp=(str(tmp_path / "hyp.yaml"),))
    assert recipe(again) == hyp


def test_later_recipes_override_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("lr0: 0.5\nfeatures: {mgd: {}}\n")
    hyp = recipe(train(f"{MINE} --hyp finetune {tmp_path / 'mine.yaml'}"))
    assert (hyp.lr0, hyp.optimizer, hyp.nominal_batch) == (0.5, "auto", 16)
    assert hyp.features == {"mgd": {}}


def roles(line: str, *recipes: str) -> list[str]:
    found = recipe(distill(f"{MINE} {line}")).teachers
    return [f"{role.kind} {role.weight}" for role in found]


def test_teachers_are_frozen_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    assert roles("--t_weights a.pt b.pt") == ["frozen None"] * 2
    assert roles("--t_cfg yolov5s --t_kind online") == ["online None"]
    assert roles("--t_kind self") == ["self None"]
    (tmp_path / "two.yaml").write_text("teachers: [{kind: self, weight: 0.3}, {weight: 0.7}]")
    assert roles(f"--t_weights a.pt --hyp {tmp_path / 'two.yaml'}") == ["self 0.3", "frozen 0.7"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--t_cfg yolov5s", "--t_cfg yolov5s: a frozen teacher of random weights teaches nothing; give --t_w"),
        ("--t_kind self --t_weights a.pt", '1 teachers on the command line, but the roles are self; "self" needs none'),
        ("--t_kind online", "--t_weights is missing"),
        ("--t_kind online --t_weights a.pt --t_imgsz 640", "--t_imgsz is for frozen teachers"),
        ("--t_kind self --t_device 1", "--t_device is for frozen teachers"),
    ],
)
def test_teachers_and_their_weights_go_together(line: str, message: str) -> None:
    assert message in refused(f"{MINE} {line}")


def test_one_architecture_is_said_of_all_teachers() -> None:
    assert distill(f"{MINE} --t_weights a.pt b.pt --t_cfg yolov5s").teachers() == [
        ("a.pt", "yolov5s"),
        ("b.pt", "yolov5s"),
    ]
    assert distill(f"{MINE} --t_cfg yolov5s yolov5m --t_kind online").teachers() == [("", "yolov5s"), ("", "yolov5m")]


def test_a_recipe_with_phases_is_as_long_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("phases: [{epochs: 3}, {epochs: 4}]")
    line = f"--hyp {tmp_path / 'mine.yaml'}"
    for options, epochs in (
        (distill(f"{TAUGHT} {line}"), 7),
        (distill(f"{TAUGHT} {line} --epochs 20"), 20),
        (train(f"{MINE} {line}"), 100),
    ):
        assert whole_run(options, recipe(options)).epochs == epochs
