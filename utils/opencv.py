"""OpenCV as `cv2`; where it is not installed, a stand-in that says so when it is first used.

Training from a packed cache with augmentation on the device needs no OpenCV, so importing must not need it either.
"""

from __future__ import annotations

import os
from typing import Any

from utils.errors import UserError

MOST_PIXELS = 178_956_970  # of an image: more is what Pillow takes for an attack; as many are 0.5 GB
LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # OpenCV looks at it once, when it is loaded; its own is 3.2 GB


class _Absent:
    """Raises as soon as anything of OpenCV is asked for.

    Args:
        reason: why it could not be imported.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise UserError(
            f"OpenCV cannot be used (cv2.{name} is needed; {self._reason}): pip install opencv-python-headless; "
            "without it, what works is training with --cache packed --augment-on device"
        )


def _opencv() -> Any:
    before = os.environ.get(LIMIT)
    os.environ[LIMIT] = before or str(MOST_PIXELS)
    try:
        import cv2
    except ImportError as error:
        return _Absent(str(error))
    finally:
        if before is None:
            del os.environ[LIMIT]
    return cv2


cv2 = _opencv()
AVAILABLE = not isinstance(cv2, _Absent)


def one_thread() -> None:
    """OpenCV works in the thread that calls it, from now on."""
    if AVAILABLE:
        cv2.setNumThreads(0)
