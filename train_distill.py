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
from utils.errors import exits_cleanly

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
    from models.weights import load_model
    from utils import dist

    with open_session(options) as session:
        options, hyp = session.options, session.hyp
        use_outputs = hyp.outputs is None or len(hyp.outputs) > 0
        use_features = options.d_feature or not use_outputs

        teacher, _ = load_model(options.t_weights, options.t_cfg or None)
        teacher = teacher.to(session.device)
        student = session.student()
        session.load_data(max(student.stride, teacher.stride))
        validate_teacher(session, teacher)
        if not (use_outputs and takes_anchors(session, student, teacher)):
            session.fit_anchors(student)

        weights: dict[str, Path] = {}
        if options.baseline:
            folder = session.folder / "baseline"
            plain = session.student(folder)
            log.info("first the baseline: the same student, seed and budget, without the teacher")
            weights["baseline"] = session.fit(DetectionTask(plain, session.criterion(plain)), folder).best

        student = session.student()
        criterion = session.criterion(student)
        task = build_distillation(
            student,
            criterion,
            teacher,
            hyp,
            use_outputs=use_outputs,
            use_features=use_features,
            gains=criterion.gains,
            teacher_dtype=teacher_precision(session.device, session.precision),
        )
        weights["student"] = session.fit(task).best
        weights["teacher"] = Path(options.t_weights)
        if dist.is_main():
            compare(session, weights)


def validate_teacher(session: Session[DistillOptions], teacher: Model) -> None:
    """Scores the teacher before anything is trained, so that a wrong one is seen at once."""
    if session.evaluator is None or session.resuming:
        return
    scores = session.evaluator(teacher).evaluation
    log.info("teacher %s: mAP50 %.3f, mAP50-95 %.4f on val", session.options.t_weights, scores.map50, scores.map)
    if scores.map50 < 0.01:
        log.warning("the teacher finds next to nothing here: is it trained on these classes and this kind of images?")


def takes_anchors(session: Session[DistillOptions], student: Model, teacher: Model) -> bool:
    """Gives every student of this run the teacher's anchors, without which outputs cannot be compared.

    Left alone where the recipe or --cfg names anchors, and where the two heads have different levels or numbers of
    anchors: `distill/outputs` says then what can be done.
    """
    own, other = student.head.anchors_px, teacher.head.anchors_px.to(student.head.anchors.device)
    if session.resuming or session.hyp.anchors is not None or own.shape != other.shape:
        return False
    if not own.allclose(other, atol=0.01):
        log.info("the student takes the teacher's anchors, so that their outputs can be compared")
    session.anchors = other.flatten(1).tolist()
    return True


def compare(session: Session[DistillOptions], weights: dict[str, Path]) -> None:
    """Ends with student, teacher and baseline side by side: table, metrics.json, picture."""
    from distill.compare import conclude, contender
    from engine.report import draw_report

    contenders, found = [], {}
    for role in ("student", "teacher", "baseline"):
        if role in weights:
            model, report = session.score(weights[role])
            found[role] = report.detections
            contenders.append(contender(weights[role], role, model, report.evaluation, report.speed_ms[1]))
            if role == "student" and not session.options.noplots:
                draw_report(report, session.data.names, session.folder)
    print(conclude(contenders, found, session.data.names, session.folder, picture=not session.options.noplots))


if __name__ == "__main__":
    main()
