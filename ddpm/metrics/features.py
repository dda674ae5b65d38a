"""Extractors: images as vectors, behind one small interface; and `pixels`, the simplest of them.

    pixels      the first principal components of the training images     this file
    classifier  a small network trained on the data's own labels          ddpm/metrics/classifier.py
    inception   TF-2015 weights as torch-fidelity ports them              ddpm/metrics/inception.py

Images come as uint8 (N, H, W, C). They go through in batches of one size, the last one filled up,
with TF32 off: the features of an image do not depend, to the bit, on how many images come after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.diffusion import Stream, philox
from ddpm.distributed import Group, whole_batches
from ddpm.errors import NonFiniteError
from ddpm.metrics import distances
from ddpm.metrics.distances import Interval, Moments, merged
from ddpm.runs import digest

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


# --------
# What is kept of many images: sums by group, and the features of some, whatever their number.
#
# Images are dealt into 16 groups, each like a random draw of them all. A group's sums are its
# moments and what its classifier saw; error bars come from leaving groups out. Features themselves
# are kept of at most 10,000 images, for the measures that compare pairs. Workers add up their sums.

GROUPS = 16
KEPT = 10_000
_DEAL_ID = (1 << 42) + 1  # of the draw that deals images; those of data sets lie below
_TINY = 1e-12
# Vectors of a group added together: each addition passes over a D x D matrix three times.
_AT_ONCE = 256

Ints = NDArray[np.int64]


@dataclass(kw_only=True)
class Judged:
    """What a classifier saw, summed by group, float64.

    counts: (G,) images.  entropies: (G,) sum of -sum_k p_k log p_k.  classes: (G, K) sum of p.
    hits: images told as the class they were to be; None where no class was asked for.
    """

    counts: Tensor
    entropies: Tensor
    classes: Tensor
    hits: int | None

    @classmethod
    def empty(cls, groups: int, classes: int, *, has_hits: bool) -> "Judged":
        """Of no image yet."""
        return cls(
            counts=torch.zeros(groups, dtype=torch.float64),
            entropies=torch.zeros(groups, dtype=torch.float64),
            classes=torch.zeros(groups, classes, dtype=torch.float64),
            hits=0 if has_hits else None,
        )

    def reduce_(self, group: Group) -> "Judged":
        """The sums over all workers, on every worker."""
        self.counts = group.sum_(self.counts.to(group.device)).cpu()
        self.entropies = group.sum_(self.entropies.to(group.device)).cpu()
        self.classes = group.sum_(self.classes.to(group.device)).cpu()
        if self.hits is not None:
            self.hits = int(group.sum_(torch.tensor([self.hits], device=group.device)))
        return self


@dataclass(kw_only=True)
class Statistics:
    """What is kept of a set of images.

    groups: their moments.  kept: (m, D) features of some, in groups kept_groups (m,); of those this
    worker saw.  kept_counts: (K,) how many are kept of each group, by all workers.  judged: None
    for features without classes.
    """

    groups: list[Moments]
    kept: Tensor
    kept_groups: Tensor
    kept_counts: Ints
    judged: Judged | None

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
            own = own or Judged.empty(len(self.groups), classes, has_hits=has_hits)
            self.judged = own.reduce_(group)
        return self


def deal(count: int, labels: Ints | None = None, *, groups: int = GROUPS) -> Ints:
    """The group of each of `count` images: as many in each as goes, by a keyed random order.

    labels: classes that were dealt out evenly; then every group gets its part of each class.
    """
    order = philox.permutation(0, Stream.EVAL, count, id=_DEAL_ID).numpy()
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    dealt = np.empty(count, np.int64)
    dealt[order] = np.arange(count) % groups
    return dealt


def collect(
    extractor: Extractor,
    batches: Iterable[NDArray[np.uint8]],
    dealt: Ints,
    *,
    labels: Ints | None = None,
    first: int = 0,
    kept: int = KEPT,
) -> Statistics:
    """The statistics of batches of images, the first of which is image `first` of all.

    dealt: the group of every image of all.  labels: the class every one was to be.
    """
    collector = _Collector(extractor, dealt, labels, kept)
    for images in batches:
        collector.add(first, extractor(images))
        first += len(images)
    return collector.statistics()


def collect_together(
    extractor: Extractor,
    batches: Callable[[range], Iterable[NDArray[np.uint8]]],
    dealt: Ints,
    group: Group,
    *,
    labels: Ints | None = None,
    kept: int = KEPT,
) -> Statistics:
    """The statistics of all images, each worker extracting whole batches of them.

    batches(places): the images at these places, by and by. An image lies in the same place of the
    same batch for any number of workers, so its features have the same bits.
    """
    own = whole_batches(len(dealt), extractor.batch_size, group)
    found = collect(extractor, batches(own), dealt, labels=labels, first=own.start, kept=kept)
    return found.reduce_(group)


class _Collector:
    def __init__(self, extractor: Extractor, dealt: Ints, labels: Ints | None, kept: int) -> None:
        self._dealt, self._labels, self._count = torch.from_numpy(dealt), labels, len(dealt)
        self._groups = [Moments.empty(extractor.dimension) for _ in range(int(dealt.max()) + 1)]
        self._waiting: list[list[Tensor]] = [[] for _ in self._groups]
        self._is_kept = torch.zeros(self._count, dtype=torch.bool)
        order = philox.permutation(0, Stream.EVAL, self._count, id=_DEAL_ID + 1)
        self._is_kept[order[:kept]] = True
        self._kept: list[Tensor] = [torch.empty(0, extractor.dimension)]
        self._kept_groups: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
        self._judged: Judged | None = None

    def add(self, first: int, features: Features) -> None:
        places = slice(first, first + len(features.vectors))
        dealt, is_kept = self._dealt[places], self._is_kept[places]
        for group in dealt.unique().tolist():
            self._waiting[group].append(features.vectors[dealt == group])
            if sum(map(len, self._waiting[group])) >= _AT_ONCE:
                self._take(group)
        self._kept.append(features.vectors[is_kept])
        self._kept_groups.append(dealt[is_kept])
        if features.probabilities is not None:
            self._judge(features.probabilities.to(torch.float64), dealt, places)

    def _take(self, group: int) -> None:
        """Adds what waits to the moments of a group."""
        if self._waiting[group]:
            self._groups[group].add(torch.cat(self._waiting[group]))
            self._waiting[group].clear()

    def _judge(self, p: Tensor, dealt: Tensor, places: slice) -> None:
        if self._judged is None:
            has_hits = self._labels is not None
            self._judged = Judged.empty(len(self._groups), p.shape[1], has_hits=has_hits)
        judged = self._judged
        judged.counts.index_add_(0, dealt, torch.ones(len(p), dtype=torch.float64))
        judged.entropies.index_add_(0, dealt, -(p * p.clamp(min=_TINY).log()).sum(dim=1))
        judged.classes.index_add_(0, dealt, p)
        if self._labels is not None and judged.hits is not None:
            wanted = torch.from_numpy(self._labels[places])
            judged.hits += int((p.argmax(dim=1) == wanted).sum())

    def statistics(self) -> Statistics:
        for group in range(len(self._groups)):
            self._take(group)
        return Statistics(
            groups=self._groups,
            kept=torch.cat(self._kept),
            kept_groups=torch.cat(self._kept_groups),
            kept_counts=self._dealt[self._is_kept].bincount(minlength=len(self._groups)).numpy(),
            judged=self._judged,
        )


# --------
# What a classifier says of samples: how sure and how varied it is, and whether the class is right.
#
#     score     exp(mean_x KL(p(y | x) || p(y))) = exp(H(mean p) - mean H(p))       Salimans 2016
#               "inception score" with Inception's classes, "classifier score" with the data's own:
#               from 1 (all alike) to the number of classes (each sure, all equally frequent)
#     accuracy  share of class-conditional samples told as the class they were to be
#
# A score of n images is too small by about (K - 1) / 2n, which the jackknife takes out.


def score(judged: Judged) -> Interval:
    """The inception or classifier score, by the jackknife over groups."""
    counts, entropies, classes = judged.counts, judged.entropies, judged.classes
    whole = _score(counts.sum(), entropies.sum(), classes.sum(dim=0))
    without = [
        _score(
            counts.sum() - counts[group],
            entropies.sum() - entropies[group],
            classes.sum(dim=0) - classes[group],
        )
        for group in range(len(counts))
    ]
    return distances.jackknife(whole, np.array(without), int(counts.sum()), corrected=True)


def accuracy(judged: Judged) -> Interval:
    """The share of samples told as their class, which must have been asked for."""
    assert judged.hits is not None
    return distances.share(judged.hits, int(judged.counts.sum()))


def _score(count: Tensor, entropy: Tensor, classes: Tensor) -> float:
    p = classes / count
    marginal = -(p * p.clamp(min=1e-12).log()).sum()
    return float(torch.exp(marginal - entropy / count))
