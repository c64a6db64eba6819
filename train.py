"""Trains a detector, without a teacher.

    python train.py --weights yolov5n.pt --data data/coco128.yaml --imgsz 640 --epochs 100
    python train.py --weights '' --cfg yolov5n --data mine.yaml --hyp hyp/scratch-low.yaml
    python train.py --weights yolov5s.pt --data mine.yaml --hyp hyp/finetune.yaml --optimizer auto
    torchrun --nproc_per_node 8 train.py ...            # same arguments
    python train.py --resume                            # the last run, or a path

Without arguments it trains a small student on a data set that the repository draws by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.options import train_options
from utils.errors import exits_cleanly

if TYPE_CHECKING:
    from engine.session import Session

log = logging.getLogger(__name__)


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = train_options(argv)  # before torch is imported: --help and a misspelt flag answer at once
    from engine.run import open_session
    from engine.task import DetectionTask
    from utils.hyp import distillation_keys

    with open_session(options) as session:
        if keys := distillation_keys(session.hyp):
            log.info("train.py has no teacher: %s of the recipe are ignored", ", ".join(keys))
        model = session.student()
        session.load_data(model.stride)
        session.fit_anchors(model)
        task = DetectionTask(model, session.criterion(model))
        outcome = session.fit(task, hyp=replace(session.hyp, phases=()))
        conclude(session, outcome.best)


def conclude(session: Session, best: Path) -> None:
    """Scores the best weights once more, as they will be deployed: table, metrics.json, figures."""
    from distill.compare import class_table, contender, write_metrics
    from engine.report import draw_report
    from utils import dist

    model, report = session.score(best)
    if not dist.is_main():
        return
    student = contender(best, "student", model, report.evaluation, report.speed_ms[1])
    write_metrics(session.folder / "metrics.json", [student])
    if not session.options.noplots:
        draw_report(report, session.data.names, session.folder)
    print(f"\n{class_table(report.evaluation)}\n\nweights: {best}\nresults: {session.folder}")


if __name__ == "__main__":
    main()
