"""The loop: order, saving, resuming, stopping."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.callbacks import Callback
from engine.loggers.table import CsvTable
from engine.optim import Recipe, Timetable, build_optimizer
from engine.plan import Plan
from engine.stepper import FAILING, FAILURES, rescaled
from engine.task import DetectionTask
from engine.trainer import Trainer
from losses.anchor import AnchorLoss
from models.families import read_spec
from models.weights import load_model, read_checkpoint
from models.yolo import Model
from utils.errors import UserError
from utils.hyp import Balance, Hyp, Schedule, TeacherRole
from utils.interruption import Interrupted
from utils.phases import Phase
from utils.types import Batch, Progress

CPU = torch.device("cpu")
SIZE = 64


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    boxes = torch.rand(4, 4, generator=generator) * 0.3 + 0.2
    targets = torch.cat((torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), boxes), 1)
    return Batch(images, targets, torch.ones(2, dtype=torch.bool))


class Loader:
    """Batches that depend on the epoch, as a real loader's do."""

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps
        self.epoch = 0
        self.first = 0
        self.mosaic: list[bool] = []
        self.weights: list[Any] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (batch(1000 * self.epoch + step) for step in range(self.first, self.steps))

    def set_epoch(self, epoch: int, mosaic: bool = True, first: int = 0) -> None:
        self.epoch = epoch
        self.first = first
        self.mosaic.append(mosaic)

    def set_image_weights(self, weights: Any) -> None:
        self.weights.append(weights)


class Judge:
    """An evaluator with a verdict for each validation."""

    def __init__(self, *verdicts: float) -> None:
        self.verdicts = list(verdicts)

    def __call__(self, model: nn.Module, criterion: nn.Module | None = None, progress: bool = True) -> Any:
        score = self.verdicts.pop(0)
        evaluation = SimpleNamespace(
            precision=score, recall=score, map50=score, map=score, per_class=[SimpleNamespace(index=1, map=score)]
        )
        return SimpleNamespace(evaluation=evaluation, losses={"box": 1.0})


def detection() -> DetectionTask:
    torch.manual_seed(0)
    model = Model(read_spec("yolov5p"), 2, ("a", "b"))
    return DetectionTask(model, AnchorLoss(model.head, Hyp(), (SIZE, SIZE)))


def plan(folder: Path, epochs: int = 3, **changes: Any) -> Plan:
    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_iterations=4), "linear", batch_size=32)
    return replace(Plan(folder, epochs, CPU, None, timetable, stride=32), **changes)


def trainer(
    task: nn.Module, plan: Plan, judge: Judge | None = None, loader: Loader | None = None, *watch: Any
) -> Trainer:
    optimizer = build_optimizer(task, Recipe("SGD", 0.01, 0.9, 0.1), 5e-4)
    return Trainer(task, optimizer, loader or Loader(), judge, plan, watch)


class Terms(Callback):
    """Writes down what it sees."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.epochs: list[int] = []

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        self.losses.append(sum(terms.values()))

    def on_epoch_end(self, trainer: Trainer, record: Any) -> None:
        self.epochs.append(record.epoch)


class Signal(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, epoch: int, step: int, number: int = signal.SIGTERM) -> None:
        self.at = (epoch, step)
        self.number = number

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        if (progress.epoch, progress.step) == self.at:
            os.kill(os.getpid(), self.number)


class Crash(Callback):
    """Pulls the plug at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
        if progress.epoch == self.epoch and progress.step == 1:
            raise ConnectionError("the machine is gone")


def distillation(**recipe: Any) -> nn.Module:
    specification = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("ranks.py"))
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    task: nn.Module = module.distillation(**recipe)
    return task


FALLING = {"start": 5, "drop": 1, "every": 1, "least": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "schedules": {
        "outputs": {"kl": {"temperature": FALLING, "clip": 0.2}, "bckd": {}},
        "features": {"cwd": {"weight": [0.1, 0.2, 0.3], "gradient_gain": 2.0}},
        "schedule": Schedule("cosine", within="epoch", warmup_epochs=1, deepest_first=1),
        "balance": Balance("dwa", momentum=0.5),
        "difficulty": 1.0,
    },
    "phases": {
        "features": {"mimic": {}},
        "phases": (Phase(1, lr0=1e-3, terms=("features",)), Phase(1), Phase(1, terms=("detection",))),
        "schedule": Schedule(),
    },
    "chance": {"features": {"mgd": {}, "cwd": {"cutmix": 0.5}}},
    "online": {"teachers": (TeacherRole("online", ema=0.9),)},
    "self": {"teachers": (TeacherRole("self", ema=0.9),)},
}


