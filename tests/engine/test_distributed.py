"""Two gloo processes train and distil as one would."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

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


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run([*launch, str(RANKS), str(folder)], capture_output=True, text=True, timeout=240)
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
