from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from distill.build import build_distillation
from distill.pairs import Lesson
from distill.teacher import Teacher
from utils.errors import UserError
from utils.hyp import Balance, Hyp, Schedule, TeacherRole
from utils.phases import Phase
from utils.types import Progress

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def task_of(detector, criterion, gains):
    def make(student=None, others=None, dtype=None, **recipe):
        student = student or detector(4, names=NAMES)
        others = others or [detector(6, names=NAMES)]
        return build_distillation(
            student,
            criterion,
            others,
            Hyp(**recipe),
            gains=gains,
            frozen=lambda model: Teacher(model, dtype),
            criterion_of=lambda model: criterion,
        )

    return make


@pytest.fixture
def self_taught(detector, criterion, gains):
    """A task whose only teacher is an average of the student."""

    def make(**recipe):
        roles = (TeacherRole("self", ema=0.5),)
        return build_distillation(detector(4, names=NAMES), criterion, [], Hyp(teachers=roles, **recipe), gains=gains)

    return make


def teacher(task, index=0):
    return task.courses[index].guide


def pairs(task):
    return [pair for course in task.courses for pair in course.pairs]


def adapters(task):
    return [parameter for pair in pairs(task) for parameter in pair.parameters()]


def passes(task):
    """How many layers each pass of the teacher ran."""
    return teacher(task).model.calls


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
    assert pairs(task)[0].loss.temperature.value == 2.0

    heavier = task_of(**{key: {name: dict(options, weight=1.0) for name, options in methods.items()}
                         for key, methods in recipe.items()})  # fmt: skip
    heavier.load_state_dict(task.state_dict())
    heavier.courses[0]._guide = task.courses[0]._guide
    plain = heavier(batch)
    assert terms["kd_objectness_scaled"].item() == pytest.approx(10 * plain["kd_objectness_scaled"].item(), rel=1e-4)
    assert terms["kd_mimic_layer2"].item() == pytest.approx(0.5 * plain["kd_mimic_layer2"].item(), rel=1e-4)


def test_the_teacher_is_in_no_list(task_of):
    task = task_of(outputs={"objectness_scaled": {}, "kl": {}})
    hidden = {id(tensor) for tensor in (*teacher(task).parameters(), *teacher(task).buffers())}
    hidden |= {tensor.data_ptr() for tensor in teacher(task).parameters()}
    for tensor in (*task.parameters(), *task.buffers(), *task.state_dict(keep_vars=True).values()):
        assert id(tensor) not in hidden
        assert tensor.data_ptr() not in hidden
    assert not {id(module) for module in teacher(task).modules()} & {id(module) for module in task.modules()}
    assert {key.split(".")[0] for key in task.state_dict()} == {"model", "courses"}
    assert {key.split(".")[2] for key in task.state_dict() if key.startswith("courses")} == {"pairs"}
    own = [key.removeprefix("model.") for key in task.state_dict() if key.startswith("model.")]
    assert own == list(task.model.state_dict())


def test_training_mode_reaches_student_and_adapters_but_not_the_teacher(task_of, draw_batch):
    task = task_of()
    before = copy.deepcopy(teacher(task).state_dict())
    task.train()
    sum(task(draw_batch()).values()).backward()
    assert task.model.training
    assert all(pair.training for pair in pairs(task))
    assert not any(module.training for module in teacher(task).modules())
    for name, value in teacher(task).state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in teacher(task).parameters())


def test_student_and_adapters_learn(task_of, draw_batch):
    task = task_of()
    sum(task(draw_batch()).values()).backward()
    for name, parameter in task.named_parameters():
        if not name.startswith("model.layers.0.0.bias"):
            assert parameter.grad is not None, name
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters(task))
    assert len(adapters(task)) == 3


def test_teacher_and_student_see_the_very_same_tensor(task_of, draw_batch):
    """And so the same augmentation and size: nothing is resized or drawn again for one of them."""
    task, batch, seen = task_of(), draw_batch(), []
    for model in (task.model, teacher(task).model):
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
    task = task_of(features={})
    assert list(task(draw_batch())) == ["box", "kd_bckd"]
    assert not adapters(task)
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
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in adapters(task))
    assert all(parameter.requires_grad for parameter in task.model.parameters())


def test_at_is_pure_in_progress(task_of, draw_batch):
    task, batch = task_of(schedule=Schedule("linear", 0.0, off_epochs=1)), draw_batch()
    task.at(Progress(5, 0, 10, 4))
    before = task(batch)
    task.at(Progress(9, 3, 10, 4))
    task.at(Progress(5, 0, 10, 4))
    for name, value in task(batch).items():
        torch.testing.assert_close(value, before[name])
    assert all(parameter.requires_grad for parameter in adapters(task))


