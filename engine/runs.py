"""Runs on disk: finding one that goes on, and what a new one says of where it was made."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.precision import describe
from utils.errors import UserError, shown
from utils.faults import find_fault
from utils.files import ROOT
from utils.yaml_file import read_yaml

# by these it is known how far a run has come, and its baseline
SCORES, CHECKPOINTS = "metrics.json", "**/weights/last.pt"


def find_run(resume: str, project: str) -> Path:
    """The run folder that --resume means: of the newest last.pt under the project, or of a path in or to it."""
    if not resume:
        found = sorted(Path(project).glob(CHECKPOINTS), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"--resume: no weights/last.pt under {project}; name a run folder or its last.pt")
        resume = str(found[-1])
    path = Path(resume)
    if not path.exists():
        raise UserError(f"--resume {resume}: no such file or folder; expected a run folder or its weights/last.pt")
    for folder in (path, *path.parents[:3]):  # the last of them: project/name/baseline/weights/last.pt
        if (folder / "opt.yaml").is_file():
            return folder
    raise UserError(f"--resume {resume}: no opt.yaml beside it; --resume continues a run folder of this repository")


def run_of_this_launch(project: str) -> Path | None:
    """The folder of a run that the same torchrun, or the same job of a scheduler, has begun and not ended.

    torchrun starts all processes anew when one of them dies (--max-restarts) or when machines come and go, and a
    scheduler starts a job anew that it has put back into its queue: with the same command, which then is to go on.
    """
    launch = launch_id()
    own = {"launch": launch, "command": shlex.join(sys.argv)}
    files = Path(project).glob("**/environment.yaml") if launch else ()
    for file in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            found = read_yaml(file)
        except UserError:  # of another run
            continue
        if all(found.get(key) == value for key, value in own.items()):
            return file.parent if _goes_on(file.parent, file.stat().st_mtime) else None
    return None


def _goes_on(folder: Path, begun: float) -> bool:
    """Whether a run that began then, seconds since 1970, can be continued: with --exist-ok files of an earlier one may
    lie there."""
    scores, checkpoints = ([file.stat().st_mtime for file in folder.glob(name)] for name in (SCORES, CHECKPOINTS))
    return max(scores, default=0.0) < begun and (not checkpoints or max(checkpoints) >= begun)


def forget_earlier_run(folder: Path) -> None:
    """Removes what would say of a new run in this folder (--exist-ok) that it was begun before, or has ended."""
    for name in (SCORES, CHECKPOINTS):
        for file in folder.glob(name):
            file.unlink()


@contextmanager
def fits(last: Path) -> Iterator[None]:
    """What a checkpoint holds beside the weights is of this run, or one line says that it is not."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if find_fault(error) is not None:
            raise
        raise UserError(
            f"{last}: it holds no training that can go on here ({type(error).__name__}: {shown(error)}); "
            f"start anew from its weights, --weights {last}"
        ) from error


def launch_id() -> str:
    """What processes have in common that one call of torchrun has started; '' without torchrun.

    That is its --rdzv-id (--standalone makes one up), which a scheduler's job sets to its own number; without one, the
    torchrun process itself.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"process {os.getppid()} of {platform.node()}" if name == "none" else name


def environment(device: torch.device) -> dict[str, str]:
    """What a run needs to be repeated, beside its options."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return "unknown"

    return {
        "command": shlex.join(sys.argv),
        "launch": launch_id(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": str(len(git("status", "--porcelain").splitlines())),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "device": describe(device, None),
    }
