"""Images that were there when they were checked, and are not when they are asked for."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.errors import MachineFault

log = logging.getLogger(__name__)

NAMED = 3  # are named one by one; then every tenth, hundredth ... time
IN_A_ROW = 32  # different images, without one between them that can be read: their disk has gone
SHARE = 0.1  # of a data set: with more of it grey, something else would be trained than was asked for


class Lost:
    """Counts them, over all processes where these share memory, and ends a run that has lost too many.

    Args:
        paths: of all n images.
        where: what messages start with.
        lost: (n,) False, shared by the processes; None: each counts for itself.
    """

    def __init__(self, paths: Sequence[str], where: str, lost: NDArray[np.bool_] | None = None) -> None:
        self.paths = paths
        self.where = where
        self.lost = np.zeros(len(paths), dtype=np.bool_) if lost is None else lost
        self.row: set[int] = set()  # those that this process has missed since it could last read one

    def found(self, index: int) -> None:
        """This one can be read."""
        if self.row:
            self.row.clear()
        if self.lost[index]:
            self.lost[index] = False

    def missed(self, index: int) -> None:
        """This one cannot.

        Raises:
            MachineFault: it is not the only one.
        """
        known, self.lost[index] = bool(self.lost[index]), True
        self.row.add(index)
        count, total = int(self.lost.sum()), len(self.paths)
        path = self.paths[index]
        if len(self.row) >= min(IN_A_ROW, total) or count > max(min(IN_A_ROW, total // 2), SHARE * total):
            raise MachineFault(
                f"{self.where}: {count} of {total} images cannot be read any more, the last {path} ({reason(path)}); "
                f"is the disk of {Path(path).parent} still there?"
            )
        if not known and (count <= NAMED or str(count).strip("0") == "1"):
            log.warning(
                "%s: %s cannot be read any more (%s); a grey image without labels takes its place (%d of %d so far)",
                *(self.where, path, reason(path), count, total),
            )


def reason(path: str) -> str:
    """Why a file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or errno.errorcode.get(error.errno or 0, "") or os.strerror(errno.EIO)
    return "it is no whole image now"
