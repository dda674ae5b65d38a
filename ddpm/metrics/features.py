"""Features: images as vectors behind one small interface, and the sums that stay of them.

    pixels      the first principal components of the training images     this file
    classifier  a small network trained on the data's own labels          classifier.py
    inception   TF-2015 weights as torch-fidelity ports them              inception.py
    clip        CLIP's image encoder, likewise                            inception.py

Images come as uint8 (N, H, W, C). They go through in batches of one size, the last one filled up,
with TF32 off: the features of an image do not depend, to the bit, on how many images come after it.

Images are dealt into 16 groups, each like a random draw of them all. A group's sums are its moments
and those of its class probabilities; intervals come from leaving groups out. Features themselves
are kept of at most 10,000 images, for the metrics that compare pairs. Workers add up their sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.diffusion import Stream, philox
from ddpm.distributed import ALONE, Group, whole_batches
from ddpm.errors import NonFiniteError
from ddpm.runs import digest

PIXEL_DIMENSIONS = 32
# Principal components of larger images would need a matrix of gigabytes: their pixels are averaged.
PIXEL_SIDE = 32
GROUPS = 16
KEPT = 10_000
_DEAL_ID = (1 << 42) + 1  # of the draw that deals images; those of data sets lie below
_TINY = 1e-12
# Vectors of a group added together: each addition passes over a D x D matrix three times.
_AT_ONCE = 256

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Features:
    """vectors: float32 (n, D).  probabilities: of the classes, float32 (n, K), where it has any."""

    vectors: Tensor
    probabilities: Tensor | None = None


class Extractor(ABC):
    """Images to vectors.

    name: as in EVALUATION.FEATURES.  sha256: of all the features depend on but the image.
    dimension: of a vector.  description: for the protocol.  knows_labels: whether its classes are
    those of the data.  threads: of the CPU; None leaves them as they are.
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
        size, vectors, probabilities = self.batch_size, [], []
        with exact_arithmetic(self.threads):
            for first in range(0, len(images), size):
                part = images[first : first + size]
                batch = torch.zeros((size, *part.shape[1:]), dtype=torch.uint8)
                batch[: len(part)] = torch.tensor(part)
                found = self.batch(batch)
                vectors.append(found.vectors[: len(part)])
                if found.probabilities is not None:
                    probabilities.append(found.probabilities[: len(part)])
                if not bool(vectors[-1].isfinite().all()):
                    raise NonFiniteError(
                        f"{self.name} features of images {first} to {first + len(part) - 1} "
                        "are not finite; nothing can be measured with these weights"
                    )
        return Features(
            vectors=torch.cat(vectors),
            probabilities=torch.cat(probabilities) if probabilities else None,
        )


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
        values = nn.functional.adaptive_avg_pool2d(values, size)
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
    before, backends = torch.get_num_threads(), torch.backends
    wanted: tuple[tuple[Any, str, bool], ...] = (
        (backends.cuda.matmul, "allow_tf32", False),
        (backends.cudnn, "allow_tf32", False),
        (backends.cudnn, "deterministic", True),
        (backends.cudnn, "benchmark", False),
    )
    saved = [getattr(module, name) for module, name, _ in wanted]
    try:
        torch.set_num_threads(threads or before)
        for module, name, value in wanted:
            setattr(module, name, value)
        yield
    finally:
        torch.set_num_threads(before)
        for (module, name, _), value in zip(wanted, saved, strict=True):
            setattr(module, name, value)


