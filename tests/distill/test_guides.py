from __future__ import annotations

import pytest

from distill.guides import OnlineTeacher
from models.families import read_spec
from models.yolo import Model


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_online_teacher_that_has_rested_learns_with_what_it_learnt_with_before(criterion, decay):
    """DDP refuses parameters that ask for a gradient and get none."""
    model = Model(read_spec("yolov8n"), 3)
    teacher = OnlineTeacher(model, criterion, decay)
    before = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    assert not before["model.model.22.dfl.conv.weight"]
    teacher.learn(False)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher.learn(True)
    assert {name: parameter.requires_grad for name, parameter in teacher.named_parameters()} == before
