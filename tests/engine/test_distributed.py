"""Two gloo processes train and distil as one would."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from losses.build import build_criterion
from models.families import read_spec
from models.yolo import Model
from utils.hyp import Hyp

RANKS = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def ranks() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    specification = importlib.util.spec_from_file_location("ranks", RANKS)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    torch.set_num_threads(1)  # as torchrun does: sums are then taken in the same order
    yield module
    torch.set_num_threads(threads)


def launched(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What comes of two processes of torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*launch, *words], capture_output=True, text=True, timeout=240, env=variables)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    done = launched(str(RANKS), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def mean_difference(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference over all tensors, relative to the largest gradient of each."""
    return max(((ours[k] - other[k]).abs().max() / other[k].abs().max().clamp(min=1e-6)).item() for k in other)


def test_the_gradient_is_the_mean_of_both_halves_and_neither_alone(ranks: ModuleType, seen: list[dict]) -> None:
    alone = []
    for index in range(2):
        task = ranks.distillation()
        alone.append(ranks.gradients(task, task, ranks.half(index)))
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    for rank in range(2):
        assert seen[rank]["halves"].keys() == mean.keys()
        assert mean_difference(seen[rank]["halves"], mean) < 1e-6
        assert mean_difference(seen[rank]["halves"], alone[0]) > 0.1
        assert mean_difference(seen[rank]["halves"], alone[1]) > 0.1


def test_adapters_have_gradients_and_the_teacher_has_none(seen: list[dict]) -> None:
    names = seen[0]["halves"].keys()
    assert any(name.startswith("courses.0.pairs.") for name in names)
    assert all(name.startswith(("model.", "courses.0.pairs.")) for name in names)


def test_the_same_half_on_both_ranks_equals_one_process(ranks: ModuleType, seen: list[dict]) -> None:
    task = ranks.distillation()
    task.train()
    task.at(ranks.Progress(0, 0, 4, 10))
    terms = task(ranks.half(0))
    torch.stack(list(terms.values())).sum().backward()
    for rank in range(2):
        assert seen[rank]["terms"].keys() == terms.keys()
        for name, value in terms.items():
            torch.testing.assert_close(seen[rank]["terms"][name], value.detach(), rtol=1e-6, atol=0)
        one = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
        assert mean_difference(seen[rank]["same"], one) < 1e-6


def test_no_term_of_the_teacher_is_silently_zero(seen: list[dict]) -> None:
    taught = {name: value for name, value in seen[0]["terms"].items() if name.startswith("kd_")}
    assert len(taught) == 4
    assert all(value > 0 for value in taught.values())


