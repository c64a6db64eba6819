"""What a teacher is worth: student and baseline at equal budget, several seeds, mean and spread.

    python benchmarks/gain.py --seeds 0 1 2 --split test --out runs/gain -- \
        --weights yolov5n.pt --t_weights best.pt --data mine.yaml --imgsz 320 --epochs 20 --hyp finetune --d_feature

Everything behind `--` goes to `train_distill.py --baseline`, once a seed. Training selects its best epoch on val; the
table reports the split asked for. A seed whose results are there is not trained again, so an interrupted benchmark
goes on where it stopped. Prints a Markdown table and writes it beside the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SCORES = ("mAP50-95", "mAP50", "precision", "recall")
ROLES = ("baseline", "student", "teacher")

Results = dict[str, dict[str, float]]  # role -> score -> value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=("val", "test"), help="of the data, for the table")
    parser.add_argument("--out", type=Path, default=Path("runs/gain"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="behind --: arguments of train_distill.py")
    options = parser.parse_args()
    arguments = [word for word in options.rest if word != "--"]
    seeds = [run_seed(seed, arguments, options.split, options.out) for seed in options.seeds]
    command = " ".join(["python train_distill.py", *arguments, "--baseline --seed N"])
    text = table(seeds, options.seeds, options.split, command)
    (options.out / f"{options.split}.md").write_text(text, encoding="utf-8")
    print(text)


def run_seed(seed: int, arguments: list[str], split: str, out: Path) -> Results:
    """Trains and scores one seed, or reads what it left."""
    folder = out / f"seed{seed}"
    if not (folder / "metrics.json").exists():
        where = ["--project", str(out), "--name", folder.name, "--exist-ok", "--seed", str(seed)]
        run("train_distill.py", *arguments, *where, "--baseline", "--noplots")
    scored = folder / split / "metrics.json"
    if not scored.exists():
        weights = [str(folder / part / "best.pt") for part in ("weights", "baseline/weights")]
        keep = {name: arguments[arguments.index(name) + 1] for name in ("--data", "--imgsz") if name in arguments}
        shared = [word for pair in keep.items() for word in pair]
        teacher = arguments[arguments.index("--t_weights") + 1]
        where = ["--project", str(folder), "--name", split, "--exist-ok", "--noplots"]
        run("val.py", "--weights", *weights, "--t_weights", teacher, *shared, "--task", split, *where)
    return {entry["role"]: {name: entry[name] for name in SCORES} for entry in json.loads(scored.read_text())}


def run(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True)


def table(results: list[Results], seeds: list[int], split: str, command: str) -> str:
    """Markdown: a row a role, mean ± standard deviation over the seeds, and the gain with its own spread."""
    lines = [f"| on {split} | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 1) + "|"]
    for role in ROLES:
        cells = [spread([result[role][score] for result in results], ".4f") for score in SCORES]
        lines.append(f"| {role} | {' | '.join(cells)} |")
    gains = {score: [result["student"][score] - result["baseline"][score] for result in results] for score in SCORES}
    lines.append(f"| gain | {' | '.join(spread(gains[score], '+.4f') for score in SCORES)} |")
    each = ", ".join(f"{gain:+.4f}" for gain in gains["mAP50-95"])
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    if torch.cuda.is_available():
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    return "\n".join(
        [*lines, "", f"Seeds {seeds}; gain in mAP50-95 of each: {each}. `{command}`; {machine}.", ""],
    )


def spread(values: list[float], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{format(statistics.mean(values), form)} ± {deviation:.4f}"


if __name__ == "__main__":
    main()
