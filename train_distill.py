"""Trains a student that a bigger, trained teacher makes better.

    python train_distill.py                                              # a demonstration, minutes on a laptop
    python train_distill.py --weights yolov5s.pt --t_weights yolov5m.pt --data data/coco.yaml --d_feature
    python train_distill.py --weights yolov5n.pt --t_weights best.pt --data mine.yaml --hyp finetune --baseline
    python train_distill.py --weights yolov5n.pt --t_weights best.pt --data mine.yaml --d_output bckd kl --d_feature fgd
    python train_distill.py --weights yolov5n.pt --t_weights a.pt b.pt --data mine.yaml   # two teachers
    python train_distill.py --weights yolov5n.pt --t_cfg yolov5s --t_kind online --data mine.yaml
    torchrun --nproc_per_node 8 train_distill.py ...                     # same arguments
    python train_distill.py --resume                                     # the last run, or a path

--d_output distils the teacher's outputs, --d_feature its feature maps too. Both take names of methods
(docs/methods.md), else those of the recipe, else the default; `--d_output none --d_feature` distils features alone.
--baseline first trains the same student with the same seed and budget without a teacher, and ends with both side by
side.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.callbacks import Callback, EpochRecord
from engine.options import DistillOptions, distill_options
from utils.errors import UserError, exits_cleanly

if TYPE_CHECKING:
    from distill.teacher import Teacher
    from engine.session import Session
    from engine.trainer import Trainer
    from models.yolo import Model
    from utils.hyp import TeacherRole

log = logging.getLogger(__name__)


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = distill_options(argv)  # before torch is imported: --help and a misspelt flag answer at once
    from distill.build import build_distillation
    from engine.run import open_session
    from engine.task import DetectionTask
    from models.weights import resolve_weights
    from utils import dist

    with open_session(options) as session:
        options, hyp = session.options, session.hyp
        use_outputs = hyp.outputs is None or len(hyp.outputs) > 0
        teachers = load_teachers(session)
        student = session.student()
        session.load_data(max(one.stride for one in (student, *teachers)), unlabelled=True)
        settle_anchors(session, student, teachers, use_outputs)
        criterion = session.criterion(student)
        task = build_distillation(  # before the baseline: what does not fit together is said at once
            student,
            criterion,
            teachers,
            hyp,
            gains=criterion.gains,
            epochs=options.epochs,
            frozen=frozen_teacher(session),
            criterion_of=session.criterion,
        )
        session.settle_batch(task)  # which the baseline shares, though it takes less
        if hyp.pseudo_labels is not None and not session.data.unlabelled:
            log.warning("pseudo_labels: %s has no unlabelled images, so there is nothing to label", options.data)
        scored = []
        for (weights, cfg), teacher, role in zip(options.teachers(), teachers, others(session), strict=True):
            if role.kind == "frozen" and validate_teacher(session, weights, teacher, needed=use_outputs):
                scored.append((resolve_weights(weights), cfg))
            if role.kind == "frozen":
                teacher.cpu()  # its guide is a copy

        baseline: list[tuple[str, Path, str]] = []
        if options.baseline:
            folder = session.folder / "baseline"
            plain = session.student(folder)
            log.info("first the baseline: the same student, seed and budget, without the teacher")
            if session.data.unlabelled:
                log.info("unlabelled images are in the baseline's batches, too, and teach it nothing")
            plain_task = DetectionTask(plain, session.criterion(plain))
            baseline.append(("baseline", session.fit(plain_task, folder, hyp=replace(hyp, phases=())).best, ""))

        outcome = session.fit(task, callbacks=(KeepTeachers(),))
        files = [outcome.best.with_name(f"{name}.pt") for name in map(str, task.own_terms)]
        learned = dist.by_main(lambda: [(path, "") for path in files if path.exists()])
        teacher_rows = [("teacher", path, cfg) for path, cfg in scored + learned]
        compare(session, [("student", outcome.best, ""), *teacher_rows, *baseline])


class KeepTeachers(Callback):
    """Writes what teachers that learned have become: teacher.pt, teacher_t2.pt ... beside best.pt."""

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        """Before last.pt is written as that of a run that is complete."""
        from distill.guides import OnlineTeacher
        from engine.checkpoint import save

        if not record.final:
            return
        for course in trainer.task.courses:
            guide, plan = course.guide, trainer.plan
            if isinstance(guide, OnlineTeacher):
                model = guide.model if guide.average is None else guide.average.model
                path = trainer.weights / f"{course.own_term}.pt"
                save(path, model, options=plan.options or {}, hyp=plan.hyp or {}, metrics={}, half=True)
                log.info("the teacher that learned along: %s", path)


def others(session: Session[DistillOptions]) -> list[TeacherRole]:
    """The roles of teachers that are not the student itself, in the order of --t_weights."""
    return [role for role in session.hyp.teachers if role.kind != "self"]


def load_teachers(session: Session[DistillOptions]) -> list[Model]:
    """The teachers on the student's device; tensors that a file did not fill are a warning."""
    from models.summary import describe, layer_table
    from models.weights import load_model
    from utils.reproduce import seed_everything

    require_same_teachers(session)
    seed_everything(session.options.seed)  # for weights that no file fills
    teachers = []
    for (weights, cfg), role in zip(session.options.teachers(), others(session), strict=True):
        if role.kind == "online":  # it learns this data, as the student does
            data = session.data
            names = data.names if data.named else None
            teacher, report = load_model(
                weights, cfg or None, num_classes=data.num_classes, names=names, anchors_from_cfg=True
            )
        else:
            teacher, report = load_model(weights, cfg or None)
        if report is not None and report.skipped:
            log.warning("teacher %s: %s", weights, report.line())
        log.info("teacher %s", f"\n{layer_table(teacher)}" if session.options.verbose else describe(teacher))
        teachers.append(teacher.to(session.device))
    return teachers


