from __future__ import annotations

import copy
import logging
import math

import pytest
import torch

from distill.balance import DynamicWeightAverage
from utils.types import Progress

STEPS = 4


def run(balance, detection, terms, start=0):
    """Epochs in which every step has the given values, one a list entry; the weights seen in each epoch."""
    seen = []
    for offset, (loss, values) in enumerate(zip(detection, terms, strict=True)):
        for step in range(STEPS):
            balance.at(Progress(start + offset, step, 10, STEPS))
            balance.observe({"box": torch.tensor(loss / 2), "obj": torch.tensor(loss / 2)},
                            {name: torch.tensor(value) for name, value in values.items()})  # fmt: skip
        seen.append({name: balance.weight(name).item() for name in balance.names})
    return seen


def test_weights_are_the_papers_formula():
    balance = DynamicWeightAverage(["kl", "cwd"], temperature=2.0, momentum=0.0)
    detection = [1.0, 0.5, 0.4]
    terms = [{"kl": 1.0, "cwd": 3.0}, {"kl": 0.9, "cwd": 1.0}, {"kl": 0.9, "cwd": 1.0}]
    seen = run(balance, [*detection, 0.4], [*terms, terms[-1]])
    assert seen[0] == seen[1] == {"kl": 1.0, "cwd": 1.0}
    for name in ("kl", "cwd"):
        rate, base = terms[1][name] / terms[0][name], detection[1] / detection[0]
        assert seen[2][name] == pytest.approx(math.exp(rate / 2) / math.exp(base / 2), rel=1e-5)
        rate, base = terms[2][name] / terms[1][name], detection[2] / detection[1]
        assert seen[3][name] == pytest.approx(math.exp(rate / 2) / math.exp(base / 2), rel=1e-5)


def test_a_term_that_falls_more_slowly_counts_more():
    seen = run(DynamicWeightAverage(["slow", "fast"]), [1.0, 0.5, 0.5], [{"slow": 1.0, "fast": 1.0},
               {"slow": 0.9, "fast": 0.1}, {"slow": 0.9, "fast": 0.1}])  # fmt: skip
    assert seen[2]["slow"] > 1 > seen[2]["fast"]


def test_momentum_keeps_most_of_the_old_weight():
    epochs = [1.0, 1.0, 1.0], [{"kl": 1.0}, {"kl": 3.0}, {"kl": 3.0}]
    quick, slow = (run(DynamicWeightAverage(["kl"], 5.0, momentum), *epochs)[2]["kl"] for momentum in (0.0, 0.9))
    assert slow - 1 == pytest.approx(0.1 * (quick - 1), rel=1e-4)


def test_a_silent_term_keeps_its_weight():
    seen = run(DynamicWeightAverage(["kl", "cwd"]), [1.0, 0.9, 0.8], [{"kl": 1.0}, {"kl": 0.5}, {"kl": 0.5}])
    assert seen[2]["cwd"] == 1.0
    assert seen[2]["kl"] != 1.0


def test_asking_again_at_the_same_step_changes_nothing():
    balance = DynamicWeightAverage(["kl"])
    run(balance, [1.0, 0.5], [{"kl": 1.0}, {"kl": 0.9}])
    for _ in range(3):
        balance.at(Progress(2, 0, 10, STEPS))
    once = balance.weight("kl").item()
    balance.at(Progress(2, 0, 10, STEPS))
    assert balance.weight("kl").item() == once != 1


def test_a_resumed_run_has_the_same_weights():
    detection = [1.0, 0.7, 0.5, 0.45, 0.4]
    terms = [{"kl": value} for value in (2.0, 1.8, 1.1, 0.9, 0.5)]
    whole = run(DynamicWeightAverage(["kl"]), detection, terms)
    first, second = DynamicWeightAverage(["kl"]), DynamicWeightAverage(["kl"])
    run(first, detection[:3], terms[:3])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert run(second, detection[3:], terms[3:], start=3) == whole[3:]


def test_weights_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        run(DynamicWeightAverage(["kd_kl"]), [1.0, 0.5, 0.5], [{"kd_kl": 1.0}] * 3)
    assert "balance: kd_kl 1." in caplog.text
