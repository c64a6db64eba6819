"""What the runs of a benchmark say: means and intervals over seeds, as a Markdown table and a plot."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.arms import BASELINE, Plan, Run
from utils.files import write_text
from utils.plots import LINES, _figure, _plain, _save

Teachers = Mapping[str, tuple[float, float] | None]  # name -> mAP50-95, mAP50; None of one of other classes
NONE = "-"
COLUMNS = ("seeds", "mAP50-95", "mAP50", "gain in mAP50-95", "95 % interval", "time / baseline", "memory / baseline")


@dataclass(frozen=True)
class Result:
    """One training and its score on the split."""

    arm: str
    seed: int
    map: float  # mAP50-95
    map50: float
    seconds: float  # of all epochs, validation on val included
    epochs: int
    memory_mb: float  # peak: of the GPU where one was used, else of the process
    machine: str  # with what share of it: costs are compared between equals only


@dataclass(frozen=True)
class Row:
    """An arm over its seeds. Gains, time and memory are paired: against the baseline of the same seed."""

    arm: str
    results: tuple[Result, ...]
    gains: tuple[float, ...]
    time: float | None  # mean of the ratios; None without a baseline on the same machine
    memory: float | None

    @property
    def gain(self) -> float | None:
        return statistics.mean(self.gains) if self.gains else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """In which the mean gain over all seeds lies with a confidence of 95 %; None of a single seed."""
        if len(self.gains) < 2:
            return None
        margin = student_t(len(self.gains) - 1) * statistics.stdev(self.gains) / math.sqrt(len(self.gains))
        middle = statistics.mean(self.gains)
        return middle - margin, middle + margin

    def to_json(self) -> dict[str, object]:
        numbers = {"seeds": len(self.results), "gain": self.gain, "interval": self.interval}
        return {"arm": self.arm, **numbers, "gains": self.gains, "time": self.time, "memory": self.memory}


# -- files -------------------------------------------------------------------------------------------------------------


def conclude(plan: Plan, runs: Sequence[Run], teachers: Mapping[str, Path | None], command: str) -> str:
    """Writes table, numbers and plot of all that is there; returns the table.

    Args:
        teachers: name -> metrics.json.
    """
    results = [read_result(run, plan.split) for run in runs if run.scored(plan.split)]
    scored = {name: None if file is None else read_scores(file) for name, file in teachers.items()}
    summary = rows(results)
    text = "\n\n".join([table(summary, scored, plan.split), *notes(plan, runs, results), f"    {command}"]) + "\n"
    write_text(plan.out / f"{plan.split}.md", text)
    numbers = {
        "command": command,
        "split": plan.split,
        "teachers": scored,
        "runs": [asdict(result) for result in results],
        "arms": [row.to_json() for row in summary],
    }
    write_text(plan.out / f"{plan.split}.json", json.dumps(numbers, indent=2) + "\n")
    start = plan.weights or f"{plan.cfg} from scratch"
    title = f"{Path(plan.data).stem}, {plan.split}: {Path(start).name}, {plan.epochs} epochs"
    plot(summary, scored, title, plan.out / f"{plan.split}.png")
    return text


def notes(plan: Plan, runs: Sequence[Run], results: Sequence[Result]) -> list[str]:
    """What a reader must know to believe the table."""
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    machines = "; ".join(sorted({result.machine for result in results})) or "none yet"
    missing = [run.title for run in runs if not run.scored(plan.split)]
    late = [f"{one.arm}, seed {one.seed} ({one.epochs})" for one in results if one.epochs > plan.epochs]
    return [
        f"Seeds {seeds}; {plan.epochs} epochs each, the best one selected on val. Mean ± standard deviation; a gain is "
        "over the baseline of the same seed, its interval Student's t over the seeds, of each method for itself (not "
        "corrected for comparing many). Time is that of all epochs with their validation, memory the peak of the "
        "training process (on a GPU, what was reserved there).",
        f"Machine: {machines}.",
        *([f"**Missing**: {'; '.join(missing)}."] if missing else []),
        *([f"**Over the budget** (epochs): {'; '.join(late)}."] if late else []),
    ]


def read_result(run: Run, split: str) -> Result:
    """What a run left. Its seconds are those of its epochs, whether or not it was interrupted between them."""
    record = json.loads(run.record.read_text(encoding="utf-8"))
    with (run.folder / "results.csv").open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return Result(
        run.arm.name,
        run.seed,
        *read_scores(run.folder / split / "metrics.json"),
        seconds=sum(seconds),
        epochs=len(seconds),
        memory_mb=record["cuda_mb"] or record["rss_mb"],
        machine="{device}, {threads} of {cores} cores used, torch {torch}".format(**record),
    )


def read_scores(file: Path) -> tuple[float, float]:
    """(mAP50-95, mAP50) of the one entry in a metrics.json."""
    (entry,) = json.loads(file.read_text(encoding="utf-8"))
    return entry["mAP50-95"], entry["mAP50"]


# -- arithmetic --------------------------------------------------------------------------------------------------------


def rows(results: Sequence[Result]) -> list[Row]:
    """The baseline first, then the arms from the largest gain to the smallest."""
    baseline = {result.seed: result for result in results if result.arm == BASELINE}
    found = []
    for arm in dict.fromkeys(result.arm for result in results):
        own = tuple(sorted((result for result in results if result.arm == arm), key=lambda result: result.seed))
        pairs = [(result, baseline[result.seed]) for result in own if result.seed in baseline]
        gains = () if arm == BASELINE else tuple(result.map - plain.map for result, plain in pairs)
        alike = [(result, plain) for result, plain in pairs if result.machine == plain.machine]
        time = _mean([result.seconds / plain.seconds for result, plain in alike if plain.seconds])
        memory = _mean([result.memory_mb / plain.memory_mb for result, plain in alike if plain.memory_mb])
        found.append(Row(arm, own, gains, time, memory))
    return sorted(found, key=lambda row: (row.arm != BASELINE, math.inf if row.gain is None else -row.gain))


def student_t(freedom: int, confidence: float = 0.95) -> float:
    """The quantile that |t| exceeds with probability 1 - confidence: bisection of the exact distribution."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) for a whole number of degrees of freedom: the finite series of Abramowitz and Stegun, 26.7.3-4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for index in range(2 + odd, freedom - 1, 2):
        term *= (index - 1) / index * cosine**2
        total += term
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series


