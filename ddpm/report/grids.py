"""Sample grids of a report: the same classes in the same columns for every trial, as data: URLs."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm import pictures
from ddpm.report.data import Samples

_COLUMNS = 10
_CLASSES = 20  # shown of more
_WIDEST = 360  # pixels of a picture over training; wider ones are reduced to it


def sample_grid(samples: Samples, *, rows: int = 4, largest: int = 64) -> str:
    """The grid of a trial's final samples, see `grid_url`."""
    return grid_url(samples.images, samples.labels, rows=rows, largest=largest)


def grid_url(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    rows: int = 4,
    largest: int = 64,
    is_exact: bool = True,
) -> str:
    """One column a class, `rows` images of each; without classes, ten columns.

    images: uint8 (N, H, W, C); those whose longer side is beyond `largest` pixels are reduced.
    is_exact: a PNG; else colours may become a JPEG, a third of its size.
    """
    order, width = _by_class(labels, rows)
    picture = pictures.grid(_reduced(images[order], largest), width)
    if is_exact or picture.shape[2] == 1:
        return png_url(pictures.png(picture))
    return _jpeg_url(Image.fromarray(picture))


def png_url(data: bytes) -> str:
    """The bytes of a PNG file as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def picture_url(path: Path) -> str:
    """A PNG file as a data: URL, reduced where it is wide; "" where it cannot be read."""
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.width <= _WIDEST:
                return png_url(path.read_bytes())
            size = (_WIDEST, max(1, round(picture.height * _WIDEST / picture.width)))
            small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
    except (OSError, ValueError):
        return ""
    return _jpeg_url(small)


def _jpeg_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _by_class(labels: np.ndarray, rows: int) -> tuple[list[int], int]:
    """The images shown, row by row, and the number of columns. Every column is equally long."""
    classes = [np.flatnonzero(labels == one) for one in np.unique(labels)][:_CLASSES]
    if len(classes) < 2:
        columns = min(_COLUMNS, len(labels))
        return list(range(min(len(labels), columns * rows))), columns
    rows = min(rows, min(map(len, classes)))
    return [int(column[row]) for row in range(rows) for column in classes], len(classes)


def _reduced(images: np.ndarray, largest: int) -> np.ndarray:
    height, width = images.shape[1:3]
    share = largest / max(height, width)
    if share >= 1:
        return images
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.stack([_resized(image, size) for image in images])


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0))
    return np.stack([np.asarray(p.resize(size, Image.Resampling.BOX)) for p in planes], axis=-1)