def different(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The keys under which two states differ."""
    assert one.keys() == other.keys()
    return {
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    }


def test_after_ten_steps_student_and_adapters_are_equal_on_both_ranks(seen: list[dict]) -> None:
    first, second = (rank["after"] for rank in seen)
    assert any(key.startswith("courses.0.pairs.") for key in first)
    assert different(first, second) == set()


def test_ten_steps_moved_student_and_adapters(ranks: ModuleType, seen: list[dict]) -> None:
    start = ranks.distillation().state_dict()
    moved = different(start, seen[0]["after"])
    assert {key for key in start if key.endswith("weight") and "pairs." in key} <= moved


def test_a_signal_to_one_rank_ends_both_after_the_same_step_and_they_go_on_bit_equally(seen: list[dict]) -> None:
    for rank in seen:
        assert rank["stopped"] == (0, 4)  # batches 3 and 4 are one step
        assert different(rank["went on"], rank["after"]) == set()


def test_a_number_that_is_not_finite_on_one_rank_skips_the_step_on_both(seen: list[dict]) -> None:
    first, second = (rank["poisoned"] for rank in seen)
    assert different(first, second) == set()
    assert all(value.isfinite().all() for value in first.values() if isinstance(value, torch.Tensor))
    assert [rank["poisoned steps"] for rank in seen] == [2, 2]  # of three: batches 1 and 2 came to nothing


# -- validation, and what ranks are not given ------------------------------------------------------------------------


def test_two_ranks_score_what_one_does_to_the_last_digit(ranks: ModuleType, seen: list[dict]) -> None:
    alone = ranks.scores(0, 1)
    first, second = (rank["scores"] for rank in seen)
    assert alone["map"] > 0
    assert len(alone["found"]) > 100
    assert different(first, alone) == set()
    assert different(second, alone) == {"paths", "found"}  # of its own images
    assert (alone["paths"], second["paths"]) == (["0a", "0b", "1a", "1b", "2a", "2b"], ["1a", "1b"])


def test_the_average_and_its_batch_statistics_are_one_when_ranks_validate_it(seen: list[dict]) -> None:
    first, second = (rank["validated"] for rank in seen)
    assert any("running_mean" in key for key in first["average"])
    assert different(first["average"], second["average"]) == set()
    assert first["fitness"] == second["fitness"] > 0


def test_a_rank_without_labels_trains_along(ranks: ModuleType, seen: list[dict]) -> None:
    first, second = (rank["validated"]["task"] for rank in seen)
    assert different(first, second) == set()
    assert different(first, ranks.distillation().state_dict())


@pytest.mark.parametrize("kind", ["anchor", "ota", "two branches"])
@pytest.mark.parametrize("labelled", [True, False])
def test_all_that_learns_has_a_gradient_without_labels(
    kind: str, labelled: bool, ranks: ModuleType, anchor_free_cfg: Callable[..., Path]
) -> None:
    """Else DDP waits for it."""
    free = str(anchor_free_cfg(end2end=True))
    spec = read_spec({"anchor": "yolov5p", "ota": "yolov5p", "two branches": free}[kind])
    model = Model(spec, 2)
    criterion = build_criterion(model.head, Hyp(loss_ota=int(kind == "ota")), (64, 64))
    batch = ranks.half(0)
    batch = batch._replace(targets=batch.targets[:0], labelled=batch.labelled & labelled)
    terms = criterion(model(batch.images), batch)
    sum(terms.values()).backward()
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


# -- ranks that fail --------------------------------------------------------------------------------------------------

FAILING = """
import sys
from utils.errors import UserError, exits_cleanly

@exits_cleanly
def main():
    if sys.argv[1] == "before":
        raise UserError("it is wrong")
    import torch
    from utils import dist
    with dist.group(torch.device("cpu")):
        dist.by_main(lambda: None)
        if dist.rank() == 1 and sys.argv[1] == "alone":
            raise UserError("it is wrong")
        if sys.argv[1] == "first":
            with dist.main_first():
                raise UserError("it is wrong")
        dist.mean(torch.ones(1))
        print("went on", file=sys.stderr)

main()
"""


@pytest.mark.parametrize(
    ("mistake", "told"),
    [("before", ["error: it is wrong"]), ("alone", ["error: rank 1: it is wrong"]), ("first", ["error: it is wrong"])],
)
def test_a_mistake_is_told_once_and_ends_all_ranks_at_once(
    mistake: str, told: list[str], tmp_path: Path, root: Path
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    started = time.monotonic()
    done = launched(str(tmp_path / "failing.py"), mistake, PYTHONPATH=str(root))
    assert time.monotonic() - started < 60  # seconds; the time-out of what they wait in is an hour
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if "it is wrong" in line] == told
    assert "went on" not in done.stderr


# -- a teacher that learns, phases, and weights that find themselves --------------------------------------------------


def test_what_moves_with_the_student_is_equal_on_both_ranks(seen: list[dict]) -> None:
    first, second = (rank["moving"] for rank in seen)
    assert different(first, second) == set()


def test_student_adapters_teacher_its_average_and_balance_have_moved(ranks: ModuleType, seen: list[dict]) -> None:
    after = seen[0]["moving"]
    start = ranks.distillation(**ranks.MOVING).state_dict()
    moved = different(start, after)
    parts = ("model.", "courses.0.pairs.", "courses.0.learner.model.", "courses.0.learner.average.model.")
    for part in parts:
        weights = {key for key in start if key.startswith(part) and key.endswith("weight")}
        assert weights and weights <= moved, part
    learner, average = (
        {key.removeprefix(part): value for key, value in after.items() if key.startswith(part)} for part in parts[2:]
    )
    assert {key for key in learner if key.endswith("weight")} <= different(learner, average)
    assert (after["balance.weights"] != 1).tolist() == [False, False, False, True]  # of the deepest pair alone


def test_compiled_networks_train_alike_and_are_not_compiled_anew_when_an_epoch_wraps_them(seen: list[dict]) -> None:
    for rank in seen:
        assert rank["compiled"].keys() == rank["after"].keys()
        assert all(torch.equal(rank["compiled"][name], value) for name, value in rank["after"].items())
        assert rank["graphs"] == 3  # teacher, student, and the student without one that looks at its layers