def require_same_teachers(session: Session[DistillOptions]) -> None:
    """Writes down what the teachers' files hold; a run that goes on is refused others, unless --t_weights names them.

    Raises:
        UserError: a file is gone, or holds something else than at the start of the run.
    """
    from models.weights import resolve_weights
    from utils import dist
    from utils.config import write_mapping
    from utils.files import digest
    from utils.yaml_file import read_yaml

    file, options = session.folder / "teachers.yaml", session.options
    known = dist.from_main(read_yaml(file) if dist.is_main() and session.resuming and file.exists() else {})
    found = {}
    for number, (weights, _) in enumerate(options.teachers()):
        if not weights:
            continue
        try:
            found[f"teacher {number + 1}"] = now = digest(resolve_weights(weights))
        except UserError as error:
            if not session.resuming:
                raise
            raise UserError(f"{error}; if it has moved, say where: --t_weights") from error
        before = str(known.get(f"teacher {number + 1}", now))
        if before != now and "t_weights" not in options.explicit:
            raise UserError(
                f"teacher {weights}: not what it was when this run began (SHA-256 {now[:8]}, expected {before[:8]}); "
                "bring that file back, or say by --t_weights that the run is to go on with this one"
            )
        if before != now:
            log.warning("teacher %s: another one than so far in this run", weights)
    if dist.is_main() and found != known:
        write_mapping(file, found)
    if dist.is_main() and session.resuming and "t_weights" in options.explicit:
        own = session.folder / "opt.yaml"
        write_mapping(own, read_yaml(own) | {"t_weights": list(options.t_weights)})  # for the next time


def frozen_teacher(session: Session[DistillOptions]) -> Callable[[Model], Teacher]:
    """Makes a frozen guide of a model: its number format, device and image size are this run's."""
    from distill.teacher import Teacher, image_scale
    from engine.precision import find_device, teacher_precision

    options = session.options
    device = find_device(options.t_device, "--t_device") if options.t_device else session.device
    size = (options.t_imgsz[0], options.t_imgsz[1]) if options.t_imgsz else session.image_size
    return functools.partial(
        Teacher,
        half=teacher_precision(device, session.precision),
        device=device,
        home=session.device,
        image_scale=image_scale(size, session.image_size),
    )


