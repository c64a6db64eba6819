"""Trains a student that a bigger, trained teacher makes better.

    python train_distill.py                                                           # a demonstration, minutes on a laptop
    python train_distill.py --weights yolov5s.pt --t_weights yolov5m.pt --data data/coco.yaml --d_feature
    python train_distill.py --weights yolov5n.pt --t_weights best.pt --data mine.yaml --hyp hyp/finetune.yaml --baseline
    torchrun --nproc_per_node 8 train_distill.py ...                                  # same arguments
    python train_distill.py --resume                                                  # the last run, or a path

--d_output distils the teacher's outputs, --d_feature outputs and feature maps; `outputs: {}` in hyp leaves features
only. --baseline first trains the same student with the same seed and budget without a teacher, and ends with both
side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.options import distill_options
from utils.errors import exits_cleanly


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = distill_options(argv)  # before torch is imported: --help and a misspelt flag answer at once
    from distill.compare import show
    from distill.task import build_distillation
    from engine.run import open_session
    from engine.task import DetectionTask
    from utils import dist

    with open_session(options) as session:
        teacher = session.teacher()
        student = session.student()
        session.load_data(max(student.stride, teacher.stride))
        session.validate_teacher(teacher)
        session.fit_anchors(student, teacher)

        contenders = []
        if options.baseline:
            folder = session.folder / "baseline"
            plain = session.student(folder)
            outcome = session.fit(DetectionTask(plain, session.criterion(plain)), folder)
            contenders.append((outcome.best, "baseline"))

        student = session.student()
        criterion = session.criterion(student)
        task = build_distillation(
            student,
            criterion,
            teacher,
            session.hyp,
            use_outputs=session.use_outputs,
            use_features=session.use_features,
            gains=criterion.gains,
            teacher_dtype=session.teacher_dtype,
        )
        outcome = session.fit(task)
        if dist.is_main():
            contenders = [(outcome.best, "student"), (options.t_weights, "teacher"), *contenders]
            show([session.contender(weights, role) for weights, role in contenders], session.folder)


if __name__ == "__main__":
    main()