@pytest.mark.parametrize(
    "make",
    [detection, distillation, *(functools.partial(distillation, **recipe) for recipe in RECIPES.values())],
    ids=["detection", "distillation", *RECIPES],
)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(make: Any, tmp_path: Path) -> None:
    through = trainer(make(), plan(tmp_path / "through"), Judge(0.1, 0.2, 0.3))
    through.fit()

    crashed = trainer(make(), plan(tmp_path / "crash"), Judge(0.1, 0.2, 0.3), None, Crash(epoch=1))
    with pytest.raises(ConnectionError):
        crashed.fit()
    resumed = goes_on(make, tmp_path / "crash", Judge(0.2, 0.3))
    assert resumed.start_epoch == 1
    resumed.fit()
    assert_same(through, resumed)


@pytest.mark.parametrize(
    "make",
    [detection, *(functools.partial(distillation, **RECIPES[name]) for name in ("schedules", "chance", "online"))],
    ids=["detection", "schedules", "chance", "online"],
)
def test_amidst_an_epoch_a_signal_saves_and_the_run_goes_on_bit_equally(make: Any, tmp_path: Path) -> None:
    seen, before, after = Terms(), Terms(), Terms()
    through = trainer(make(), plan(tmp_path / "through"), Judge(0.1, 0.2, 0.3), None, seen)
    through.fit()

    told = trainer(make(), plan(tmp_path / "told"), Judge(0.1, 0.2, 0.3), None, before, Signal(epoch=1, step=0))
    with pytest.raises(Interrupted) as stopped:
        told.fit()
    assert stopped.value.status == 143
    resumed = goes_on(make, tmp_path / "told", Judge(0.2, 0.3), after)
    assert (resumed.start_epoch, resumed.passed.step) == (1, 2)  # the step during which it came, and the one after
    resumed.fit()
    assert before.losses + after.losses == seen.losses
    assert_same(through, resumed)


def test_the_table_has_the_terms_of_the_whole_epoch_after_an_interruption(tmp_path: Path) -> None:
    rows = []
    for name, watchers in (("through", ()), ("told", (Signal(epoch=0, step=0),))):
        table = CsvTable(tmp_path / name / "results.csv")
        (tmp_path / name).mkdir()
        run = trainer(detection(), plan(tmp_path / name, epochs=2), None, Loader(5), table, *watchers)
        if watchers:
            with pytest.raises(Interrupted):
                run.fit()
            goes_on(detection, tmp_path / name, None, table, epochs=2, loader=Loader(5)).fit()
        else:
            run.fit()
        lines = table.path.read_text().splitlines()
        rows.append([dict(zip(lines[0].split(","), line.split(","), strict=True)) | {"seconds": ""} for line in lines])
    assert rows[0] == rows[1]


def test_gradients_that_wait_are_not_lost(tmp_path: Path) -> None:
    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_epochs=0), "linear", batch_size=16)  # 4 a step
    run = trainer(detection(), plan(tmp_path, timetable=timetable), None, Loader(6), Signal(epoch=0, step=0))
    with pytest.raises(Interrupted):
        run.fit()
    assert run.passed.step == 4
    assert run.stepper.count == 1