def test_the_schedule_weighs_every_imitation_term_and_no_other(task_of, draw_batch):
    task, batch = task_of(schedule=Schedule("linear", 0.0)), draw_batch()
    task.at(Progress(0, 0, 10, 4))
    full = task(batch)
    task.at(Progress(5, 0, 10, 4))
    for name, value in task(batch).items():
        torch.testing.assert_close(value, full[name] * (0.5 if name in task.term_names else 1.0))


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
    outputs = {"objectness_scaled": {}, "kl": {}}
    task = task_of(student=student, others=[student], outputs=outputs, features={"cwd": {}, "mimic": {}})
    for weight in adapters(task):
        nn.init.dirac_(weight)
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


def test_masks_are_drawn_on_the_grid_that_is_compared(task_of, draw_batch, monkeypatch):
    lessons = []
    monkeypatch.setattr("distill.course.Lesson", lambda *args: lessons.append(Lesson(*args)) or lessons[-1])
    task_of(features={"fgd": {"min_stride": 32, "weight": 1}})(draw_batch())
    assert {lesson.stride for lesson in lessons} == {32}


def test_an_unlabelled_empty_batch_is_finite(task_of, draw_batch):
    batch = draw_batch(empty=True)
    assert all(value.isfinite() for value in task_of()(batch._replace(labelled=~batch.labelled)).values())


def test_the_state_can_be_resumed(task_of, draw_batch, detector):
    others = [detector(6, names=NAMES)]
    first, second = task_of(others=others), task_of(others=others)
    batch = draw_batch()
    first(batch)
    second.load_state_dict(first.state_dict())
    for name, value in first(batch).items():
        assert torch.equal(value, second(batch)[name]), name


def test_models_of_other_channels_levels_and_classes_meet(task_of, detector, draw_batch, caplog):
    student = detector(4, num_classes=2, strides=(8, 16, 32), names=["Dog", "helmet"])
    other = detector(6, num_classes=3, strides=(16, 32, 64), names=NAMES)
    with caplog.at_level(logging.INFO):
        task = task_of(student=student, others=[other])
    terms = task(draw_batch())
    assert list(terms) == ["box", "kd_bckd", "kd_cwd_layer2", "kd_cwd_layer3"]
    assert all(value.isfinite() and value > 0 for value in terms.values())
    assert "1 of 3 teacher classes are the student's; not taught: helmet" in caplog.text
    assert "outputs: the teacher has no level of stride 8" in caplog.text
    assert "features: the student has no level of stride 64" in caplog.text


def test_other_classes_do_not_matter_to_features_alone(task_of, detector, draw_batch):
    student, others = detector(4, num_classes=2, names=["helmet", "vest"]), [detector(6, names=NAMES)]
    assert task_of(student=student, others=others, outputs={})(draw_batch())["kd_cwd_layer1"] > 0
    with pytest.raises(UserError, match="no class of the teacher"):
        task_of(student=student, others=others)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"features": {"cdw": {}}}, "no feature loss is called 'cdw'; did you mean 'cwd'"),
        ({"features": {"cwd": {"tau": 2}}}, "feature loss 'cwd' has no option tau.*temperature"),
        ({"features": {"cwd": {"wieght": 2}}}, "feature loss 'cwd' has no option wieght; did you mean 'weight'"),
        ({"features": {"cwd": {"strides": [64]}}}, r"strides: got \[64\], expected some of \[8, 16, 32\]"),
        ({"features": {"cwd": {"strides": []}}}, r"strides: got \[\], expected some of"),
        ({"features": {"cwd": {"strides": "8"}}}, "strides: got '8', expected some of"),
        ({"features": {"cwd": {"weight": [0, 0, 0]}}, "outputs": {}}, "nothing to learn from the teacher"),
        ({"features": {"cwd": {"weight": [1, 2]}}}, "weight has 2 entries for 3 pairs"),
        ({"features": {"cwd": {"clip": 0}}}, "feature loss 'cwd': clip: got 0, expected a number above 0"),
        ({"features": {"cwd": {"cutmix": 2}}}, "cutmix: got 2"),
        ({"features": {"cwd": {"min_stride": 1.5}}}, "min_stride: got 1.5, expected a whole number above 0"),
        ({"outputs": {"kll": {}}}, "no output loss is called 'kll'; did you mean 'kl'"),
        ({"outputs": {"kl": {"tau": 2}}}, "output loss 'kl' has no option tau"),
        ({"outputs": {"kl": {"gradient_gain": -1}}}, "output loss 'kl': gradient_gain: got -1"),
        ({"outputs": {}, "features": {}}, "nothing to learn from the teacher.*--d_feature"),
        ({"outputs": {"kl": {"weight": 0}}, "features": {}}, "nothing to learn from the teacher"),
        ({"phases": (Phase(1, terms=("feature",)),)}, "no term is called 'feature'; did you mean 'features'"),
        (
            {"phases": (Phase(1, terms=("features",), name="a"),), "features": {}},
            "phases: a: trains features, but none",
        ),
    ],
)
def test_a_wrong_recipe_is_answered(task_of, recipe, message):
    with pytest.raises(UserError, match=message):
        task_of(**recipe)


