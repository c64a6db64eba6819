"""A run from the outside: ranks, device, folder, options and recipe on disk; and what is said and left when it ends."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from data.spec import read_data
from engine.compiled import require_compiler
from engine.faults import machine_faults, resume_command
from engine.options import options_from_file, resumed
from engine.precision import choose_device, choose_precision, describe
from engine.recipe import recipe, whole_run
from engine.runs import CHECKPOINTS, environment, find_run, run_of_this_launch
from engine.session import OptionsT, Session
from engine.start import architecture, family_of, refuse_anchors, starting_point
from utils import dist
from utils.errors import PeerLost, UserError
from utils.files import run_folder, write_text
from utils.hyp import write_hyp

log = logging.getLogger(__name__)


@contextmanager
def open_session(options: OptionsT) -> Iterator[Session[OptionsT]]:
    """Device, ranks, run folder, options and recipe on disk before the first step; leaves the process group at the end.

    With --resume, the options and the recipe are those of the run that goes on.
    """
    resumed_folder = None if options.resume is None else find_run(options.resume, options.project)
    if resumed_folder is not None:
        options = resumed(options, options_from_file(resumed_folder, type(options)))
    device = choose_device(options.device)
    if options.compile:
        require_compiler(device)
    with dist.group(device):
        precision = choose_precision(device, options.amp)
        log.info("%s", describe(device, precision))
        if resumed_folder is None and (begun := dist.by_main(lambda: run_of_this_launch(options.project))):
            log.info("started anew: going on with %s", begun)
            resumed_folder = Path(str(begun))
            options = options_from_file(resumed_folder, type(options))
        if resumed_folder is not None:
            options = replace(options, hyp=(str(resumed_folder / "hyp.yaml"),))
        start = starting_point(options, resumed_folder)
        family = family_of(architecture(options, start, resumed_folder is not None))
        hyp = recipe(options, family)
        if resumed_folder is None:
            refuse_anchors(options, family)
            options = whole_run(replace(options, hyp=options.hyp or (family.recipe,)), hyp)
        data = read_data(options.data, options.runs_scripts)
        data = data.as_single_class() if options.single_cls else data
        folder = dist.by_main(lambda: resumed_folder or run_folder(options.project, options.name, options.exist_ok))
        if not folder.exists():
            raise UserError(
                f"--project {options.project}: {folder}, made by rank 0, is not to be seen on {platform.node()}; "
                "name a folder on a disk that all machines share"
            )
        session = Session(options, hyp, data, device, precision, folder, resumed_folder is not None)
        session.start = start if resumed_folder is None else None  # then it is the last checkpoint of the run
        session.family = family
        with _tidy(session), dist.lost_peers(), machine_faults(session):
            if dist.is_main() and resumed_folder is None:
                options.save(folder / "opt.yaml")
                write_hyp(folder / "hyp.yaml", hyp)
                write_text(folder / "environment.yaml", yaml.safe_dump(environment(device), sort_keys=False))
            yield session


@contextmanager
def _tidy(session: Session[OptionsT]) -> Iterator[None]:
    """Where a mistake, Ctrl-C or another rank ends a run: no folder stays if nothing was trained.

    Where something was, and it was no mistake, it is said how to go on.
    """
    folder, options = session.folder, session.options
    try:
        yield
    except (UserError, KeyboardInterrupt, PeerLost) as reason:
        if not dist.is_main():
            raise
        if not (session.begun or session.resuming or options.exist_ok):
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(reason, UserError) and any(folder.glob(CHECKPOINTS)):
            log.info("to go on: %s", resume_command(folder))
        raise