class Calling(nn.Module):
    """A loss that does something in one of its calls, counted from 1, and is not finite in some."""

    def __init__(self, call: int, action: Any, broken: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.call, self.action, self.broken = call, action, broken
        self.calls = 0

    def forward(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.call:
            self.action()
        mean = torch.stack([level.mean() for level in prediction.levels]).mean()
        return {"box": mean * float("nan") if self.calls in self.broken else mean}


def ask_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("broken", [(), (2,), (1, 2, 3)], ids=["sound", "skipped", "skipped in a row"])
def test_a_signal_amidst_a_step_ends_and_saves_after_it_though_it_is_skipped(
    tmp_path: Path, broken: tuple[int, ...]
) -> None:
    criterion = Calling(call=2, action=ask_to_end, broken=broken)
    run = trainer(DetectionTask(detection().model, criterion), plan(tmp_path), None, Loader(6))
    with pytest.raises(Interrupted):
        run.fit()
    saved = read_checkpoint(tmp_path / "weights/last.pt").training
    assert saved is not None
    assert (saved["epoch"], saved["step"]) == (0, 2)
    assert saved["counted"] == 2 - len({1, 2} & set(broken))


def test_where_steps_come_to_nothing_the_checkpoint_to_go_back_to_stays(tmp_path: Path) -> None:
    criterion = Calling(call=FAILING + 1, action=ask_to_end, broken=tuple(range(2, 20)))
    run = trainer(DetectionTask(detection().model, criterion), plan(tmp_path), None, Loader(20))
    with pytest.raises(Interrupted):
        run.fit()
    saved = read_checkpoint(tmp_path / "weights/last.pt").training
    assert saved is not None
    assert saved["step"] == 0


def test_the_best_epoch_is_kept_though_its_last_steps_come_to_nothing(tmp_path: Path) -> None:
    table: list[float] = []

    class Records(Callback):
        def on_epoch_end(self, trainer: Trainer, record: Any) -> None:
            table.append(record.fitness)

    broken = tuple(range(8 - FAILING + 1, 9))  # those of the end of the first epoch
    criterion = Calling(call=0, action=None, broken=broken)
    judge = Judge(0.9, 0.1)
    run = trainer(DetectionTask(detection().model, criterion), plan(tmp_path, epochs=2), judge, Loader(8), Records())
    run.fit()
    assert run.best.epoch == 0
    assert torch.load(tmp_path / "weights/best.pt", weights_only=True)["metrics"]["metrics/mAP50"] == 0.9


def test_what_ends_validation_costs_no_step(tmp_path: Path) -> None:
    class Lost(Judge):
        def __call__(self, model: nn.Module, criterion: nn.Module | None = None, progress: bool = True) -> Any:
            raise OSError("the disk of the images is gone")

    with pytest.raises(OSError, match="is gone"):
        trainer(detection(), plan(tmp_path / "told", epochs=2), Lost()).fit()
    assert_validated_again(tmp_path)


def test_a_signal_during_validation_ends_at_once_and_validation_is_done_again(tmp_path: Path) -> None:
    class Long(Judge):
        def __call__(self, model: nn.Module, criterion: nn.Module | None = None, progress: bool = True) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it went on")

    with pytest.raises(Interrupted) as stopped:
        trainer(detection(), plan(tmp_path / "told", epochs=2), Long()).fit()
    assert stopped.value.status == 130
    assert_validated_again(tmp_path)


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.interruption.REPEATED", 0.0)

    class Twice(Callback):
        def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it went on")

    with pytest.raises(Interrupted):
        trainer(detection(), plan(tmp_path), None, None, Twice()).fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_last_is_written_amidst_an_epoch_when_the_interval_is_over(tmp_path: Path) -> None:
    steps = []

    class Look(Callback):
        def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
            content = torch.load(tmp_path / "weights/last.pt", weights_only=True)
            steps.append((content["training"]["epoch"], content["training"]["step"]))

    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(), "linear", batch_size=64)
    trainer(detection(), plan(tmp_path, epochs=2, save_interval=1e-9, timetable=timetable), None, None, Look()).fit()
    assert steps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def goes_on(make: Any, folder: Path, judge: Judge | None, *watch: Any, loader: Any = None, **changes: Any) -> Trainer:
    """A new process that continues what lies in a folder."""
    saved = read_checkpoint(folder / "weights/last.pt")
    assert saved.training is not None
    torch.manual_seed(99)  # it has another past
    task = make()
    for parameter in task.parameters():
        parameter.data.normal_()  # a frozen teacher is not among them: it comes from its own file
    resumed = trainer(task, plan(folder, **changes), judge, loader, *watch)
    resumed.resume(saved.state, saved.training)
    return resumed


def assert_validated_again(folder: Path) -> None:
    """The run in `told`, of two epochs, ended when it validated the first; it goes on from there and lost nothing."""
    terms = Terms()
    resumed = goes_on(detection, folder / "told", Judge(0.1, 0.2), terms, epochs=2)
    resumed.fit()
    assert len(terms.losses) == 3  # of the second epoch
    through = trainer(detection(), plan(folder / "through", epochs=2), Judge(0.1, 0.2))
    through.fit()
    assert_same(through, resumed)


def assert_same(through: Trainer, resumed: Trainer) -> None:
    for one, other in ((through.task, resumed.task), (through.ema.model, resumed.ema.model)):
        for (key, value), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(value, again) if isinstance(value, Tensor) else value == again, key
    ends = [read_checkpoint(run.weights / "last.pt").state for run in (through, resumed)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    class Same(Loader):
        def set_epoch(self, epoch: int, mosaic: bool = True, first: int = 0) -> None:
            """The same three batches in every epoch."""

    task, terms = detection(), Terms()
    recipe = Recipe("AdamW", 0.002, 0.9, 0.0)
    timetable = Timetable(recipe, Hyp(warmup_epochs=0), "linear", batch_size=64)
    settings = plan(tmp_path, epochs=16, timetable=timetable)
    Trainer(task, build_optimizer(task, recipe, 5e-4), Same(), None, settings, [terms]).fit()
    assert sum(terms.losses[-3:]) < 0.8 * sum(terms.losses[:3])


def test_the_end_leaves_a_half_precision_student_alone(tmp_path: Path) -> None:
    outcome = trainer(distillation(), plan(tmp_path), Judge(0.1, 0.3, 0.2)).fit()
    for path in (outcome.best, outcome.last):
        content = torch.load(path, weights_only=True)
        assert "training" not in content
        assert all(key.startswith("model.") for key in content["model"])
        kept = {k: v.dtype for k, v in content["model"].items() if v.is_floating_point() and k != "model.24.anchors"}
        assert set(kept.values()) == {torch.float16}
    model, _ = load_model(str(outcome.best))
    assert len(model.model) == len(distillation().model.model)


def test_while_it_runs_last_holds_what_resume_needs_and_a_student_alone(tmp_path: Path) -> None:
    task = distillation()
    with pytest.raises(ConnectionError):
        trainer(task, plan(tmp_path), Judge(0.1), None, Crash(epoch=1)).fit()
    content = torch.load(tmp_path / "weights/last.pt", weights_only=True)
    assert any(key.startswith("courses.0.pairs.") for key in content["training"]["task"])
    assert content["model"].keys() == task.model.state_dict().keys()
    assert content["training"]["epoch"] == 1


def test_best_is_the_best_epoch(tmp_path: Path) -> None:
    outcome = trainer(detection(), plan(tmp_path), Judge(0.1, 0.3, 0.2)).fit()
    assert outcome.best_epoch == 1
    assert torch.load(outcome.best, weights_only=True)["metrics"]["metrics/mAP50"] == pytest.approx(0.3)


def test_patience_stops_and_is_told(tmp_path: Path) -> None:
    outcome = trainer(detection(), plan(tmp_path, epochs=9, patience=2), Judge(0.1, 0.3, 0.2, 0.2)).fit()
    assert outcome.stopped_early
    assert outcome.epochs_run == 4
    assert "training" not in torch.load(outcome.last, weights_only=True)


def test_validation_is_skipped_between_periods_and_never_at_the_end(tmp_path: Path) -> None:
    judge = Judge(0.1, 0.2)
    trainer(detection(), plan(tmp_path, epochs=3, val_period=2), judge).fit()
    assert judge.verdicts == []


# -- numbers that are not finite --------------------------------------------------------------------------------------


class Broken(nn.Module):
    """A loss with one term that is fine, and one that is not for as long as `until` steps."""

    def __init__(self, until: float = math.inf, gradient_only: bool = False) -> None:
        super().__init__()
        self.until = until
        self.gradient_only = gradient_only
        self.calls = 0

    def forward(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        mean = torch.stack([level.mean() for level in prediction.levels]).mean()
        bad = (mean * 0).sqrt() if self.gradient_only else mean * float("nan")  # of which the gradient is infinite
        return {"box": bad if self.calls <= self.until else mean, "obj": mean * 0 + 0.41}


@pytest.mark.parametrize("precision", [None, torch.float16], ids=["float32", "fp16"])
@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_nothing_but_a_count(
    tmp_path: Path, gradient_only: bool, precision: torch.dtype | None
) -> None:
    before = {key: value.clone() for key, value in detection().model.state_dict().items()}
    task = DetectionTask(detection().model, Broken(gradient_only=gradient_only))
    records: list[Any] = []

    class Records(Callback):
        def on_epoch_end(self, trainer: Trainer, record: Any) -> None:
            records.append(record)

    run = trainer(task, plan(tmp_path, epochs=1, precision=precision), None, None, Records())
    run.fit()
    for state in (task.model.state_dict(), run.ema.model.state_dict()):
        assert all(torch.equal(value, before[key]) for key, value in state.items())  # batch statistics, too
    assert records[0].skipped == 3
    assert records[0].row()["skipped"] == 3
    assert records[0].optimizer_steps == 0


def test_a_loss_that_is_not_finite_is_no_step_though_its_gradient_is_finite(tmp_path: Path) -> None:
    class Offset(Broken):
        def forward(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
            terms = super().forward(prediction, batch)
            return terms if self.calls > 2 else {**terms, "obj": terms["obj"] + math.inf}

    moved: list[bool] = []

    class Weights(Callback):
        def on_step_end(self, trainer: Trainer, *rest: Any) -> None:
            moved.append(not torch.equal(trainer.task.model.state_dict()[key], before))

    task = DetectionTask(detection().model, Offset(until=0))
    key = next(key for key in task.model.state_dict() if key.endswith("conv.weight"))
    before = task.model.state_dict()[key].clone()
    run = trainer(task, plan(tmp_path, epochs=1, precision=torch.float16), None, None, Weights())
    run.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)  # of which no gradient overflows
    run.fit()
    assert moved == [False, False, True]
    assert run.stepper.scaler.get_scale() == 4.0


def test_one_bad_batch_costs_its_step_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    terms = Terms()
    run = trainer(DetectionTask(detection().model, Broken(until=1)), plan(tmp_path, epochs=1), None, None, terms)
    run.fit()
    assert run.stepper.count == 2
    assert "epoch 1, step 1 is skipped: box nan not finite" in caplog.text
    assert all(value.isfinite().all() for value in run.task.model.state_dict().values())


def test_a_bad_batch_takes_those_with_it_whose_gradient_waited(tmp_path: Path) -> None:
    class Second(Broken):
        def forward(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
            self.until = 2 if self.calls == 1 else 0
            return super().forward(prediction, batch)

    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_epochs=0), "linear", batch_size=16)  # 4 a step
    task = DetectionTask(detection().model, Second(until=0))
    run = trainer(task, plan(tmp_path, epochs=1, timetable=timetable), None, Loader(6))
    run.fit()
    assert run.stepper.count == 1  # batches 3 to 6


def test_after_many_bad_steps_the_run_goes_back_and_learns_more_slowly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_step_end(self, trainer: Trainer, progress: Progress, batch: Batch, terms: dict[str, float]) -> None:
            rates.append(trainer.stepper.optimizer.param_groups[0]["lr"])

    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_epochs=0), "linear", batch_size=64)
    settings = plan(tmp_path, epochs=1, timetable=timetable)
    task = DetectionTask(detection().model, Broken(until=FAILURES))
    run = trainer(task, settings, None, Loader(FAILURES + 2), Rates())
    outcome = run.fit()
    assert f"going back to {tmp_path}/weights/last.pt (epoch 1) with 0.5 times the learning rate" in caplog.text
    assert rates == [0.01] * (FAILURES - 1) + [0.005] * (FAILURES + 2)  # the one that sends it back is not told
    assert outcome.epochs_run == 1
    assert run.stepper.count == FAILURES + 2