# -- table -------------------------------------------------------------------------------------------------------------


def table(summary: Sequence[Row], teachers: Teachers, split: str) -> str:
    """Markdown: the baseline, the teachers, and every arm."""
    lines = [f"| on {split} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    plain = [row for row in summary if row.arm == BASELINE]
    cells = {row.arm: _cells(row) for row in plain}
    for name, scores in teachers.items():
        cells[name] = [NONE, *(f"{score:.4f}" for score in scores or ()), *[NONE] * 6][: len(COLUMNS)]
    cells |= {row.arm: _cells(row) for row in summary if row.arm != BASELINE}
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())])


def _cells(row: Row) -> list[str]:
    ends = row.interval
    maps, map50s = [one.map for one in row.results], [one.map50 for one in row.results]
    cells = [str(len(row.results)), _spread(maps), _spread(map50s)]
    if row.arm == BASELINE:
        seconds, memory = (statistics.mean(values) for values in zip(*map(_costs, row.results), strict=True))
        return [*cells, NONE, NONE, f"1 ({seconds:,.0f} s)", f"1 ({memory:,.0f} MB)"]
    return [
        *cells,
        NONE if row.gain is None else f"{row.gain:+.4f}",
        NONE if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f} (n = {len(row.gains)})",
        *(NONE if ratio is None else f"{ratio:.2f}" for ratio in (row.time, row.memory)),
    ]


def _costs(result: Result) -> tuple[float, float]:
    return result.seconds, result.memory_mb


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of the sample."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


# -- plot --------------------------------------------------------------------------------------------------------------


def plot(summary: Sequence[Row], teachers: Teachers, title: str, path: Path) -> Path:
    """Gains in mAP50-95 over the baseline, the best above: mean, 95 % interval, and every seed as a small dot."""
    shown = [row for row in summary if row.gain is not None]
    figure, (axis,) = _figure(1, 1, (7.5, 1.3 + 0.34 * max(len(shown), 2)))
    for height, row in enumerate(reversed(shown)):
        axis.scatter(row.gains, [height] * len(row.gains), s=9, color=LINES[1][0], zorder=5)
        if row.interval is not None:
            axis.plot(row.interval, (height, height), color=LINES[0][0], linewidth=1.6, zorder=3)
        axis.scatter([row.gain], [height], s=42, color=LINES[0][0], zorder=4)
    axis.axvline(0, color=LINES[2][0], linewidth=1.0)
    scores = [result.map for row in summary if row.arm == BASELINE for result in row.results]
    notes = [f"baseline {_spread(scores)}"] if scores else []
    notes += [f"{name} {scored[0]:.4f}" for name, scored in teachers.items() if scored is not None]
    axis.set_yticks(range(len(shown)), [_plain(row.arm) for row in reversed(shown)], fontsize=8)
    axis.set_ylim(-0.6, max(len(shown), 1) - 0.4)
    axis.set_xlabel("gain in mAP50-95 over the baseline of the same seed", fontsize=8)
    axis.set_title(_plain("\n".join([title, ", ".join(notes)])), fontsize=9)
    return _save(figure, path)
