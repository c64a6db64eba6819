r"""What the fast paths cost in accuracy: short trainings with each of them on and off, over several seeds.

    python benchmarks/paths.py --weights yolov5n.pt --data bccd.yaml --epochs 10 --imgsz 320 --hyp finetune \
        --seeds 0 1 2 --lanes 2 --out runs/paths -- --workers 0 --val-period 5

The baseline is the plain way: float32, every image decoded whole and anew whenever it is needed, a mosaic's tiles drawn
from all images and pasted on a canvas that is warped. The arms are that with one fast path each, and with all that are
on without being asked for (*as shipped*). What has no flag is switched off in the child process alone
(`switches.py`). Everything is scored by val.py as usual, in float32; files, and going on after an interruption, are as
in distillation.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.arms import BASELINE, Arm
from benchmarks.distillation import compare, read_plan, with_shared_flags
from benchmarks.measured import stop_on_signals
from utils.errors import exits_cleanly
from utils.registry import find

SHIPPED = "as shipped"
ALWAYS_OFF = ("memory",)  # a small data set is kept in memory unasked, and nothing would be decoded


class FastPath(NamedTuple):
    """One that can be on or off."""

    on: tuple[str, ...] = ()  # words for the training script
    off: tuple[str, ...] = ()
    switch: str = ""  # in `switches.py`, where no flag switches it off
    shipped: bool = True  # on without being asked for


PATHS: Mapping[str, FastPath] = {
    "bf16": FastPath(off=("--amp", "off")),  # what --amp auto takes, which a CPU without bf16 does not
    "placed tiles": FastPath(switch="placing"),  # resized straight to where they are seen, no canvas and no warp
    "reduced decoding": FastPath(switch="reducing"),  # of JPEGs, at the next larger of 1/2, 1/4, 1/8
    "pool": FastPath(off=("--mosaic-pool", "0")),  # the other tiles of a mosaic are of the images decoded last
    # scenes are all that it can draw
    "device": FastPath(on=("--cache", "packed", "--augment-on", "device"), switch="placing", shipped=False),
    "compile": FastPath(on=("--compile",), shipped=False),
}


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    behind = words.index("--") if "--" in words else len(words)
    options, extra = parser().parse_args(words[:behind]), words[behind + 1 :]
    for name in options.paths:
        find("fast path", name, PATHS)
    plan, settings = read_plan(options, extra)
    arms = [arm(BASELINE, ()), *(arm(name, (name,)) for name in options.paths or PATHS)]
    arms.append(arm(SHIPPED, [name for name, path in PATHS.items() if path.shipped]))
    compare(plan, settings, arms, options, shlex.join(["python", "benchmarks/paths.py", *words]))


def arm(name: str, on: Sequence[str]) -> Arm:
    """The plain way, but for these fast paths."""
    words = [word for key, path in PATHS.items() for word in (path.on if key in on else path.off)]
    switches = dict.fromkeys(path.switch for path in PATHS.values() if path.switch)
    left_on = {PATHS[key].switch for key in on}
    return Arm(name, words=tuple(words), off=(*ALWAYS_OFF, *(name for name in switches if name not in left_on)))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="paths.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--paths", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(PATHS)}; all")
    made.set_defaults(t_weights=[])
    return with_shared_flags(made, Path("runs/paths"))


if __name__ == "__main__":
    stop_on_signals()
    main()
