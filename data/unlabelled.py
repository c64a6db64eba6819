"""Images without ground truth: which of those that a data file names are worth showing to a student."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from data.labels import Labels, read_unlabelled
from data.spec import DataSpec

log = logging.getLogger(__name__)

Identity = tuple[int, int] | str


def with_unlabelled(labels: Labels, spec: DataSpec, where: str = "unlabelled") -> Labels:
    """The labelled images of a data set followed by its unlabelled ones, those left out that are labelled too.

    Raises:
        UserError: none of the unlabelled images can be used.
    """
    images = spec.images("unlabelled")
    known = _identities(spec.images("train"))
    new = [image for image in images if _identity(image) not in known]
    dropped = len(images) - len(new)
    if dropped:
        log.info("%s: %d of %d images are training images too, and dropped here", where, dropped, len(images))
    if not new:
        return labels
    _warn_of_peeking(new, spec, where)
    return labels.followed_by(read_unlabelled(new, " ".join(spec.sources("unlabelled")), where))


def _warn_of_peeking(images: list[str], spec: DataSpec, where: str) -> None:
    """Scores are those of images that training has not seen, or they are no scores."""
    own = _identities(images)
    for split in ("val", "test"):
        shared = len(own & _identities(spec.images(split))) if getattr(spec, split) else 0
        if shared:
            log.warning(
                "%s: %d images are %s images too: scores on them do not say what others are worth", where, shared, split
            )


def _identities(images: Iterable[str]) -> set[Identity]:
    return {_identity(image) for image in images}


def _identity(image: str) -> Identity:
    """Equal for paths and links that lead to the same file."""
    try:
        status = os.stat(image)  # noqa: PTH116 - a million times
    except OSError:
        return image
    # some network disks number no file
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(image)