@dataclass(kw_only=True)
class Moments:
    """Number of vectors, their mean (D,) and scatter (D, D), streamed in float64, on the CPU.

    count, mean = sum x / n, scatter = sum (x - mean)(x - mean)^T            (Chan et al. 1979)

    Sums around the mean lose nothing to a mean far from zero, and parts merge in any order: as
    exact as all at once to about 1e-13. A D x D matrix is kept and no feature.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """Of no vector yet."""
        return cls(
            count=0,
            mean=torch.zeros(dimension, dtype=torch.float64),
            scatter=torch.zeros(dimension, dimension, dtype=torch.float64),
        )

    @classmethod
    def of(cls, vectors: Tensor) -> "Moments":
        """Of vectors (n, D)."""
        moments = cls.empty(vectors.shape[1])
        moments.add(vectors)
        return moments

    def add(self, vectors: Tensor) -> None:
        """Takes in vectors (n, D), of any floating type, on any device."""
        if len(vectors) == 0:
            return
        values = vectors.to(torch.float64)
        mean = values.mean(dim=0)
        values = values - mean
        scatter = (values.mT @ values).cpu()
        self._take(len(vectors), mean.cpu(), scatter)

    def merge(self, other: "Moments") -> None:
        """Takes in all that `other` has seen; `other` stays as it is."""
        if other.count:
            self._take(other.count, other.mean, other.scatter)

    def _take(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def without(self, part: "Moments") -> "Moments":
        """Of what this has seen and `part`, a part of it, has not."""
        count = self.count - part.count
        mean = (self.mean * self.count - part.mean * part.count) / count
        apart = part.mean - mean
        scatter = self.scatter - part.scatter
        scatter.addr_(apart, apart, alpha=-count * part.count / self.count)
        return Moments(count=count, mean=mean, scatter=scatter)

    def reduce_(self, group: Group) -> "Moments":
        """Of what all workers have seen, on every worker; nothing but sums travels."""
        if group.size == 1:
            return self
        sums = torch.cat([torch.tensor([self.count], dtype=torch.float64), self.mean * self.count])
        sums = group.sum_(sums.to(group.device)).cpu()
        mean = sums[1:] / sums[0].clamp(min=1)
        apart = self.mean - mean
        scatter = self.scatter.addr(apart, apart, alpha=self.count)
        self.scatter = group.sum_(scatter.to(group.device)).cpu()
        self.count, self.mean = int(sums[0]), mean
        return self

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(D, D), divided by n - 1. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two vectors at least, there are {self.count}")
        return (self.scatter / (self.count - 1)).numpy()


def merged(parts: Iterable[Moments]) -> Moments:
    """Of what all parts, one at least, have seen."""
    first, *others = parts
    total = Moments(count=first.count, mean=first.mean.clone(), scatter=first.scatter.clone())
    for part in others:
        total.merge(part)
    return total


@dataclass(kw_only=True)
class ClassSums:
    """Class probabilities summed by group, float64.

    counts: (G,) images.  entropies: (G,) sum of -sum_k p_k log p_k.  classes: (G, K) sum of p.
    hits: images whose likeliest class is their own; None where none was given.
    """

    counts: Tensor
    entropies: Tensor
    classes: Tensor
    hits: int | None

    @classmethod
    def empty(cls, groups: int, classes: int, *, has_hits: bool) -> "ClassSums":
        """Of no image yet."""
        return cls(
            counts=torch.zeros(groups, dtype=torch.float64),
            entropies=torch.zeros(groups, dtype=torch.float64),
            classes=torch.zeros(groups, classes, dtype=torch.float64),
            hits=0 if has_hits else None,
        )

    def add(self, p: Tensor, groups: Tensor, labels: Tensor | None) -> None:
        """Adds probabilities (n, K) of images in `groups` (n,), whose classes are `labels`."""
        self.counts.index_add_(0, groups, torch.ones(len(p), dtype=torch.float64))
        self.entropies.index_add_(0, groups, -(p * p.clamp(min=_TINY).log()).sum(dim=1))
        self.classes.index_add_(0, groups, p)
        if labels is not None and self.hits is not None:
            self.hits += int((p.argmax(dim=1) == labels).sum())

    def reduce_(self, group: Group) -> None:
        """The sums over all workers, on every worker."""
        self.counts = group.sum_(self.counts.to(group.device)).cpu()
        self.entropies = group.sum_(self.entropies.to(group.device)).cpu()
        self.classes = group.sum_(self.classes.to(group.device)).cpu()
        if self.hits is not None:
            self.hits = int(group.sum_(torch.tensor([self.hits], device=group.device)))


@dataclass(kw_only=True)
class Statistics:
    """Sums over a set of images.

    groups: their moments.  kept: (m, D) features of some, in groups kept_groups (m,); of those of
    this worker.  kept_counts: (K,) number kept of each group, by all workers.  judged: None for
    features without classes.
    """

    groups: list[Moments]
    kept: Tensor
    kept_groups: Tensor
    kept_counts: Ints
    judged: ClassSums | None

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    def whole(self) -> Moments:
        """The moments of all images."""
        return merged(self.groups)

    def blocks(self) -> list[Tensor]:
        """The kept features of each group."""
        return [self.kept[self.kept_groups == group] for group in range(len(self.groups))]

    def reduce_(self, group: Group) -> "Statistics":
        """The sums over all workers, on every worker; kept features stay where they are."""
        if group.size == 1:
            return self
        for moments in self.groups:
            moments.reduce_(group)
        own = self.judged  # a worker without images knows of no classes
        classes = group.largest(own.classes.shape[1] if own else 0)
        has_hits = group.any(own is not None and own.hits is not None)
        if classes:
            self.judged = own or ClassSums.empty(len(self.groups), classes, has_hits=has_hits)
            self.judged.reduce_(group)
        return self


def random_groups(count: int, labels: Ints | None = None) -> Ints:
    """The group of each of `count` images: as many in each as goes, by a keyed random order.

    labels: classes that were dealt out evenly; then every group gets its part of each class.
    """
    order = philox.permutation(0, Stream.EVAL, count, id=_DEAL_ID).numpy()
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    dealt = np.empty(count, np.int64)
    dealt[order] = np.arange(count) % GROUPS
    return dealt


def collect_features(
    extractor: Extractor,
    batches: Iterable[Pixels],
    dealt: Ints,
    *,
    labels: Ints | None = None,
    first: int = 0,
    kept: int = KEPT,
) -> Statistics:
    """The statistics of batches of images, the first of which is image `first` of all.

    dealt: the group of every image of all.  labels: the class of every one.
    """
    dealt_, count = torch.from_numpy(dealt), len(dealt)
    groups = [Moments.empty(extractor.dimension) for _ in range(int(dealt.max()) + 1)]
    is_kept = torch.zeros(count, dtype=torch.bool)
    is_kept[philox.permutation(0, Stream.EVAL, count, id=_DEAL_ID + 1)[:kept]] = True
    kept_vectors: list[Tensor] = [torch.empty(0, extractor.dimension)]
    kept_groups: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    waiting: list[list[Tensor]] = [[] for _ in groups]
    judged: ClassSums | None = None
    for images in batches:
        features, places = extractor(images), slice(first, first + len(images))
        own, first = dealt_[places], places.stop
        for group in own.unique().tolist():
            waiting[group].append(features.vectors[own == group])
            if sum(map(len, waiting[group])) >= _AT_ONCE:
                groups[group].add(torch.cat(waiting[group]))
                waiting[group].clear()
        kept_vectors.append(features.vectors[is_kept[places]])
        kept_groups.append(own[is_kept[places]])
        if features.probabilities is not None:
            p = features.probabilities.to(torch.float64)
            if judged is None:
                judged = ClassSums.empty(len(groups), p.shape[1], has_hits=labels is not None)
            judged.add(p, own, None if labels is None else torch.from_numpy(labels[places]))
    for group, rest in enumerate(waiting):
        if rest:
            groups[group].add(torch.cat(rest))
    return Statistics(
        groups=groups,
        kept=torch.cat(kept_vectors),
        kept_groups=torch.cat(kept_groups),
        kept_counts=dealt_[is_kept].bincount(minlength=len(groups)).numpy(),
        judged=judged,
    )


def collect_together(
    extractor: Extractor,
    batches: Callable[[range], Iterable[Pixels]],
    dealt: Ints,
    group: Group = ALONE,
    *,
    labels: Ints | None = None,
) -> Statistics:
    """The statistics of all images, each worker extracting whole batches of them.

    batches(places): the images at these places, by and by. An image lies in the same place of the
    same batch for any number of workers, so its features have the same bits.
    """
    own = whole_batches(len(dealt), extractor.batch_size, group)
    found = collect_features(extractor, batches(own), dealt, labels=labels, first=own.start)
    return found.reduce_(group)
