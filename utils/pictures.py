"""Photographs with boxes on them: arrays in, one image file out. Needs OpenCV alone; its letters are built in.

Images are (H, W, 3) uint8 RGB, boxes (n, 4) xyxy in pixels of their image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.files import write_atomically
from utils.opencv import AVAILABLE, cv2

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

# told apart on photographs, and by people who see red and green alike; classes take them in turn
PALETTE: tuple[Color, ...] = (
    (230, 97, 1), (0, 114, 178), (0, 158, 115), (204, 51, 63), (140, 86, 190), (240, 196, 25), (86, 180, 233),
    (214, 93, 177), (106, 153, 18), (23, 190, 187), (140, 86, 60), (255, 140, 105), (63, 81, 181), (188, 143, 0),
    (0, 200, 83), (170, 255, 0), (255, 82, 160), (0, 96, 88), (120, 255, 214), (121, 20, 60),
)  # fmt: skip
PAPER: Color = (250, 250, 250)
INK: Color = (40, 40, 40)
FONT = 0  # cv2.FONT_HERSHEY_SIMPLEX, not asked for by name: this file is imported where OpenCV is absent too
SMALL, LARGE = 0.4, 0.6  # letter sizes
GAP = 6  # pixels between the panels of a sheet


def drawable() -> bool:
    """Whether there is something to draw with; a log line says so where there is not."""
    if not AVAILABLE:
        log.info("no pictures: OpenCV is not installed")
    return AVAILABLE


class Panel(NamedTuple):
    """An image with boxes."""

    image: Image
    boxes: ArrayLike  # (n, 4)
    classes: ArrayLike  # (n,)
    scores: ArrayLike | None = None  # (n,) in [0, 1]; None for labels
    caption: str = ""


def color(index: int) -> Color:
    """The colour of a class, RGB."""
    return PALETTE[index % len(PALETTE)]


def draw(panel: Panel, names: Sequence[str], size: tuple[int, int] | None = None) -> Image:
    """The panel's image with its boxes, scaled to fit `size` (height, width) and centred; None keeps the size.

    Boxes are drawn after scaling, the most confident last, so that lines and letters stay sharp.
    """
    size = size or (panel.image.shape[0], panel.image.shape[1])
    canvas, factor, corner = _fit(panel.image, size)
    boxes = np.asarray(panel.boxes, dtype=np.float64).reshape(-1, 4) * factor + np.tile(corner, 2)
    classes = np.asarray(panel.classes, dtype=np.int64).reshape(-1)
    scores = None if panel.scores is None else np.asarray(panel.scores, dtype=np.float64).reshape(-1)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    limit = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1
    edges = np.clip(np.round(boxes), 0, limit).astype(int)
    for index in order:
        left, top, right, bottom = edges[index].tolist()
        cv2.rectangle(canvas, (left, top), (right, bottom), color(int(classes[index])), 2, cv2.LINE_AA)
    for index in order:  # after all boxes: no line runs through a name
        text = names[classes[index]] if 0 <= classes[index] < len(names) else str(classes[index])
        if scores is not None:
            text += f" {scores[index]:.2f}"
        _label(canvas, edges[index], text, color(int(classes[index])))
    if panel.caption:
        _write(canvas, panel.caption, (0, canvas.shape[0]), INK, PAPER, SMALL)
    return canvas


def sheet(
    rows: Sequence[Sequence[Panel]], titles: Sequence[str], names: Sequence[str], path: Path | str, width: int = 480
) -> Path:
    """Rows of panels below column titles, each panel `width` wide; a row is as high as its first image asks.

    For labels beside predictions, or ground truth beside student and teacher.
    """
    columns = max((len(row) for row in rows), default=len(titles))
    total = columns * width + (columns + 1) * GAP
    header = np.full((34, total, 3), PAPER, dtype=np.uint8)
    for column, title in enumerate(titles):
        _write(header, title, (GAP + column * (width + GAP), 31), INK, PAPER, LARGE)
    strips = [header]
    for row in rows:
        shape = row[0].image.shape
        height = round(width * min(max(shape[0] / shape[1], 0.5), 1.2))  # a tall image becomes small, not the row huge
        strip = np.full((height + GAP, total, 3), PAPER, dtype=np.uint8)
        for column, panel in enumerate(row):
            left = GAP + column * (width + GAP)
            strip[:height, left : left + width] = draw(panel, names, (height, width))
        strips.append(strip)
    return save(np.concatenate(strips), path)


def batch_mosaic(
    images: ArrayLike,
    targets: ArrayLike,
    names: Sequence[str],
    path: Path | str,
    captions: Sequence[str] = (),
    limit: int = 16,
    longest: int = 1920,
) -> Path:
    """The first images of a training batch with their boxes, in a square.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        targets: (N, 6) image, class, x, y, w, h in [0, 1].
        longest: longest side of the picture in pixels.
    """
    pixels = np.asarray(images)[:limit]
    if pixels.dtype != np.uint8:
        pixels = (pixels.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
    rows = np.asarray(targets, dtype=np.float64).reshape(-1, 6)
    count, _, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    factor = min(1.0, longest / columns / max(height, width))
    cell = (max(1, round(height * factor)), max(1, round(width * factor)))
    canvas = np.full((math.ceil(count / columns) * cell[0], columns * cell[1], 3), PAPER, dtype=np.uint8)
    for index in range(count):
        own = rows[rows[:, 0] == index]
        boxes = corners(own[:, 2:], height, width)
        caption = captions[index] if index < len(captions) else ""
        panel = Panel(np.ascontiguousarray(pixels[index].transpose(1, 2, 0)), boxes, own[:, 1], caption=caption)
        top, left = index // columns * cell[0], index % columns * cell[1]
        canvas[top : top + cell[0], left : left + cell[1]] = draw(panel, names, cell)
    canvas[cell[0] :: cell[0]] = PAPER
    canvas[:, cell[1] :: cell[1]] = PAPER
    return save(canvas, path)


def corners(boxes: ArrayLike, height: int, width: int) -> NDArray[np.float64]:
    """(n, 4) centre boxes in [0, 1] -> (n, 4) xyxy in pixels."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate((centres - halves, centres + halves), axis=1) * (width, height, width, height)


