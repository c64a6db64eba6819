from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from distill.task import build_distillation
from utils.errors import UserError
from utils.hyp import Hyp, Schedule
from utils.types import Progress

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def task_of(detector, criterion, gains):
    def make(use_outputs=True, use_features=True, student=None, teacher=None, dtype=None, **recipe):
        student = student or detector(4, names=NAMES)
        teacher = teacher or detector(6, names=NAMES)
        return build_distillation(
            student,
            criterion,
            teacher,
            Hyp(**recipe),
            use_outputs=use_outputs,
            use_features=use_features,
            gains=gains,
            teacher_dtype=dtype,
        )

    return make


def passes(task):
    """How many layers each pass of the teacher ran."""
    return task.teacher.model.calls


def test_every_term_is_named_weighted_and_not_zero(task_of, draw_batch):
    recipe = {
        "outputs": {"objectness_scaled": {"weight": 10.0}, "kl": {}},
        "features": {"cwd": {"temperature": 2.0}, "mimic": {"weight": 0.5}},
    }
    task, batch = task_of(**recipe), draw_batch()
    terms = task(batch)
    names = [f"kd_{method}_layer{layer}" for method in ("cwd", "mimic") for layer in (1, 2, 3)]
    assert list(terms) == ["box", "kd_objectness_scaled", "kd_kl", *names]
    assert task.term_names == tuple(terms)[1:]
    assert all(value.item() > 0 and value.shape == () and value.dtype == torch.float32 for value in terms.values())
    assert task.pairs[0].loss.temperature == 2.0

    heavier = task_of(**{key: {name: dict(options, weight=1.0) for name, options in methods.items()}
                         for key, methods in recipe.items()})  # fmt: skip
    heavier.load_state_dict(task.state_dict())
    heavier._guides = task._guides
    plain = heavier(batch)
    assert terms["kd_objectness_scaled"].item() == pytest.approx(10 * plain["kd_objectness_scaled"].item(), rel=1e-4)
    assert terms["kd_mimic_layer2"].item() == pytest.approx(0.5 * plain["kd_mimic_layer2"].item(), rel=1e-4)


def test_the_teacher_is_in_no_list(task_of):
    task = task_of(use_features=True, outputs={"objectness_scaled": {}, "kl": {}})
    hidden = {id(tensor) for tensor in (*task.teacher.parameters(), *task.teacher.buffers())}
    hidden |= {tensor.data_ptr() for tensor in task.teacher.parameters()}
    for tensor in (*task.parameters(), *task.buffers(), *task.state_dict(keep_vars=True).values()):
        assert id(tensor) not in hidden
        assert tensor.data_ptr() not in hidden
    assert not {id(module) for module in task.teacher.modules()} & {id(module) for module in task.modules()}
    assert {key.split(".")[0] for key in task.state_dict()} == {"model", "pairs"}
    own = [key.removeprefix("model.") for key in task.state_dict() if key.startswith("model.")]
    assert own == list(task.model.state_dict())


def test_training_mode_reaches_student_and_adapters_but_not_the_teacher(task_of, draw_batch):
    task = task_of()
    before = copy.deepcopy(task.teacher.state_dict())
    task.train()
    sum(task(draw_batch()).values()).backward()
    assert task.model.training
    assert task.pairs.training
    assert not any(module.training for module in task.teacher.modules())
    for name, value in task.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


def test_student_and_adapters_learn(task_of, draw_batch):
    task = task_of()
    sum(task(draw_batch()).values()).backward()
    for name, parameter in task.named_parameters():
        if not name.startswith("model.layers.0.0.bias"):
            assert parameter.grad is not None, name
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.pairs.parameters())
    assert len(list(task.pairs.parameters())) == 3


def test_teacher_and_student_see_the_very_same_tensor(task_of, draw_batch):
    """And so the same augmentation and size: nothing is resized or drawn again for one of them."""
    task, batch, seen = task_of(), draw_batch(), []
    for model in (task.model, task.teacher.model):
        model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    task(batch)
    assert [images.data_ptr() for images in seen] == [batch.images.data_ptr()] * 2