def test_methods_of_no_weight_are_left_out_and_named(task_of, caplog):
    with caplog.at_level(logging.INFO):
        task = task_of(outputs={"kl": {}, "objectness_scaled": {"weight": 0}}, features={})
    assert task.term_names == ("kd_kl",)
    assert "objectness_scaled with weight 0 are left out" in caplog.text


# -- how methods are used ---------------------------------------------------------------------------------------------


def test_a_method_without_a_weight_has_its_own_default(task_of, draw_batch):
    batch = draw_batch()
    task = task_of(outputs={"kl": {}}, features={})
    default = task.courses[0].outputs["kl"].default_weight
    other = task_of(student=task.model, outputs={"kl": {"weight": 3 * default}}, features={})
    other.courses[0]._guide = task.courses[0]._guide
    torch.testing.assert_close(other(batch)["kd_kl"], 3 * task(batch)["kd_kl"])


def test_each_pair_may_have_its_own_weight_and_each_stride_its_own_metric(task_of, draw_batch):
    features = {"mimic": {"strides": [8]}, "cwd": {"strides": [16, 32], "weight": [0.3, 0.7]}}
    task, batch = task_of(outputs={}, features=features), draw_batch()
    terms = task(batch)
    assert task.term_names == ("kd_mimic_layer1", "kd_cwd_layer2", "kd_cwd_layer3")
    even = task_of(student=task.model, outputs={}, features={**features, "cwd": {"strides": [16, 32], "weight": 1.0}})
    even.load_state_dict(task.state_dict())
    even.courses[0]._guide = task.courses[0]._guide
    for name, factor in (("kd_cwd_layer2", 0.3), ("kd_cwd_layer3", 0.7)):
        torch.testing.assert_close(terms[name], factor * even(batch)[name])


def test_the_deepest_pair_may_come_first(task_of, draw_batch):
    task, batch = task_of(outputs={"kl": {}}, features={"cwd": {}}, schedule=Schedule(deepest_first=2)), draw_batch()
    task.at(Progress(1, 0, 10, 4))
    early = task(batch)
    assert [name for name in task.term_names if early[name].item() > 0] == ["kd_kl", "kd_cwd_layer3"]
    asks = [all(parameter.requires_grad for parameter in pair.parameters()) for pair in pairs(task)]
    assert asks == [False, False, True]
    task.at(Progress(2, 0, 10, 4))
    assert all(value.item() > 0 for value in task(batch).values())
    assert all(parameter.requires_grad for parameter in adapters(task))


PHASES = (
    Phase(2, name="align", terms=("features",)),
    Phase(3, name="adapt", terms=("detection", "cwd", "outputs")),
    Phase(1, name="labels", terms=("detection",)),
)


@pytest.mark.parametrize(
    ("recipe", "epochs", "message"),
    [
        ({"phases": PHASES}, 2, "2 epochs are too few for 3 phases"),
        ({"schedule": Schedule(off_epochs=5)}, 5, "off_epochs 5 leaves none of the 5 epochs"),
        ({"phases": PHASES[:1], "schedule": Schedule(off_epochs=1)}, 2, "epoch 2 of 2 would train nothing"),
    ],
)
def test_a_run_that_does_not_fit_its_recipe_is_refused_before_it_begins(task_of, recipe, epochs, message):
    with pytest.raises(UserError, match=message):
        task_of(**recipe).check(epochs)


def test_terms_that_never_count_are_named(task_of, caplog):
    task_of(outputs={"kl": {}}, features={"cwd": {}}, schedule=Schedule(deepest_first=3)).check(3)
    assert "never active in these 3 epochs: kd_cwd_layer1, kd_cwd_layer2" in caplog.text


