"""Extractors: images as vectors, behind one small interface; and `pixels`, the simplest of them.

    pixels      the first principal components of the training images     this file
    classifier  a small network trained on the data's own labels          ddpm/classifier.py
    inception   TF-2015 weights as torch-fidelity ports them              ddpm/adapters/inception.py

Images come as uint8 (N, H, W, C). They go through in batches of one size, the last one filled up,
with TF32 off: the features of an image do not depend, to the bit, on how many images come after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.errors import NonFiniteError
from ddpm.moments import Moments
from ddpm.tensor_files import digest

Pixels = NDArray[np.uint8]

PIXEL_DIMENSIONS = 32
# Principal components of larger images would need a matrix of gigabytes: their pixels are averaged.
PIXEL_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Features:
    """vectors: float32 (n, D).  probabilities: of the classes, float32 (n, K), where it has any."""

    vectors: Tensor
    probabilities: Tensor | None = None

    def part(self, count: int) -> "Features":
        """Of the first `count` images."""
        probabilities = None if self.probabilities is None else self.probabilities[:count]
        return Features(vectors=self.vectors[:count], probabilities=probabilities)


class Extractor(ABC):
    """Turns images into vectors.

    name: as the user asks for it.  sha256: of all the features depend on but the image.
    dimension: of a vector.  description: for the protocol.  knows_labels: whether the classes it
    tells are those of the data.  threads: of the CPU; None leaves them as they are.
    """

    name: str
    sha256: str
    dimension: int
    description: str
    knows_labels = False
    batch_size = 64
    threads: int | None = 1

    @abstractmethod
    def batch(self, images: Tensor) -> Features:
        """The features of exactly batch_size images, uint8 (B, H, W, C) on the CPU."""

    @torch.no_grad()
    def __call__(self, images: Pixels) -> Features:
        """The features of images, uint8 (N, H, W, C), N at least 1, on the CPU.

        Raises NonFiniteError where one is not finite.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"features are of uint8 (N, H, W, C), not {images.dtype} {images.shape}"
            )
        with exact_arithmetic(self.threads):
            found = [self._padded(part) for part in _parts(images, self.batch_size)]
        for number, part in enumerate(found):
            if not bool(part.vectors.isfinite().all()):
                first = number * self.batch_size
                raise NonFiniteError(
                    f"{self.name} features of images {first} to {first + len(part.vectors) - 1} "
                    "are not finite; nothing can be measured with these weights"
                )
        probabilities = [part.probabilities for part in found if part.probabilities is not None]
        return Features(
            vectors=torch.cat([part.vectors for part in found]),
            probabilities=torch.cat(probabilities) if probabilities else None,
        )

    def _padded(self, part: Pixels) -> Features:
        batch = torch.zeros((self.batch_size, *part.shape[1:]), dtype=torch.uint8)
        batch[: len(part)] = torch.tensor(part)
        return self.batch(batch).part(len(part))


class PixelFeatures(Extractor):
    """The principal components of the training images, of variance 1 on average over them."""

    name = "pixels"

    def __init__(self, mean: Tensor, components: Tensor, sha256: str) -> None:
        self._mean, self._components = mean, components
        self.sha256 = digest({"extractor": self.name, "version": 1, "weights": sha256})
        self.dimension = components.shape[1]
        self.description = f"the first {self.dimension} principal components of its training pixels"

    def batch(self, images: Tensor) -> Features:
        flat = flat_pixels(images) - self._mean
        return Features(vectors=(flat @ self._components).to(torch.float32))


def flat_pixels(images: Tensor) -> Tensor:
    """uint8 (n, H, W, C) as float64 (n, D) in [0, 1], averaged to at most 32 x 32 pixels."""
    values = images.permute(0, 3, 1, 2).to(torch.float64) / 255
    height, width = values.shape[2:]
    if max(height, width) > PIXEL_SIDE:
        size = (min(height, PIXEL_SIDE), min(width, PIXEL_SIDE))
        values = torch.nn.functional.adaptive_avg_pool2d(values, size)
    return values.flatten(1)


def principal_components(images: Iterable[Pixels]) -> dict[str, Tensor]:
    """The mean and the leading principal components of batches of images, float64.

    As many as 32, at most half of the pixels. The largest entry of a component is positive, so it
    is one vector and not two. All are scaled by one number, which the polynomial of KID needs.
    """
    moments = None
    for batch in images:
        flat = flat_pixels(torch.tensor(batch))
        moments = moments or Moments.empty(flat.shape[1])
        moments.add(flat)
    assert moments is not None  # a training split is never empty
    count = max(1, min(PIXEL_DIMENSIONS, moments.dimension // 2))
    values, vectors = np.linalg.eigh(moments.covariance)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]  # ascending before
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(count)])
    scale = 1.0 / np.sqrt(max(values.mean(), np.finfo(np.float64).tiny))
    return {"mean": moments.mean, "components": torch.tensor(vectors * signs * scale)}


@contextmanager
def exact_arithmetic(threads: int | None = None) -> Iterator[None]:
    """Full float32, deterministic kernels and so many CPU threads inside; as before afterwards."""
    backends = torch.backends
    before = (
        torch.get_num_threads(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
        backends.cudnn.deterministic,
        backends.cudnn.benchmark,
    )
    try:
        _set_arithmetic(threads or before[0], False, False, True, False)
        yield
    finally:
        _set_arithmetic(*before)


def _set_arithmetic(
    threads: int, matmul_tf32: bool, conv_tf32: bool, deterministic: bool, benchmark: bool
) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = conv_tf32
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = benchmark


def _parts(images: Pixels, size: int) -> Iterator[Pixels]:
    yield from (images[start : start + size] for start in range(0, len(images), size))