def test_nothing_of_a_task_keeps_a_saved_student_from_being_plain(task_of, draw_batch):
    """No hooks and no teacher hang on the student: what is saved of it needs no code to be read."""
    task = task_of()
    sum(task(draw_batch()).values()).backward()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.modules())
    held = {type(value) for value in vars(task.model).values()}
    assert not any(issubclass(kind, nn.Module) for kind in held)
    assert all(isinstance(value, torch.Tensor) for value in copy.deepcopy(task).state_dict().values())


def test_outputs_only_has_no_adapters(task_of, draw_batch):
    task = task_of(use_features=False)
    assert list(task(draw_batch())) == ["box", "kd_objectness_scaled"]
    assert not list(task.pairs.parameters())
    assert passes(task) == [5]


def test_features_only_does_not_run_the_teachers_head(task_of, draw_batch):
    task = task_of(outputs={}, student_kd_layers=(1, 2), teacher_kd_layers=(1, 2))
    assert list(task(draw_batch())) == ["box", "kd_cwd_layer1", "kd_cwd_layer2"]
    assert passes(task) == [3]


def test_off_at_the_end_the_teacher_is_not_run_and_the_terms_stay(task_of, draw_batch):
    task, batch = task_of(schedule=Schedule("cosine", 0.1, off_epochs=2)), draw_batch()
    task.at(Progress(7, 0, 10, 4))
    on = task(batch)
    runs = len(passes(task))
    assert runs == 1
    task.at(Progress(8, 0, 10, 4))
    off = task(batch)
    assert len(passes(task)) == runs
    assert list(off) == list(on)
    assert all(off[name].item() == 0 for name in task.term_names)
    assert all(value.dtype == torch.float32 and value.shape == () for value in off.values())
    torch.stack(list(off.values())).sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in task.pairs.parameters())
    assert all(parameter.requires_grad for parameter in task.model.parameters())


def test_at_is_pure_in_progress(task_of, draw_batch):
    task, batch = task_of(schedule=Schedule("linear", 0.0, off_epochs=1)), draw_batch()
    task.at(Progress(5, 0, 10, 4))
    before = task(batch)
    task.at(Progress(9, 3, 10, 4))
    task.at(Progress(5, 0, 10, 4))
    for name, value in task(batch).items():
        torch.testing.assert_close(value, before[name])
    assert all(parameter.requires_grad for parameter in task.pairs.parameters())


def test_the_schedule_weighs_every_imitation_term_and_no_other(task_of, draw_batch):
    task, batch = task_of(schedule=Schedule("linear", 0.0)), draw_batch()
    task.at(Progress(0, 0, 10, 4))
    full = task(batch)
    task.at(Progress(5, 0, 10, 4))
    for name, value in task(batch).items():
        torch.testing.assert_close(value, full[name] * (0.5 if name in task.term_names else 1.0))


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_under_ddp_terms_and_gradients_are_the_same_and_the_teacher_may_leave(task_of, draw_batch, one_rank):
    task, batch = task_of(schedule=Schedule("constant", off_epochs=1)), draw_batch()
    task.at(Progress(0, 0, 2, 1))
    plain = task(batch)
    sum(plain.values()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}
    task.zero_grad(set_to_none=True)

    wrapped = nn.parallel.DistributedDataParallel(task)
    for _ in range(2):  # the second forward is the one that complains of parameters without gradient
        task.zero_grad(set_to_none=True)
        terms = wrapped(batch)
        sum(terms.values()).backward()
    assert all(terms[name].item() > 0 for name in task.term_names)
    for name, value in terms.items():
        torch.testing.assert_close(value, plain[name])
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])

    task.at(Progress(1, 0, 2, 1))
    wrapped = nn.parallel.DistributedDataParallel(task)
    for _ in range(2):
        sum(wrapped(batch).values()).backward()


