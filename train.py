"""Trains a detector, without a teacher.

    python train.py --weights yolov5n.pt --data data/coco128.yaml --imgsz 640 --epochs 100
    python train.py --weights '' --cfg yolov5n --data mine.yaml --hyp hyp/scratch-low.yaml
    python train.py --weights yolov5s.pt --data mine.yaml --hyp hyp/finetune.yaml --optimizer auto
    torchrun --nproc_per_node 8 train.py ...            # same arguments
    python train.py --resume                            # the last run, or a path

Without arguments it trains a small student on a data set that the repository draws by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.options import train_options
from utils.errors import exits_cleanly


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = train_options(argv)  # before torch is imported: --help and a misspelt flag answer at once
    from distill.compare import write_metrics
    from engine.run import open_session
    from engine.task import DetectionTask
    from utils import dist

    with open_session(options) as session:
        session.tell_ignored_distillation_keys()
        model = session.student()
        session.load_data(model.stride)
        session.fit_anchors(model)
        outcome = session.fit(DetectionTask(model, session.criterion(model)))
        if dist.is_main():
            pass
            write_metrics(outcome.folder / "metrics.json", [student])


if __name__ == "__main__":
    main()
