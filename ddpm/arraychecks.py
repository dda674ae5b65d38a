"""What must be true of arrays of images and labels before they become a data set, in words."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm.tarscan import MAX_LABEL


class Told(Protocol):
    """What arrays and the headers of files both say."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


@dataclass(frozen=True)
class Header:
    """What a file says of its array before the array is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def image_problems(told: Told) -> list[str]:
    """Why an array cannot be images (N, H, W[, C])."""
    problems = []
    if len(told.shape) not in (3, 4) or 0 in told.shape:
        problems.append(f"have shape {told.shape}; give (N, H, W) or (N, H, W, C)")
    if told.dtype != np.uint8 and told.dtype.kind != "f":
        problems.append(f"are {told.dtype}; give uint8, or floats in [0, 1]")
    return problems


def label_shape_problems(told: Told, count: int) -> list[str]:
    """Why an array cannot be the labels of `count` images."""
    problems = []
    if told.shape not in ((count,), (count, 1)):
        problems.append(f"have shape {told.shape}; give one label an image, ({count},)")
    if told.dtype.kind not in "iu":
        problems.append(f"are {told.dtype}; give whole numbers from 0")
    return problems


def label_problems(labels: NDArray) -> list[str]:
    """Which labels are no class numbers."""
    problems = []
    for wrong, what in ((labels < 0, "below 0"), (labels > MAX_LABEL, f"above {MAX_LABEL}")):
        if count := int(wrong.sum()):
            first = int(wrong.argmax())
            problems.append(
                f"{count} labels are {what}, the first is {labels[first]} of image {first}"
            )
    return problems


def float_problems(images: NDArray) -> list[str]:
    """Which images have values outside [0, 1], looked through piece by piece."""
    wrong: list[int] = []
    step = max(1, (1 << 22) // max(1, images[0].size))
    for start in range(0, len(images), step):
        piece = images[start : start + step].reshape(len(images[start : start + step]), -1)
        with np.errstate(invalid="ignore"):
            is_wrong = ~((piece.min(axis=1) >= 0) & (piece.max(axis=1) <= 1))  # NaN is wrong too
        wrong += (start + np.flatnonzero(is_wrong)).tolist()
    if not wrong:
        return []
    low, high = float(images[wrong[0]].min()), float(images[wrong[0]].max())
    return [
        f"{len(wrong)} float images have values outside [0, 1], the first is image {wrong[0]} "
        f"with {low:g} to {high:g}; scale them, or give uint8"
    ]