def test_a_run_that_does_not_recover_ends_and_names_the_terms(tmp_path: Path) -> None:
    task = DetectionTask(detection().model, Broken())
    table = CsvTable(tmp_path / "results.csv")
    run = trainer(task, plan(tmp_path, epochs=9), None, Loader(8), table)
    with pytest.raises(UserError, match=r"after 3 returns .* last at epoch 3, step 4: box nan not finite\. Lower lr0"):
        run.fit()
    assert task.criterion.calls == 4 * FAILURES
    assert [row["epoch"] for row in table.rows] == ["1", "2"]
    saved = read_checkpoint(tmp_path / "weights/last.pt")
    assert all(value.isfinite().all() for value in saved.state.values())


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    run = trainer(DetectionTask(detection().model, Broken()), plan(tmp_path, save=False, epochs=9), None, Loader(8))
    with pytest.raises(UserError, match=r"step after step; last at epoch 3, step 4: box nan"):
        run.fit()


@pytest.mark.parametrize("formats", [(None, torch.float16), (torch.float16, None)], ids=["to fp16", "from fp16"])
def test_a_run_goes_on_in_another_number_format(tmp_path: Path, formats: tuple[Any, Any]) -> None:
    crashed = trainer(detection(), plan(tmp_path, precision=formats[0]), None, None, Crash(epoch=1))
    with pytest.raises(ConnectionError):
        crashed.fit()
    resumed = goes_on(detection, tmp_path, None, precision=formats[1])
    assert resumed.stepper.scaler.is_enabled() == (formats[1] is torch.float16)
    resumed.fit()
    assert all(value.isfinite().all() for value in resumed.ema.model.state_dict().values())