def test_the_deepest_is_that_of_the_methods_that_the_phase_wants(task_of, draw_batch):
    features = {"mimic": {"strides": [8]}, "cwd": {"strides": [16, 32]}}
    phases = (Phase(2, terms=("mimic",)),)
    task = task_of(outputs={}, features=features, phases=phases, schedule=Schedule(deepest_first=2))
    task.check(2)
    task.at(Progress(0, 0, 2, 1))
    assert active(task, draw_batch()) == {"kd_mimic_layer1"}


def active(task, batch):
    return {name for name, value in task(batch).items() if value.item() > 0}


def test_each_phase_has_its_terms(task_of, draw_batch, caplog):
    task, batch = task_of(outputs={"kl": {}}, features={"cwd": {}, "mimic": {}}, phases=PHASES), draw_batch()
    cwd, mimic = ({f"kd_{method}_layer{layer}" for layer in (1, 2, 3)} for method in ("cwd", "mimic"))
    with caplog.at_level(logging.INFO):
        for epoch, names in ((0, cwd | mimic), (1, cwd | mimic), (2, {"box", "kd_kl"} | cwd), (5, {"box"})):
            task.at(Progress(epoch, 0, 6, 4))
            assert active(task, batch) == names, epoch
            assert tuple(task(batch))[1:] == task.term_names
    assert "phase adapt: detection, cwd, outputs" in caplog.text


def test_without_the_loss_on_labels_the_head_rests_and_ddp_still_works(task_of, draw_batch, one_rank):
    task, batch = task_of(outputs={"kl": {}}, features={"cwd": {}}, phases=PHASES[:1]), draw_batch()
    task.at(Progress(0, 0, 2, 1))
    wrapped = nn.parallel.DistributedDataParallel(task)
    for _ in range(2):
        task.zero_grad(set_to_none=True)
        sum(wrapped(batch).values()).backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in task.model.head.parameters())
    assert task.model.layers[0][0].weight.grad.abs().sum() > 0


def test_balanced_terms_follow_their_weights(task_of, draw_batch):
    task, batch = task_of(outputs={"kl": {}}, features={}, balance=Balance("dwa")).train(), draw_batch()
    task.at(Progress(0, 0, 3, 1))
    before = task(batch)
    task.balance.weights.fill_(2.0)
    after = task(batch)
    torch.testing.assert_close(after["kd_kl"], 2 * before["kd_kl"], rtol=1e-3, atol=0)
    assert task.balance.steps.item() == 2
    task.eval()(batch)
    assert task.balance.steps.item() == 2


def test_temperatures_follow_the_run(task_of, draw_batch):
    falling = {"start": 4, "drop": 1, "every": 1, "least": 1}
    task = task_of(outputs={"kl": {"temperature": falling}}, features={"cwd": {"temperature": falling}})
    for epoch, value in ((0, 4), (2, 2), (9, 1)):
        task.at(Progress(epoch, 0, 10, 4))
        temperatures = [task.courses[0].outputs["kl"].temperature, *(pair.loss.temperature for pair in pairs(task))]
        assert {temperature.value.item() for temperature in temperatures} == {value}


def test_hard_images_pull_harder(task_of, detector, draw_batch):
    other, batch = detector(6, names=NAMES), draw_batch()
    easy, hard = (task_of(student=detector(4, names=NAMES), others=[other], difficulty=d) for d in (0.0, 2.0))
    hard.load_state_dict(easy.state_dict())
    for name, value in hard(batch).items():
        torch.testing.assert_close(value, easy(batch)[name])  # values stay; images are weighed by their gradients
    pulls = []
    for task in (easy, hard):
        images = batch.images.clone().requires_grad_()
        terms = task(batch._replace(images=images))
        sum(terms[name] for name in task.term_names).backward()
        pulls.append(images.grad.flatten(1).norm(dim=1))
    ratio = pulls[1] / pulls[0]
    assert (ratio - 1).abs().max() > 1e-3


# -- teachers that are several, and that move -------------------------------------------------------------------------