def read(path: Path | str) -> Image:
    """A picture to draw on, RGB, turned as its EXIF says; a grey square where it cannot be read."""
    image = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return np.full((320, 320, 3), 127, dtype=np.uint8)
    return np.ascontiguousarray(image[..., ::-1]).astype(np.uint8, copy=False)


def save(image: Image, path: Path | str) -> Path:
    """Writes an RGB image in the format of the path's ending, atomically."""
    path = Path(path)
    _, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return write_atomically(path, lambda temporary: temporary.write_bytes(encoded.tobytes()))


def _fit(image: Image, size: tuple[int, int]) -> tuple[Image, float, NDArray[np.int64]]:
    """A copy of the image scaled to fit and centred; the factor; its left top corner (x, y)."""
    factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    left, top = (size[1] - width) // 2, (size[0] - height) // 2
    canvas = np.full((*size, 3), PAPER, dtype=np.uint8)
    mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=mode)
    canvas[top : top + height, left : left + width] = scaled
    return canvas, factor, np.array([left, top])


def _label(canvas: Image, box: NDArray[np.int64], text: str, shade: Color) -> None:
    """A box's name: above the box where there is room, else inside it."""
    dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 160
    height = _text_size(text, SMALL)[1]
    left, top = int(box[0]), int(box[1])
    bottom = top if top >= height else min(top + height, canvas.shape[0])
    _write(canvas, text, (left, bottom), (255, 255, 255) if dark else (20, 20, 20), shade, SMALL)


def _text_size(text: str, scale: float) -> tuple[int, int]:
    """Width and height of the text's plate, pixels."""
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, 1)
    return width + 6, height + baseline + 3


def _write(canvas: Image, text: str, left_bottom: tuple[int, int], ink: Color, plate: Color, scale: float) -> None:
    """Text on a filled plate, whose left bottom corner is given; moved left where it would leave the image."""
    width, height = _text_size(text, scale)
    left = max(0, min(left_bottom[0], canvas.shape[1] - width))
    bottom = left_bottom[1]
    cv2.rectangle(canvas, (left, bottom - height), (left + width, bottom), plate, cv2.FILLED)
    below = cv2.getTextSize(text, FONT, scale, 1)[1]
    cv2.putText(canvas, text, (left + 3, bottom - below), FONT, scale, ink, 1, cv2.LINE_AA)