def validate_teacher(session: Session[DistillOptions], name: str, teacher: Model, needed: bool) -> bool:
    """Scores a teacher before anything is trained, so that a wrong one is seen at once.

    Args:
        needed: its classes must be the data's; a teacher of features alone may know others.

    Returns:
        Whether it can be scored.
    """
    from utils import dist

    assert session.evaluator is not None, "`load_data` makes it"
    try:
        scores = session.evaluator(teacher).evaluation
    except UserError as error:
        if needed:
            raise UserError(f"teacher {name}: {error}") from error
        log.info("teacher %s: not scored, it knows other classes; its features are used all the same", name)
        return False
    log.info("teacher %s: mAP50 %.3f, mAP50-95 %.4f on val", name, scores.map50, scores.map)
    if scores.map50 < 0.01 and dist.is_main():
        log.warning("the teacher finds next to nothing here: is it trained on these classes and this kind of images?")
    return True


def settle_anchors(
    session: Session[DistillOptions], student: Model, teachers: Sequence[Model], use_outputs: bool
) -> None:
    """The student's anchors: those of a frozen teacher whose outputs are imitated, else its own, checked or new ones.

    Teachers that learn along then have the student's, or their own where the student has none.
    """
    import torch

    frozen = [teacher for teacher, role in zip(teachers, others(session), strict=True) if role.kind == "frozen"]
    keeps_own = bool(session.options.anchors) or not use_outputs or not frozen
    if keeps_own or not takes_anchors(session, student, frozen[0]):
        session.fit_anchors(student)
    for teacher in (teacher for teacher in teachers if teacher not in frozen and not teacher.spec.anchor_free):
        own, other = student.head, teacher.head
        if student.spec.anchor_free:
            session.fit_anchors(teacher)
        elif other.anchors.shape == own.anchors.shape and torch.equal(other.strides, own.strides):
            other.set_anchors_px(own.anchors_px)


def takes_anchors(session: Session[DistillOptions], student: Model, teacher: Model) -> bool:
    """Gives this and every later student of the run the teacher's anchors, so that outputs are compared one to one.

    At the strides that both have. Left alone where the recipe or a model file of the user's own asks for others, and
    where the numbers of anchors differ: then each takes from the teacher's nearest (`distill/translate.py`).
    """
    from distill.levels import by_stride
    from distill.outputs.base import head_strides

    own, other = student.head, teacher.head
    if session.continues() or student.spec.anchor_free or teacher.spec.anchor_free:
        return False
    if own.num_anchors != other.num_anchors:
        return False
    anchors, taught = own.anchors_px.clone(), other.anchors_px.to(own.anchors.device)
    for level, teachers in by_stride(head_strides(own), head_strides(other)):
        anchors[level] = taught[teachers]
    if not own.anchors_px.allclose(anchors, atol=0.01):
        own_file = Path(session.options.cfg).is_file() and not own.provisional
        if session.hyp.anchors is not None or own_file:
            return False
        log.info("the student takes the teacher's anchors, so that their outputs can be compared")
    own.set_anchors_px(anchors)
    session.anchors = anchors.flatten(1).tolist()
    return True


def compare(session: Session[DistillOptions], rows: Sequence[tuple[str, Path, str]]) -> None:
    """Ends with student, teachers and baseline side by side: table, metrics.json, picture.

    Args:
        rows: role, weights, and the architecture where the file does not say.
    """
    from distill.compare import conclude, contender
    from engine.report import draw_report
    from utils import dist

    contenders, found = [], {}
    for role, weights, cfg in rows:
        model, report = session.score(weights, cfg)
        if not dist.is_main():
            continue
        found.setdefault(role, report.detections)
        contenders.append(contender(weights, role, model, report.evaluation, report.speed_ms[1]))
        if role == "student" and not session.options.noplots:
            draw_report(report, session.data.names, session.folder)
    if contenders:
        print(conclude(contenders, found, session.data.names, session.folder, picture=not session.options.noplots))


if __name__ == "__main__":
    main()
