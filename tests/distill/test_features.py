"""The contract of `distill/features`, over the whole table; values of each method are in `features/`."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from torch import nn

from distill.features import FEATURES
from distill.features.base import standardise
from distill.methods import feature_loss
from distill.pairs import FeaturePair, Lesson
from distill.temperature import Temperature
from utils.errors import UserError
from utils.types import FeatureInfo, Prediction

# methods that compare one layer with one; those that span two have pairs of their own kind, and tests beside them
METHODS = sorted(name for name, method in FEATURES.items() if getattr(method, "spans", 1) == 1)

# who does not cost nothing where both maps are the same, and why
COSTS_ANYWAY = {
    "mgd": "it has to generate what it is not shown",
    "contrastive": "other positions or images are never infinitely far away, and each side is projected by its own",
}
# whose size is that of a batch's relations, and why a batch that is repeated has others
OF_THE_BATCH = {
    "batch_similarity": "each image is compared with every other",
    "contrastive": "the more there are to be mistaken for, the harder it is",
}
# options without which a method draws anew for each image
WITHOUT_CHANCE = {"mgd": {"mask": 0.0}}
# parameters that cannot be felt, and why
UNFELT = {("pkd", "adapter.bias"): "means are taken off"}

labels = pytest.mark.parametrize("labels", ["some", "none in the images", "no image is labelled"])
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def make_lesson(draw_batch, draw_prediction, detector):
    def make(labels="some"):
        batch = draw_batch(empty=labels == "none in the images")
        if labels == "no image is labelled":
            batch = batch._replace(labelled=torch.zeros_like(batch.labelled))
        return Lesson(batch, 8, draw_prediction(), detector().head, (8, 16, 32))

    return make


def loss_of(name, channels=4, **options):
    return FEATURES[name].from_pair(channels, 8, **options)


class Pair(FeaturePair):
    """One that takes its map of each side bare."""

    def forward(self, student, teacher, lesson):
        return super().forward([student], [teacher], lesson)


def pair_of(name, c_student=4, c_teacher=6):
    return Pair(name, FeatureInfo(1, c_student, 8), FeatureInfo(1, c_teacher, 8), loss_of(name, c_teacher))


def without_adapter(name, channels=4):
    """A pair that compares the maps as they are (or only normalised)."""
    pair = pair_of(name, channels, channels)
    pair.adapter = nn.Identity()
    return pair


def moved(module):
    """As after some training: what starts at 0 hides what comes before it."""
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def maps(channels=4, images=2):
    return 2 * torch.randn(images, channels, 8, 8)


def value_of(loss, student, teacher, lesson):
    """Methods that draw draw the same."""
    torch.manual_seed(3)
    return loss(student, teacher, lesson)


def repeated(lesson):
    """The same images once more."""
    batch = lesson.batch
    again = batch.targets + torch.tensor([len(batch.labelled), 0, 0, 0, 0, 0])
    batch = batch._replace(
        images=batch.images.repeat(2, 1, 1, 1),
        targets=torch.cat((batch.targets, again)),
        labelled=batch.labelled.repeat(2),
    )
    taught = Prediction(tuple(level.repeat(2, 1, 1, 1, 1) for level in lesson.taught.levels))
    return lesson._replace(batch=batch, taught=taught)


# -- the value --------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_beside_a_half_precision_teacher(name, dtype, make_lesson):
    pair, student, teacher, lesson = without_adapter(name), maps(), maps().to(dtype), make_lesson()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = value_of(pair, student.bfloat16(), teacher, lesson)
    full = value_of(pair, student.bfloat16().float(), teacher.float(), lesson)
    assert half.dtype == torch.float32
    assert half.shape == ()
    torch.testing.assert_close(half, full, rtol=2e-6, atol=0)  # half precision would be off by 1e-3


@every_method
def test_a_loss_called_by_itself_takes_half_precision_too(name, make_lesson):
    loss, student, teacher, lesson = loss_of(name), maps().bfloat16(), maps().half(), make_lesson()
    half = value_of(loss, student, teacher, lesson)
    assert half.dtype == torch.float32
    assert torch.equal(half, value_of(loss, student.float(), teacher.float(), lesson))


@every_method
@labels
@pytest.mark.parametrize("size", [0.0, 1.0, 6e4])
def test_finite_with_and_without_objects_for_blank_and_for_huge_maps(name, size, labels, make_lesson):
    pair, student = pair_of(name), (size * maps()).requires_grad_()
    value = pair(student, size * maps(6), make_lesson(labels))
    value.backward()
    assert math.isfinite(value.item())
    assert student.grad.isfinite().all()
    # a gradient for each, if only 0: DDP waits for it
    assert all(parameter.grad.isfinite().all() for parameter in pair.parameters())


@every_method
def test_equal_maps_cost_nothing_and_different_ones_do(name, make_lesson):
    pair, student, lesson = without_adapter(name), maps(), make_lesson()
    if name not in COSTS_ANYWAY:
        assert pair(student, student.clone(), lesson).item() == pytest.approx(0, abs=1e-6)
    assert pair(student, maps(), lesson).item() > 1e-5


@every_method
def test_size_does_not_depend_on_the_batch(name, make_lesson):
    loss, student, teacher, lesson = loss_of(name, **WITHOUT_CHANCE.get(name, {})), maps(), maps(), make_lesson()
    once = value_of(loss, student, teacher, lesson)
    twice = value_of(loss, student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), repeated(lesson))
    if name in OF_THE_BATCH:
        assert 0.1 < (twice / once).item() < 10
    else:
        torch.testing.assert_close(twice, once)


@every_method
def test_how_maps_lie_in_memory_does_not_matter(name, make_lesson):
    loss, student, teacher, lesson = loss_of(name), maps(), maps(), make_lesson()
    across = [x.to(memory_format=torch.channels_last) for x in (student, teacher)]
    torch.testing.assert_close(value_of(loss, across[0], across[1], lesson), value_of(loss, student, teacher, lesson))


@every_method
def test_maps_and_labels_are_left_as_they_were(name, make_lesson):
    student, teacher, lesson = maps(), maps(6), make_lesson()
    before = copy.deepcopy((student, teacher, lesson.batch, lesson.taught))
    pair_of(name)(student.requires_grad_(), teacher, lesson).backward()
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])
    assert torch.equal(lesson.batch.targets, before[2].targets)
    assert all(torch.equal(a, b) for a, b in zip(lesson.taught.levels, before[3].levels, strict=True))


@pytest.mark.parametrize("name", [name for name in METHODS if FEATURES[name].adapter == "conv_bn"])
def test_standardising_on_the_way_is_standardising_first(name, make_lesson):
    loss, student, teacher, lesson = loss_of(name), 10 * maps() + 5, 0.1 * maps() - 3, make_lesson()
    student.requires_grad_()
    results = []
    for way in (loss.standardised, lambda own, other, lesson: loss(standardise(own), standardise(other), lesson)):
        value = value_of(way, student, teacher, lesson)
        results.append((value.detach(), torch.autograd.grad(value, student)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


# -- the gradient -----------------------------------------------------------------------------------------------------


@every_method
def test_gradient_reaches_student_and_what_learns_and_nobody_else(name, make_lesson):
    pair, student, teacher, lesson = moved(pair_of(name, 4, 16)), maps().requires_grad_(), maps(16), make_lesson()
    others = [teacher, *lesson.taught.levels, lesson.batch.images]
    for other in others:
        other.requires_grad_()
    pair(student, teacher, lesson).backward()
    assert student.grad.abs().sum() > 0
    for parameter, value in pair.named_parameters():
        assert (name, parameter) in UNFELT or value.grad.abs().sum() > 0, parameter
    assert all(other.grad is None for other in others)
    assert all(value.grad is None for value in lesson.head.parameters())


@every_method
def test_a_loss_called_by_itself_leaves_the_teacher_alone(name, make_lesson):
    student, teacher = maps().requires_grad_(), maps().requires_grad_()
    moved(loss_of(name))(student, teacher, make_lesson()).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@every_method
def test_a_step_against_the_gradient_makes_it_smaller(name, make_lesson):
    pair, student, teacher, lesson = pair_of(name), maps().requires_grad_(), maps(6), make_lesson()
    value = value_of(pair, student, teacher, lesson)
    (gradient,) = torch.autograd.grad(value, student)
    size = gradient.square().sum()
    nearer = student.detach() - 1e-2 * value.detach() / size * gradient  # 1 % less, were it linear
    assert 0.98 * value < value_of(pair, nearer, teacher, lesson) < 0.995 * value


# -- what a method says of itself -------------------------------------------------------------------------------------


@every_method
def test_who_says_nothing_of_predictions_does_without(name, make_lesson):
    pair, student, teacher, lesson = pair_of(name), maps(), maps(6), make_lesson()
    if FEATURES[name].needs_prediction:
        other = lesson._replace(taught=make_lesson().taught)
        assert not torch.equal(value_of(pair, student, teacher, other), value_of(pair, student, teacher, lesson))
    else:
        bare = lesson._replace(taught=None, head=nn.Identity())
        assert torch.equal(value_of(pair, student, teacher, bare), value_of(pair, student, teacher, lesson))


@every_method
def test_who_says_nothing_of_boxes_does_without_and_who_does_asks_whether_they_are_labels(name, make_lesson):
    pair, student, teacher, lesson = moved(pair_of(name)), maps(), maps(6), make_lesson()

    def value(lesson, targets):
        return value_of(pair, student, teacher, lesson._replace(batch=lesson.batch._replace(targets=targets)))

    targets, others = lesson.batch.targets, torch.tensor([[0, 1, 0.4, 0.6, 0.5, 0.5], [1, 0, 0.6, 0.4, 0.9, 0.9]])
    unlabelled = lesson._replace(batch=make_lesson("no image is labelled").batch)
    assert torch.equal(value(lesson, targets), value(lesson, others)) != FEATURES[name].needs_boxes
    assert torch.equal(value(unlabelled, targets), value(unlabelled, others))


@every_method
def test_it_names_its_source_and_has_a_weight(name):
    method = FEATURES[name]
    assert "Source: " in inspect.getdoc(method)
    assert method.default_weight > 0
    assert method.adapter in ("conv_bn", "conv", None)


@every_method
def test_options_have_defaults_and_are_built_for_any_number_of_channels(name):
    for channels in (1, 2, 7):
        assert isinstance(loss_of(name, channels), FEATURES[name])


def test_exceptions_are_methods():
    assert {*COSTS_ANYWAY, *OF_THE_BATCH, *WITHOUT_CHANCE, *(name for name, _ in UNFELT)} <= set(METHODS)


# -- what a user may write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_a_misspelt_option_is_answered(name):
    with pytest.raises(UserError, match=f"feature loss '{name}' has no option temprature"):
        feature_loss(name, FeatureInfo(1, 4, 8), 8, {"temprature": 1.0})


def test_a_misspelt_method_is_answered():
    with pytest.raises(UserError, match=r"no feature loss is called 'cdw'; did you mean 'cwd'\? known: .*cwd, .*mimic"):
        feature_loss("cdw", FeatureInfo(1, 4, 8), 8, {})


WITH_TEMPERATURE = [name for name in METHODS if "temperature" in inspect.signature(FEATURES[name].__init__).parameters]


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
@pytest.mark.parametrize("temperature", [0, -1, "warm", float("nan"), True])
def test_a_temperature_is_a_positive_number(name, temperature):
    with pytest.raises(UserError, match=rf"feature loss '{name}': temperature: got .* expected a number above 0"):
        loss_of(name, temperature=temperature)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_temperature_may_fall_over_a_run(name):
    loss = loss_of(name, temperature={"start": 5, "drop": 1, "every": 10, "least": 1})
    assert isinstance(loss.temperature, Temperature)
    assert loss.temperature.value == 5