def test_groups_that_rest_have_no_norm(tmp_path: Path) -> None:
    task = distillation(teachers=(TeacherRole("online"),), schedule=Schedule(off_epochs=1))
    groups = len(task.learners())
    assert groups > 1
    counts: list[int] = []

    class Norms(Callback):
        def on_step_end(self, trainer: Trainer, progress: Progress, *rest: Any) -> None:
            loss = trainer.task(batch(0))["box"]
            loss.backward()
            counts.append(len(trainer.stepper._clip()))
            trainer.stepper.optimizer.zero_grad(set_to_none=True)

    trainer(task, plan(tmp_path, epochs=2), None, Loader(1), Norms()).fit()
    assert counts == [groups - 1, groups - 1]  # of the loss of the student alone


def test_what_differs_between_ranks_is_a_tensor_for_each_number_format(tmp_path: Path) -> None:
    run = trainer(detection(), plan(tmp_path, epochs=1))
    run.fit()
    own = run.stepper.own_state()
    kept = [buffer.clone() for buffer in run.task.buffers()]
    assert set(own["buffers"]) == {str(buffer.dtype) for buffer in kept}
    for buffer in run.task.buffers():
        buffer.zero_()
    run.stepper.take_own_state(own)
    assert all(torch.equal(one, other) for one, other in zip(run.task.buffers(), kept, strict=True))