def test_several_teachers_share_the_weight(task_of, detector, draw_batch):
    one, two = detector(6, names=NAMES), detector(8, names=NAMES)
    task = task_of(others=[one, two], outputs={"kl": {}}, features={"cwd": {}}).train()
    batch = draw_batch()
    terms = task(batch)
    first = ["kd_kl", *(f"kd_cwd_layer{layer}" for layer in (1, 2, 3))]
    assert list(terms) == ["box", *first, *(f"{name}_t2" for name in first)]
    alone = task_of(student=task.model, others=[two], outputs={"kl": {}}, features={})
    torch.testing.assert_close(terms["kd_kl_t2"], alone(batch)["kd_kl"] / 2, rtol=1e-3, atol=1e-6)

    roles = (TeacherRole(weight=0.75), TeacherRole(weight=0.25))
    uneven = task_of(student=task.model, others=[one, two], outputs={"kl": {}}, features={}, teachers=roles)(batch)
    torch.testing.assert_close(uneven["kd_kl"], 1.5 * terms["kd_kl"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(uneven["kd_kl_t2"], 0.5 * terms["kd_kl_t2"], rtol=1e-3, atol=1e-6)


def test_each_teacher_may_have_its_own_layers(task_of, detector):
    roles = (TeacherRole(layers=(1,)), TeacherRole(layers=(2,)))
    other = detector(6, strides=(8, 8, 16), names=NAMES)
    task = task_of(others=[detector(6, names=NAMES), other], outputs={}, student_kd_layers=(1,), teachers=roles)
    assert [pair.teacher.layer for pair in pairs(task)] == [1, 2]


def test_an_online_teacher_learns_from_labels_and_not_from_the_student(task_of, draw_batch):
    task, batch = task_of(teachers=(TeacherRole("online"),)).train(), draw_batch()
    terms = task(batch)
    assert list(terms)[-1] == "teacher"
    assert terms["teacher"].item() > 0
    imitation = torch.autograd.grad(
        sum(terms[name] for name in task.term_names),
        list(teacher(task).model.parameters()),
        retain_graph=True,
        allow_unused=True,
    )
    assert all(gradient is None for gradient in imitation)
    sum(terms.values()).backward()
    inner = teacher(task).model
    assert inner.training
    assert all(parameter.grad is not None for parameter in inner.parameters())
    assert {id(parameter) for parameter in inner.parameters()} <= {id(parameter) for parameter in task.parameters()}
    assert any(key.startswith("courses.0.learner.model.") for key in task.state_dict())


def test_an_online_teacher_rests_with_its_terms_under_ddp(task_of, draw_batch, one_rank):
    task = task_of(teachers=(TeacherRole("online", ema=0.9),), schedule=Schedule(off_epochs=1))
    task, batch = task.train(), draw_batch()
    for epoch in range(2):
        task.at(Progress(epoch, 0, 2, 1))
        wrapped = nn.parallel.DistributedDataParallel(task)
        for _ in range(2):
            task.zero_grad(set_to_none=True)
            terms = wrapped(batch)
            sum(terms.values()).backward()
        assert (terms["teacher"].item() > 0) == (epoch == 0)
    assert list(terms)[-1] == "teacher"


def test_an_online_teachers_average_may_guide_in_its_stead(task_of, draw_batch):
    task, batch = task_of(teachers=(TeacherRole("online", ema=0.9),), features={}).train(), draw_batch()
    before = task(batch)["kd_bckd"]
    with torch.no_grad():
        for parameter in teacher(task).model.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.testing.assert_close(task(batch)["kd_bckd"], before, rtol=1e-3, atol=1e-6)
    for _ in range(20):
        task.after_step()
    assert (task(batch)["kd_bckd"] - before).abs() > 1e-4
    assert not any(parameter.requires_grad for parameter in teacher(task).average.parameters())


def test_the_student_may_learn_from_its_own_average(self_taught, draw_batch):
    task, batch = self_taught(outputs={"kl": {}}, features={"cwd": {}}).train(), draw_batch()
    average = teacher(task)
    assert not any(module.training for module in average.modules())
    sum(task(batch).values()).backward()
    assert all(parameter.grad is None for parameter in average.parameters())
    before = copy.deepcopy(average.state_dict())
    with torch.no_grad():
        task.model.head.m[0].bias.add_(1.0)
    task.after_step()
    moved = average.model.head.m[0].bias - before["model.head.m.0.bias"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5))  # the mean of two
    assert task(batch)["kd_kl"].item() > 0


def test_averages_are_resumed(self_taught):
    task, other = self_taught(), self_taught()
    for _ in range(3):
        task.after_step()
    other.load_state_dict(copy.deepcopy(task.state_dict()))
    for each in (task, other):
        with torch.no_grad():
            each.model.head.m[0].bias.fill_(3.0)
        each.after_step()
    for (name, own), value in zip(task.state_dict().items(), other.state_dict().values(), strict=True):
        assert own == value if isinstance(own, int) else torch.equal(own, value), name
