"""What is kept of many images: sums by group, and the features of some, whatever their number.

Images are dealt into 16 groups, each like a random draw of them all. A group's sums are its
moments and what its classifier saw; error bars come from leaving groups out. Features themselves
are kept of at most 10,000 images, for the measures that compare pairs. Workers add up their sums.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import noise
from ddpm.distributed import Group, whole_batches
from ddpm.features import Extractor, Features
from ddpm.moments import Moments, merged
from ddpm.noise import Stream

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
    order = noise.permutation(0, Stream.EVAL, count, id=_DEAL_ID).numpy()
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
        order = noise.permutation(0, Stream.EVAL, self._count, id=_DEAL_ID + 1)
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
