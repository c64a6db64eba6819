"""Whether the repository works with other versions of Python, PyTorch and NumPy: a part of its tests under each.

    python benchmarks/matrix.py --python python3.10 python3.13 --torch 2.6 newest

For every pair of a Python and a PyTorch a virtual environment is made, requirements-dev.txt is installed into it with
those versions, tests are run, of the oldest PyTorch once more with the oldest NumPy (`--numpy`), and the environment is
removed: PyTorch's standard build needs 6 GB of disk while it is there. Our own deprecation warnings are errors in the
tests (pyproject.toml). Of pythons that are named and not on this machine, and of versions that the registry does not
have for a Python, the table says so. Exit status 1: tests failed somewhere, an environment could not be made for
another reason, or no test was run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of benchmarks/

from benchmarks.peers import NONE, machine, markdown
from utils.errors import UserError, exits_cleanly
from utils.files import ROOT

NEWEST = "newest"
PYTHONS = ("python3.10", "python3.11", "python3.12", "python3.13")
# what differs between versions: tensors, arrays, files, processes, the command line
TESTS = (
    "tests/utils", "tests/models", "tests/losses", "tests/data", "tests/engine", "tests/distill",
    "tests/test_architecture.py", "tests/test_val.py",
)  # fmt: skip
VERSIONS = """
import platform, torch, torchvision, numpy
print(platform.python_version(), torch.__version__, torchvision.__version__, numpy.__version__)
"""
BUILT = "torch,torchvision,numpy"  # taken as they are in the registry: a NumPy that is compiled here is another one
LAST_LINES = 15  # of the output of tests that failed


class Cell(NamedTuple):
    """One environment, and the versions of NumPy that it has one after the other."""

    python: str
    torch: str
    numpy: tuple[str, ...]


class Found(NamedTuple):
    """What came of it."""

    versions: list[str]  # of Python, torch, torchvision, numpy as they were installed
    outcome: str
    seconds: float = 0.0
    failed: bool = False


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    found = []
    for cell in tqdm(cells(options.python, options.torch, options.numpy), unit="environment"):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found += tried(cell, Path(folder), options.tests)
    print(report(found, options.tests, words))
    if any(one.failed for one in found):
        sys.exit(1)
    if not any("passed" in one.outcome for one in found):
        sys.exit("no test was run")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--python", nargs="+", default=list(PYTHONS), metavar="PYTHON")
    made.add_argument("--torch", nargs="+", default=["2.6", NEWEST], metavar="VERSION", help="the oldest first")
    made.add_argument("--numpy", default="1.26", metavar="VERSION", help="the oldest; '' leaves it out")
    made.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH", help="what pytest is given")
    made.add_argument("--folder", help="where environments are made, and removed; default: where temporary files go")
    return made


def cells(pythons: Sequence[str], torches: Sequence[str], numpy: str) -> list[Cell]:
    """Every Python with every PyTorch; the first of these has the oldest NumPy, too."""
    oldest = (NEWEST, numpy) if numpy else (NEWEST,)
    return [
        Cell(python, torch, oldest if torch == torches[0] else (NEWEST,)) for python in pythons for torch in torches
    ]


def constraints(torch: str, numpy: str) -> str:
    """As pip reads them. A torchvision is built for one torch: 0.21 for 2.6, 0.22 for 2.7, and so on.

    Raises:
        UserError: a version of torch that is none.
    """
    lines = []
    if torch != NEWEST:
        version = re.fullmatch(r"2\.(\d+)(\.\d+)?", torch)
        if version is None:
            raise UserError(f"--torch {torch}: expected {NEWEST}, or a version such as 2.6")
        lines += [f"torch=={torch}{'' if version[2] else '.*'}", f"torchvision==0.{int(version[1]) + 15}.*"]
    if numpy != NEWEST:
        lines.append(f"numpy=={numpy}.*")
    return "".join(f"{line}\n" for line in lines)


def tried(cell: Cell, folder: Path, tests: Sequence[str]) -> list[Found]:
    """Makes the environment and runs the tests in it, once for each NumPy."""
    name = Path(cell.python).name
    if shutil.which(cell.python) is None:
        return [Found([name, cell.torch, NONE, numpy], "not on this machine") for numpy in cell.numpy]
    done = run([cell.python, "-m", "venv", folder / "venv"])
    if done.returncode:
        return [
            Found([name, NONE, NONE, NONE], f"no environment: {last_error(done.stdout + done.stderr)}", failed=True)
        ]
    return [tested(folder, [name, cell.torch, NONE, numpy], tests) for numpy in cell.numpy]


def tested(folder: Path, asked: list[str], tests: Sequence[str]) -> Found:
    """Installs what was asked for (Python, torch, torchvision, NumPy) into the environment, and runs the tests."""
    bounds, python = folder / "constraints.txt", folder / "venv" / "bin" / "python"
    bounds.write_text(constraints(asked[1], asked[3]), encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--only-binary", BUILT]
    done = run([*pip, "-c", bounds, "-r", ROOT / "requirements-dev.txt"])
    if done.returncode:
        return not_installed(asked, done.stdout + done.stderr)
    versions = run([python, "-c", VERSIONS]).stdout.split()
    started = time.perf_counter()
    done = run([python, "-m", "pytest", "-p", "no:cacheprovider", *tests])
    seconds = time.perf_counter() - started
    if done.returncode:
        last = [*done.stdout.splitlines()[-LAST_LINES:], done.stderr]
        print("\n".join([f"{' '.join(versions or asked)}:", *last]), file=sys.stderr)
    return Found(versions or asked, summary(done), seconds, done.returncode != 0)


def not_installed(asked: list[str], output: str) -> Found:
    """What pip's words come to: that the registry has no such version is no failure, all else is.

    A registry that does not answer has nothing either, and pip tries again before it says so.
    """
    absent = "No matching distribution found" in output and "Retrying" not in output
    return Found(asked, f"{'not to be had' if absent else 'not installed'}: {last_error(output)}", failed=not absent)


def run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def summary(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of pytest's, such as "812 passed, 3 skipped"; where there is none, its exit status."""
    found = re.findall(r"^=* ?((?:\d+ \w+(?:, )?)+) in [\d.]+s", done.stdout, re.MULTILINE)
    return found[-1] if found else f"exit status {done.returncode}"


def last_error(output: str) -> str:
    """The last line of pip's that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no reason given"]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])


# -- report ------------------------------------------------------------------------------------------------------------


def report(found: Sequence[Found], tests: Sequence[str], words: Sequence[str]) -> str:
    head = ["Python", "torch", "torchvision", "NumPy", "tests", "seconds"]
    rows = [[*one.versions, one.outcome, f"{one.seconds:.0f}" if one.seconds else NONE] for one in found]
    return "\n".join([f"pytest {' '.join(tests)}", "", markdown(head, rows), "", machine("matrix.py", words)])


if __name__ == "__main__":
    main()
