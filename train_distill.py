"""Trains a student that a bigger, trained teacher makes better.

    python train_distill.py                                              # a demonstration, minutes on a laptop
    python train_distill.py --weights yolov5s.pt --t_weights yolov5m.pt --data data/coco.yaml --d_feature
    python train_distill.py --weights yolov5n.pt --t_weights best.pt --data mine.yaml --hyp finetune --baseline
    torchrun --nproc_per_node 8 train_distill.py ...                     # same arguments
    python train_distill.py --resume                                     # the last run, or a path

--d_output distils the teacher's outputs, --d_feature outputs and feature maps; `outputs: {}` in hyp leaves features
only. --baseline first trains the same student with the same seed and budget without a teacher, and ends with both
side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.options import DistillOptions, distill_options
from utils.errors import UserError, exits_cleanly

if TYPE_CHECKING:
    from engine.run import Session
    from models.yolo import Model

log = logging.getLogger(__name__)


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = distill_options(argv)  # before torch is imported: --help and a misspelt flag answer at once
    from distill.task import build_distillation
    from engine.precision import teacher_precision
    from engine.run import open_session
    from engine.task import DetectionTask
    from models.weights import resolve_weights
    from utils import dist

    with open_session(options) as session:
        options, hyp = session.options, session.hyp
        use_outputs = hyp.outputs is None or len(hyp.outputs) > 0
        if options.d_output and not use_outputs and not options.d_feature:
            raise UserError(f"--d_output: {options.hyp} says outputs: {{}}, so nothing is left; name a method there")
        use_features = options.d_feature or not use_outputs

        teacher = load_teacher(session)
        student = session.student()
        session.load_data(max(student.stride, teacher.stride))
        if not (use_outputs and takes_anchors(session, student, teacher)):
            session.fit_anchors(student)
        criterion = session.criterion(student)
        task = build_distillation(  # before the baseline: what does not fit together is said at once
            student,
            criterion,
            teacher,
            hyp,
            use_outputs=use_outputs,
            use_features=use_features,
            gains=criterion.gains,
            teacher_dtype=teacher_precision(session.device, session.precision),
        )
        knows_classes = validate_teacher(session, teacher, needed=use_outputs)

        weights: dict[str, Path] = {}
        if options.baseline:
            folder = session.folder / "baseline"
            plain = session.student(folder)
            log.info("first the baseline: the same student, seed and budget, without the teacher")
            weights["baseline"] = session.fit(DetectionTask(plain, session.criterion(plain)), folder).best

        weights["student"] = session.fit(task).best
        if knows_classes:
            weights["teacher"] = resolve_weights(options.t_weights)
        if dist.is_main():
            compare(session, weights)


def load_teacher(session: Session[DistillOptions]) -> Model:
    """The teacher on the device; tensors that its file did not fill are a warning."""
    from models.summary import describe, layer_table
    from models.weights import load_model

    teacher, report = load_model(session.options.t_weights, session.options.t_cfg or None)
    if report is not None and report.skipped:
        log.warning("teacher %s: %s", session.options.t_weights, report.line())
    log.info("teacher %s", f"\n{layer_table(teacher)}" if session.options.verbose else describe(teacher))
    return teacher.to(session.device)


def validate_teacher(session: Session[DistillOptions], teacher: Model, needed: bool) -> bool:
    """Scores the teacher before anything is trained, so that a wrong one is seen at once.

    Args:
        needed: its classes must be the data's; a teacher of features alone may know others.

    Returns:
        Whether it can be scored; on rank 0.
    """
    if session.evaluator is None:
        return False
    name = session.options.t_weights
    try:
        scores = session.evaluator(teacher).evaluation
    except UserError as error:
        if needed:
            raise UserError(f"teacher {name}: {error}") from error
        log.info("teacher %s: not scored, it knows other classes; its features are used all the same", name)
        return False
    log.info("teacher %s: mAP50 %.3f, mAP50-95 %.4f on val", name, scores.map50, scores.map)
    if scores.map50 < 0.01:
        log.warning("the teacher finds next to nothing here: is it trained on these classes and this kind of images?")
    return True


def takes_anchors(session: Session[DistillOptions], student: Model, teacher: Model) -> bool:
    """Gives this and every later student of the run the teacher's anchors, without which outputs cannot be compared.

    At the strides that both have. Left alone where the recipe or a model file of the user's own asks for others, and
    where the numbers of anchors differ: `distill/outputs` says then what can be done.
    """
    from distill.levels import by_stride
    from distill.outputs.base import head_strides

    own, other = student.head, teacher.head
    if session.continues() or own.num_anchors != other.num_anchors:
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


def compare(session: Session[DistillOptions], weights: dict[str, Path]) -> None:
    """Ends with student, teacher and baseline side by side: table, metrics.json, picture."""
    from distill.compare import conclude, contender
    from engine.report import draw_report

    contenders, found = [], {}
    for role in ("student", "teacher", "baseline"):
        if role in weights:
            model, report = session.score(weights[role], session.options.t_cfg if role == "teacher" else "")
            found[role] = report.detections
            contenders.append(contender(weights[role], role, model, report.evaluation, report.speed_ms[1]))
            if role == "student" and not session.options.noplots:
                draw_report(report, session.data.names, session.folder)
    print(conclude(contenders, found, session.data.names, session.folder, picture=not session.options.noplots))


if __name__ == "__main__":
    main()