def test_a_teacher_like_the_student_leaves_nothing_to_imitate(task_of, detector, draw_batch):
    student = detector(4, names=NAMES).eval()
    task = task_of(student=student, teacher=student, outputs={"objectness_scaled": {}, "kl": {}},
                   features={"cwd": {}, "mimic": {}})  # fmt: skip
    for pair in task.pairs:
        nn.init.dirac_(pair.adapter.weight)
    terms = task(draw_batch())
    for name in task.term_names:
        assert terms[name].item() == pytest.approx(0, abs=1e-6), name


def test_everything_is_float32_beside_a_half_precision_teacher(task_of, draw_batch):
    task = task_of(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = task(draw_batch())
    sum(terms.values()).backward()
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.grad is not None)


def test_an_unlabelled_empty_batch_is_finite(task_of, draw_batch):
    batch = draw_batch(empty=True)
    assert all(value.isfinite() for value in task_of()(batch._replace(labelled=~batch.labelled)).values())


def test_the_state_can_be_resumed(task_of, draw_batch, detector):
    teacher = detector(6, names=NAMES)
    first, second = task_of(teacher=teacher), task_of(teacher=teacher)
    batch = draw_batch()
    first(batch)
    second.load_state_dict(first.state_dict())
    for name, value in first(batch).items():
        assert torch.equal(value, second(batch)[name]), name


def test_models_of_other_channels_levels_and_classes_meet(task_of, detector, draw_batch, caplog):
    student = detector(4, num_classes=2, strides=(8, 16, 32), names=["Dog", "helmet"])
    teacher = detector(6, num_classes=3, strides=(16, 32, 64), names=NAMES)
    with caplog.at_level(logging.INFO):
        task = task_of(student=student, teacher=teacher)
    terms = task(draw_batch())
    assert list(terms) == ["box", "kd_objectness_scaled", "kd_cwd_layer2", "kd_cwd_layer3"]
    assert all(value.isfinite() and value > 0 for value in terms.values())
    assert "1 of 3 teacher classes are the student's; not taught: helmet" in caplog.text
    assert "outputs: the teacher has no level of stride 8" in caplog.text
    assert "features: the student has no level of stride 64" in caplog.text


def test_other_classes_do_not_matter_to_features_alone(task_of, detector, draw_batch):
    student, teacher = detector(4, num_classes=2, names=["helmet", "vest"]), detector(6, names=NAMES)
    assert task_of(student=student, teacher=teacher, outputs={})(draw_batch())["kd_cwd_layer1"] > 0
    with pytest.raises(UserError, match="no class of the teacher"):
        task_of(student=student, teacher=teacher)


@pytest.mark.parametrize(
    ("flags", "recipe", "message"),
    [
        ({}, {"features": {"cdw": {}}}, "no feature loss is called 'cdw'; did you mean 'cwd'"),
        ({}, {"features": {"cwd": {"tau": 2}}}, "feature loss 'cwd' has no option tau.*temperature"),
        ({}, {"outputs": {"kll": {}}}, "no output loss is called 'kll'; did you mean 'kl'"),
        ({}, {"outputs": {"kl": {"tau": 2}}}, "output loss 'kl' has no option tau"),
        ({}, {"outputs": {}, "features": {}}, "nothing to learn from the teacher"),
        ({"use_features": False}, {"outputs": {}}, "nothing to learn from the teacher.*--d_feature"),
        ({"use_features": False}, {"outputs": {"kl": {"weight": 0}}}, "nothing to learn from the teacher"),
    ],
)
def test_a_wrong_recipe_is_answered(task_of, flags, recipe, message):
    with pytest.raises(UserError, match=message):
        task_of(**flags, **recipe)


def test_methods_that_the_flags_leave_out_are_named(task_of, caplog):
    with caplog.at_level(logging.INFO):
        task_of(use_features=False, features={"cwd": {}})
        task_of(outputs={"kl": {}, "objectness_scaled": {"weight": 0}})
    assert "features of the recipe are not used: cwd" in caplog.text
    assert "outputs with weight 0 are left out: objectness_scaled" in caplog.text
