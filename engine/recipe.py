"""What the recipe of a run is, once the command line has had its say. Imports no torch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from engine.options import DistillOptions, Options
from utils.errors import UserError
from utils.family import ANCHOR_FREE, ANCHORS, Family, for_family, has_foreign_gains
from utils.hyp import Hyp, TeacherRole, read_hyp

# what only the losses of heads with anchors read
OF_ANCHORS = ("obj", "cls_pw", "obj_pw", "anchor_t", "loss_ota", "assign", "fl_gamma", "label_smoothing")

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Options)
Methods = Mapping[str, Mapping[str, Any]]  # name of a loss -> its options


def recipe(options: Options, family: Family = ANCHORS) -> Hyp:
    """The hyper-parameters of this run: the files of --hyp, with what the command line says instead.

    Whatever depends on the student's family has a value afterwards: optimizer, close_mosaic, and the gain of the box
    loss. For a distillation, `outputs` and `features` are the methods that are used (None: the default), and `teachers`
    has a role for each.
    """
    if not options.hyp:
        log.info("--hyp: %s, the default of models %s", family.recipe, family.kind)
    hyp = read_hyp(*(options.hyp or (family.recipe,)))
    smoothing = hyp.label_smoothing if options.label_smoothing is None else options.label_smoothing
    closed = hyp.close_mosaic if options.close_mosaic is None else options.close_mosaic
    hyp = dataclasses.replace(
        hyp, optimizer=options.optimizer or hyp.optimizer, close_mosaic=closed, label_smoothing=smoothing
    )
    hyp = _told(hyp, for_family(hyp, family), family, options)
    if hyp.close_mosaic and options.close_mosaic is None:
        hyp = _mosaics_closed(hyp, options.epochs)
    if not isinstance(options, DistillOptions):
        return hyp
    outputs, features = _methods(options, hyp)
    return dataclasses.replace(hyp, teachers=teacher_roles(options, hyp), outputs=outputs, features=features)


def _mosaics_closed(hyp: Hyp, epochs: int) -> Hyp:
    """Where nobody asked for it on the command line, a run as short as its last part without mosaics has them."""
    if hyp.close_mosaic is not None and hyp.close_mosaic >= epochs:
        log.info("mosaics until the end: %d epochs are too few for %d without", epochs, hyp.close_mosaic)
        return dataclasses.replace(hyp, close_mosaic=0)
    log.info("the last %d epochs have no mosaics (--close-mosaic 0 keeps them)", hyp.close_mosaic)
    return hyp


def _told(given: Hyp, hyp: Hyp, family: Family, options: Options) -> Hyp:
    """`hyp`, having said what of the recipe it leaves out because the student is of the other kind."""
    if has_foreign_gains(given, family):
        gains = f"box {hyp.box:g}, cls {hyp.cls:g}, " + (
            f"dfl {hyp.dfl:g}" if family is ANCHOR_FREE else f"obj {hyp.obj:g}"
        )
        other = "with anchors" if family is ANCHOR_FREE else "without anchors"
        log.warning(
            "--hyp %s: box %g is a gain for models %s; this one, %s, takes %s (--hyp %s has them)",
            *(" ".join(options.hyp), given.box, other, family.kind, gains, family.recipe),
        )
    if family is ANCHOR_FREE and (
        unused := [name for name in OF_ANCHORS if getattr(given, name) != getattr(Hyp(), name)]
    ):
        log.info("%s: of heads with anchors, not used here", ", ".join(unused))
    if given.anchors is not None and hyp.anchors is None:
        log.info("--hyp %s: its anchors are not used, the student has none", " ".join(options.hyp))
    return hyp


def teacher_roles(options: DistillOptions, hyp: Hyp) -> tuple[TeacherRole, ...]:
    """How each teacher teaches, in the order of --t_weights; those that are the student itself have no weights.

    Raises:
        UserError: no teacher, a frozen one without weights, or roles and weights that do not go together.
    """
    sources = options.teachers()
    roles = hyp.teachers or (TeacherRole(kind="self" if options.t_kind == "self" else "frozen"),) * max(1, len(sources))
    if options.t_kind is not None:
        roles = tuple(dataclasses.replace(role, kind=options.t_kind) for role in roles)
    others = [role for role in roles if role.kind != "self"]
    if not any(role.kind == "frozen" for role in roles):
        for flag, given in (("--t_imgsz", options.t_imgsz), ("--t_device", options.t_device)):
            if given:
                raise UserError(f"{flag} is for frozen teachers; one that learns sees what the student sees, beside it")
    if not sources and others:
        raise UserError(
            "--t_weights is missing: name the teacher's weights, such as --t_weights yolov5m.pt "
            "(without any argument the demo runs)"
        )
    if len(sources) != len(others):
        named = ", ".join(role.kind for role in roles)
        raise UserError(f'{len(sources)} teachers on the command line, but the roles are {named}; "self" needs none')
    for (weights, cfg), role in zip(sources, others, strict=True):
        if role.kind == "frozen" and not weights:
            raise UserError(
                f"--t_cfg {cfg}: a frozen teacher of random weights teaches nothing; give --t_weights, or "
                "--t_kind online"
            )
    return roles


def _methods(options: DistillOptions, hyp: Hyp) -> tuple[Methods | None, Methods | None]:
    """The output and feature losses of the recipe that the flags leave or name; None is the default."""
    outputs = _named(options.d_output, hyp.outputs)
    if options.d_feature is None and outputs != {}:
        if hyp.features:
            log.warning("features of the recipe are not used: %s (--d_feature uses them)", ", ".join(hyp.features))
        return outputs, {}
    if options.d_output == () and options.d_feature is None:
        raise UserError(f"--d_output: {' '.join(options.hyp)} says outputs: {{}}, so nothing is left; name a method")
    return outputs, _named(options.d_feature, hyp.features)


def _named(names: tuple[str, ...] | None, recipe: Methods | None) -> Methods | None:
    if not names:
        return recipe
    if names == ("none",):
        return {}
    return {name: (recipe or {}).get(name, {}) for name in names}


def whole_run(options: R, hyp: Hyp) -> R:
    """The options of a run whose recipe has phases: as many epochs as these, unless --epochs says otherwise."""
    if not hyp.phases or "epochs" in options.explicit or not isinstance(options, DistillOptions):
        return options
    return dataclasses.replace(options, epochs=sum(phase.epochs for phase in hyp.phases))
