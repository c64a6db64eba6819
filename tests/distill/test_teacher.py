from __future__ import annotations

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

from distill.teacher import Teacher, image_scale
from distill.translate import Translator
from models.families import read_spec
from models.yolo import Model
from utils.errors import UserError


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def test_teacher_statistics_never_move(detector, draw_batch):
    teacher = Teacher(detector())
    before = statistics(teacher)
    teacher.train()
    teacher(draw_batch().images, [1, 2])
    teacher(draw_batch().images, [1], want_prediction=False)
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    for name, value in statistics(teacher).items():
        assert torch.equal(value, before[name]), name


def test_teacher_is_frozen_and_leaves_the_callers_model_alone(detector, draw_batch):
    model = detector().train()
    teacher = Teacher(model, torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.training
    prediction, maps = teacher(draw_batch().images.requires_grad_(), [1])
    assert not any(tensor.requires_grad for tensor in (*prediction.levels, *maps))


def test_what_it_shows_can_be_saved_for_backward(detector, draw_batch):
    prediction, _ = Teacher(detector())(draw_batch().images)
    weight = torch.ones(1, requires_grad=True)
    (weight * prediction.levels[0]).sum().backward()  # raises for tensors of inference mode
    assert weight.grad is not None


def test_prediction_and_maps_come_in_the_asked_order(detector, draw_batch):
    model, images = detector(), draw_batch().images
    prediction, maps = Teacher(model)(images, [3, 1])
    expected, features = model.eval()(images, extra_features=[3, 1])
    for ours, theirs in zip((*prediction.levels, *maps), (*expected.levels, *features), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_layers_the_prediction_is_whole(detector, draw_batch):
    prediction, maps = Teacher(detector())(draw_batch().images)
    assert len(prediction.levels) == 3
    assert maps == []


def test_features_only_stops_after_the_last_wanted_layer(detector, draw_batch):
    teacher = Teacher(detector())
    prediction, (features,) = teacher(draw_batch().images, [1], want_prediction=False)
    assert prediction is None
    assert features.shape[2:] == (8, 8)
    assert teacher.model.calls == [2]  # of 4 layers and a head


@pytest.mark.parametrize("inside_autocast", [False, True])
def test_computes_in_its_own_precision(detector, draw_batch, inside_autocast):
    images = draw_batch().images
    for half, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside_autocast):
            prediction, maps = Teacher(detector(), half)(images, [1])
        assert {tensor.dtype for tensor in (*prediction.levels, *maps)} == {expected}


def test_half_precision_keeps_the_geometry_exact(detector):
    model = detector(anchors={8: [[10.1, 13.3]] * 2, 16: [[30.7, 61.9]] * 2, 32: [[373.3, 326.1]] * 2})
    assert torch.equal(Teacher(model, torch.bfloat16).head.anchors_px, model.head.anchors_px)


# -- another device ---------------------------------------------------------------------------------------------------

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # the only other device that every machine has


class Journeys(TorchFunctionMode):
    """Notes what is moved between devices. What comes back from the meta device has no values: zeros stand for them."""

    def __init__(self):
        super().__init__()
        self.there, self.back = [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.to and isinstance(args[1], torch.device):
            tensor, device = args[:2]
            if (tensor.device, device) == (CPU, ELSEWHERE):
                self.there.append((tuple(tensor.shape), kwargs))
            elif (tensor.device, device) == (ELSEWHERE, CPU):
                self.back.append((tuple(tensor.shape), kwargs))
                return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return function(*args, **kwargs)


@pytest.fixture
def journeys(monkeypatch):
    """Under which a teacher can compute on the meta device, for which there is no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    return Journeys()


def test_a_teacher_on_another_device_gets_the_images_and_sends_back_all_it_shows(detector, draw_batch, journeys):
    model = detector()
    teacher = Teacher(model, device=ELSEWHERE, home=CPU)
    assert {tensor.device for tensor in (*teacher.parameters(), *teacher.buffers())} == {ELSEWHERE}
    images, computed_on = draw_batch().images, []
    teacher.model.layers[2].register_forward_hook(lambda _, inputs, output: computed_on.append(output.device))
    with journeys:
        prediction, maps = teacher(images, [1, 3])
    assert computed_on == [ELSEWHERE]
    assert [shape for shape, _ in journeys.there] == [(2, 3, 64, 64)]
    assert len(journeys.back) == len(prediction.levels) + len(maps) == 5
    assert {tensor.device for tensor in (*prediction.levels, *maps)} == {CPU}
    journeys.back.clear()
    with journeys:
        teacher(images, [1], want_prediction=False)
    assert [shape for shape, _ in journeys.back] == [(2, 4, 8, 8)]


def test_a_copy_to_the_cpu_is_waited_for(detector, draw_batch, journeys):
    teacher = Teacher(detector(), device=ELSEWHERE, home=CPU)
    with journeys:
        teacher(draw_batch().images, [1])
    assert journeys.there and journeys.back
    assert all(options["non_blocking"] for _, options in journeys.there)
    assert not any(options["non_blocking"] for _, options in journeys.back)


def test_its_head_can_be_used_where_its_prediction_arrives(draw_batch, journeys):
    model = Model(read_spec("yolov5p"), 3).eval()
    model.head.set_anchors_px(model.head.anchors_px * 1.37)  # numbers that half precision would round
    teacher = Teacher(model, torch.bfloat16, device=ELSEWHERE, home=CPU)
    assert next(teacher.model.head.parameters()).device == ELSEWHERE
    assert torch.equal(teacher.head.anchors_px, model.head.anchors_px)
    with journeys:
        prediction, _ = teacher(draw_batch().images)
    assert torch.equal(teacher.head.decode(prediction.levels), model.head.decode(prediction.levels))


def test_a_task_that_moves_leaves_it_where_it_is(detector):
    class Task(torch.nn.Module):
        def __init__(self, teacher):
            super().__init__()
            self.own = torch.nn.Linear(1, 1)
            self._guides = (teacher,)

    task = Task(Teacher(detector(), device=CPU)).to(ELSEWHERE)
    assert next(task.parameters()).device == ELSEWHERE
    assert next(task._guides[0].parameters()).device == CPU


def test_without_a_device_it_stays_with_the_model_and_its_head_is_its_own(detector):
    teacher = Teacher(detector().to(ELSEWHERE))
    assert next(teacher.parameters()).device == ELSEWHERE
    assert teacher.head is teacher.model.head


# -- another image size -----------------------------------------------------------------------------------------------


def seen_by(teacher, images):
    """The images that reach the teacher's first layer, and what it shows."""
    seen = []
    hook = teacher.model.layers[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    prediction, maps = teacher(images, [1])
    hook.remove()
    return seen[0], prediction, maps[0]


def enlarged_slowly(image, height, width):
    """Bilinear interpolation of (H, W) numbers between the centres of pixels, one at a time."""
    rows, columns = image.shape
    result = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            row = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            column = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(row), int(column)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            dy, dx = row - top, column - left
            result[y, x] = (
                (1 - dy) * (1 - dx) * image[top, left]
                + (1 - dy) * dx * image[top, right]
                + dy * (1 - dx) * image[below, left]
                + dy * dx * image[below, right]
            )
    return result


def test_images_are_enlarged_and_shown_as_the_teacher_sees_them(detector, draw_batch):
    model, images = detector(), draw_batch(size=32).images
    seen, prediction, shown = seen_by(Teacher(model, image_scale=(2.0, 3.0)), images)
    assert seen.shape[2:] == (64, 96)
    torch.testing.assert_close(seen[1, 2], enlarged_slowly(images[1, 2], 64, 96))
    assert shown.shape[2:] == (8, 12)
    assert [tuple(level.shape[2:4]) for level in prediction.levels] == [(8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(prediction.levels[0], model.eval()(seen).levels[0])


def test_shrinking_looks_at_every_pixel(detector):
    images = torch.zeros(1, 3, 256, 256)
    images[..., ::4] = 1.0  # plain bilinear at a quarter reads only the two middle columns of each four
    seen, _, _ = seen_by(Teacher(detector(), image_scale=(0.25, 0.25)), images)
    assert seen.shape[2:] == (64, 64)
    assert seen[..., 4:-4].sub(0.25).abs().max() < 0.1


@pytest.mark.parametrize(
    "scale, size, expected",
    [(1.5, 64, 96), (1.3, 64, 96), (1.5, 160, 256), (0.5, 96, 64), (0.1, 64, 32), (1.01, 64, 64)],
)
def test_its_images_are_multiples_of_its_stride(detector, scale, size, expected):
    seen, _, _ = seen_by(Teacher(detector(), image_scale=(scale, scale)), torch.rand(1, 3, size, size))
    assert seen.shape[2:] == (expected, expected)


def test_at_the_same_size_it_sees_the_very_images(detector, draw_batch):
    images = draw_batch(size=80).images  # no multiple of its stride
    seen, _, _ = seen_by(Teacher(detector()), images)
    assert torch.equal(seen, images)


def test_half_precision_images_are_resized_before_they_are_rounded(detector, draw_batch):
    images = draw_batch().images
    whole, _, _ = seen_by(Teacher(detector(), image_scale=(2.0, 2.0)), images)
    half, _, _ = seen_by(Teacher(detector(), torch.bfloat16, image_scale=(2.0, 2.0)), images)
    assert torch.equal(half, whole.bfloat16())


def test_a_teacher_of_another_size_speaks_of_the_students_pixels_once_translated(draw_batch):
    student, model = (Model(read_spec(name), 3).eval() for name in ("yolov5p", "yolov5n"))
    images = draw_batch().images
    teacher = Teacher(model, image_scale=(2.0, 2.0))
    taught, _ = teacher(images)
    own = student(images)
    translated = Translator(student.head, teacher.head, teacher.image_scale).translate(taught, own)
    assert [level.shape for level in translated.levels] == [level.shape for level in own.levels]
    # an untrained head says: centre of my cell, size of my anchor; half of which is in the student's pixels
    sides = student.head.decode_boxes(1, translated.levels[1])[..., 2:].mean(dim=(0, 2, 3))
    ratios = (sides[:, None] / (teacher.head.anchors_px[1] / 2)).log().abs().amax(dim=-1).amin(dim=-1)
    assert ratios.max() < 0.5


def test_one_factor_for_all_batches_follows_from_the_training_sizes():
    assert image_scale((1280, 1280), (640, 640)) == (2.0, 2.0)
    assert image_scale((640, 416), (640, 416)) == (1.0, 1.0)
    assert image_scale((832, 640), (640, 480)) == (1.3, 640 / 480)  # rounding to strides is no distortion


def test_stretched_images_are_refused_with_the_right_size():
    with pytest.raises(UserError, match=r"--t_imgsz 1280 1280: the student's images of 640 480.*--t_imgsz 1280 960"):
        image_scale((1280, 1280), (640, 480))
