"""Every benchmark of speed, one after the other, as one page.

    python -m benchmarks --data bccd.yaml --photographs coco128.yaml --weights yolov5n.pt \
        --peer yolov5=PYTHON ultralytics=PYTHON --out speed.md

Each is a script of this folder and a process of its own, so that none finds a machine that another has warmed up; what
each means stands at the top of its file. The page is written anew after each of them. About 50 minutes on two cores
with both peers; `--only steps` runs one. Exit status 1: some failed, the page says which.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from utils.errors import exits_cleanly
from utils.files import ROOT, write_text
from utils.registry import find

Words = list[str]
LAST_LINES = 5  # of the errors of a benchmark that failed


def runs(options: argparse.Namespace) -> list[Words]:
    return [["runs.py", "--data", options.data, *_peers(options)]]


def steps(options: argparse.Namespace) -> list[Words]:
    models = ["--models", "yolov5n", "yolov5s", "yolov5m", "yolov8n", "yolov8s"]
    return [["steps.py", "--data", options.data, *models, *_peers(options)]]


def pipeline(options: argparse.Namespace) -> list[Words]:
    return [["pipeline.py", "--data", options.data, "--imgsz", size, *_peers(options)] for size in ("640", "320")]


def validation(options: argparse.Namespace) -> list[Words]:
    data = options.photographs or options.data
    return [["validation.py", "--data", data, "--weights", options.weights, *_peers(options, "yolov5")]]


def startup(options: argparse.Namespace) -> list[Words]:
    return [["startup.py", "--data", options.data, *_peers(options)]]


def feeding(options: argparse.Namespace) -> list[Words]:
    return [["feeding.py", "--data", options.data]]


def workers(options: argparse.Namespace) -> list[Words]:
    return [["workers.py", *_peers(options)]]


# in the order of the page
SECTIONS: Mapping[str, tuple[str, Callable[[argparse.Namespace], list[Words]]]] = {
    "runs": ("Whole trainings", runs),
    "steps": ("Training step, overhead of a teacher, memory", steps),
    "pipeline": ("Input pipeline", pipeline),
    "feeding": ("Augmentation on the device", feeding),
    "validation": ("Validation", validation),
    "startup": ("Start-up", startup),
    "workers": ("Memory of loader workers", workers),
}


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    for name in options.only:
        find("benchmark", name, SECTIONS)
    page: dict[str, list[str]] = {}
    good = True
    commands = [(name, words) for name in options.only or SECTIONS for words in SECTIONS[name][1](options)]
    for name, words in (bar := tqdm(commands, unit="benchmark")):
        bar.set_postfix_str(" ".join(words[:1]))
        ended, text = run(words)
        good &= ended
        page.setdefault(name, []).append(text)
        write_text(options.out, render(page))
    print(render(page))
    if not good:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", required=True, help="what is trained on")
    made.add_argument("--weights", default="yolov5n.pt", help="what is validated")
    made.add_argument("--photographs", default="", help="what it is validated on, if not --data")
    made.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    made.add_argument("--only", nargs="+", default=[], metavar="NAME", help=", ".join(SECTIONS))
    made.add_argument("--out", type=Path, default=Path("runs/speed.md"))
    return made


def run(words: Words) -> tuple[bool, str]:
    """Whether a script ended well, and what it printed; of one that failed the end of its errors."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / words[0]), *words[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return True, done.stdout.strip()
    lines = [line.rpartition("\r")[2] for line in done.stderr.splitlines() if line.strip()][-LAST_LINES:]
    return False, "\n".join([f"**Failed**: {words[0]}", "", *(f"    {line}" for line in lines)])


def render(page: Mapping[str, Sequence[str]]) -> str:
    """Markdown: a heading a benchmark, what its runs printed below."""
    parts = [f"## {SECTIONS[name][0]}\n\n" + "\n\n".join(texts) for name, texts in page.items()]
    return "\n\n".join(parts) + "\n"


def _peers(options: argparse.Namespace, *known: str) -> Words:
    """`--peer` with those that were named; of these, those that a script knows."""
    named = [word for word in options.peer if not known or word.partition("=")[0] in known]
    return ["--peer", *named] if named else []


if __name__ == "__main__":
    main()