def test_mosaic_closes_for_the_last_epochs(tmp_path: Path) -> None:
    loader = Loader()
    trainer(detection(), plan(tmp_path, close_mosaic=1), None, loader).fit()
    assert loader.mosaic == [True, True, False]


def test_image_weights_follow_the_last_validation_class_by_class(tmp_path: Path) -> None:
    loader = Loader()
    loader.weights.append("of an earlier run on the same loader")
    trainer(detection(), plan(tmp_path, epochs=2, image_weights=True), Judge(0.5, 0.5), loader).fit()
    _, first, second = loader.weights
    assert first == pytest.approx([1, 1])
    assert second == pytest.approx([1, 0.25])  # nothing in val is of class 0


def test_gradients_accumulate_to_the_nominal_batch_and_the_epoch_ends_with_a_step(tmp_path: Path) -> None:
    timetable = Timetable(Recipe("SGD", 0.01, 0.9, 0.1), Hyp(warmup_epochs=0), "linear", batch_size=32)
    run = trainer(detection(), plan(tmp_path, epochs=1, timetable=timetable), None, Loader(5))
    run.fit()
    assert run.stepper.count == 3  # batches 1+2, 3+4, 5


def test_multi_scale_sizes_are_multiples_of_the_stride_and_repeat(tmp_path: Path) -> None:
    run = trainer(detection(), plan(tmp_path, multi_scale=True))
    sizes = [rescaled(batch(0), Progress(0, step, 3, 20), run.plan).images.shape[2:] for step in range(20)]
    assert len(set(sizes)) > 1
    assert all(side % 32 == 0 and 32 <= side <= 96 for size in sizes for side in size)
    assert sizes == [rescaled(batch(0), Progress(0, step, 3, 20), run.plan).images.shape[2:] for step in range(20)]


def test_frozen_layers_stay(tmp_path: Path) -> None:
    from engine.session import freeze

    task = detection()
    freeze(task.model, (0, 1))
    before = {key: value.clone() for key, value in task.model.named_parameters()}
    trainer(task, plan(tmp_path, epochs=1)).fit()
    moved = {key for key, value in task.model.named_parameters() if not torch.equal(value, before[key])}
    assert not any(key.startswith(("model.0.", "model.1.")) for key in moved)
    assert any(key.startswith("model.2.") for key in moved)


def test_every_term_has_a_column_of_its_own(tmp_path: Path) -> None:
    task = distillation()
    trainer(task, plan(tmp_path, epochs=2), Judge(0.1, 0.2), None, CsvTable(tmp_path / "results.csv")).fit()
    lines = (tmp_path / "results.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert len(lines) == 3
    assert {f"train/{name}" for name in ("box", "obj", "cls", *task.term_names)} <= set(header)
    assert {"epoch", "metrics/mAP50-95", "val/box", "lr/weights", "lr/biases"} <= set(header)


def test_bf16_autocast_trains(tmp_path: Path) -> None:
    terms = Terms()
    trainer(distillation(), plan(tmp_path, epochs=2, precision=torch.bfloat16), None, None, terms).fit()
    assert len(terms.losses) == 6
