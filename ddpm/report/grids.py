"""Sample grids of a report: the same classes in the same columns for every trial, as data: URLs."""

import base64

import numpy as np
from PIL import Image

from ddpm import pictures
from ddpm.report.data import Samples

_COLUMNS = 10


def sample_grid(samples: Samples, *, rows: int = 4, largest: int = 64) -> str:
    """A PNG with one column a class, `rows` images of each; without classes, ten columns.

    Images whose longer side is beyond `largest` pixels are reduced to it.
    """
    order, columns = _by_class(samples.labels, rows)
    images = _reduced(samples.images[order], largest)
    return png_url(pictures.png(pictures.grid(images, columns)))


def png_url(data: bytes) -> str:
    """The bytes of a PNG file as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _by_class(labels: np.ndarray, rows: int) -> tuple[list[int], int]:
    """The images shown, row by row, and the number of columns. Every column is equally long."""
    classes = [np.flatnonzero(labels == one) for one in np.unique(labels)]
    if len(classes) < 2:
        return list(range(min(len(labels), _COLUMNS * rows))), min(_COLUMNS, len(labels))
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
