"""evaluate(): images against a reference, every number with its interval; and METRICS, its table.

Another metric is one function of a MetricInput and one line of METRICS. In training, at the end of
a run and in `ddpm evaluate` images are measured by this one function. A number that would mean
nothing, of too few images or by features unfit for it, is left out with its reason.

A floor is the number that held-out real images get: samples as good as real ones would get it. A
number that depends on how many images it is of has a floor at equal numbers only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ddpm.metrics import intervals, manifold
from ddpm.metrics.distances import BLOCK_LEAST, IMAGES_PER_DIMENSION
from ddpm.metrics.features import (
    GROUPS,
    ClassSums,
    Ints,
    Pixels,
    Statistics,
    collect_together,
    random_groups,
)
from ddpm.metrics.intervals import Interval, Numbers
from ddpm.metrics.manifold import Manifold
from ddpm.metrics.reference import RealData, Reference, subset

# Each of the 16 groups needs a block for KID: fewer images give no distance at all.
LEAST = GROUPS * BLOCK_LEAST


class Unmeasured(Exception):
    """The reason why a number would mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images to be measured.

    batches(places): those at these places of range(count), uint8 (n, H, W, C), by and by.
    labels: the class of each, (count,).  in_turn: classes are dealt out, not drawn.
    """

    count: int
    batches: Callable[[range], Iterable[Pixels]]
    labels: Ints | None = None
    in_turn: bool = False


@dataclass(frozen=True, kw_only=True)
class MetricInput:
    """Images and reference as the metrics see them.

    nearest: distances to the nearest training image, of samples and of held-out images.
    """

    statistics: Statistics
    reference: Reference
    nearest: tuple[Numbers, Numbers] | None = None

    @cached_property
    def fids(self) -> tuple[Interval, Interval]:
        """At the number of images, and at infinity."""
        reference, dimension = self.reference, self.reference.extractor.dimension
        least = IMAGES_PER_DIMENSION * dimension
        for count, what in (
            (self.statistics.count, "images"),
            (reference.moments.count, "reference images"),
        ):
            if count < least:
                raise Unmeasured(
                    f"needs {least} {what} for {dimension} features, there are {count}"
                )
        return reference.frechet.fid(self.statistics.groups, reference.workers)

    @cached_property
    def manifold(self) -> Manifold:
        """Precision, recall, density, coverage."""
        self._require_pairs()
        found, reference = self.statistics, self.reference
        return manifold.measure_manifold(
            found.kept, found.kept_groups, reference.kept, reference.workers
        )

    def kid(self) -> Interval:
        """The kernel distance of the kept features."""
        self._require_pairs()
        return self.reference.kernels.kid(self.statistics.blocks())

    def class_score(self) -> Interval:
        """exp(mean_x KL(p(y | x) || p(y))) by the extractor's classes."""
        return class_score(self._judged())

    def class_accuracy(self) -> Interval:
        """The share of samples classified as their own class."""
        judged, extractor = self._judged(), self.reference.extractor
        if not extractor.knows_labels:
            raise Unmeasured(f"the classes of {extractor.name} are not those of the data")
        if judged.hits is None:
            raise Unmeasured("the images come without labels")
        return intervals.proportion(judged.hits, int(judged.counts.sum()))

    def nearer(self) -> Interval:
        """P(a sample is nearer to the training images than a held-out one)."""
        return intervals.order(*self._distances())

    def copies(self) -> Interval:
        """The share of samples that are nearer than nearly every held-out image."""
        distances, held_out = self._distances()
        if len(held_out) < manifold.HELD_OUT_LEAST:
            raise Unmeasured(
                f"needs {manifold.HELD_OUT_LEAST} held-out images, there are {len(held_out)}"
            )
        if manifold.bound(held_out) == 0:
            raise Unmeasured("1 % of the held-out images are themselves in the training set")
        return manifold.copies(distances, held_out)

    def _judged(self) -> ClassSums:
        if self.statistics.judged is None:
            raise Unmeasured(f"{self.reference.extractor.name} features tell no classes")
        return self.statistics.judged

    def _distances(self) -> tuple[Numbers, Numbers]:
        if self.nearest is None:
            raise Unmeasured(f"needs {LEAST} held-out images, which training never saw")
        return self.nearest

    def _require_pairs(self) -> None:
        for counts, what in (
            (self.statistics.kept_counts, "images"),
            (self.reference.kept_counts, "reference images"),
        ):
            if len(counts) < GROUPS or counts.min() < BLOCK_LEAST:
                raise Unmeasured(f"needs {LEAST} {what}, there are {counts.sum()}")


def class_score(judged: ClassSums) -> Interval:
    """The inception or classifier score, exp(H(mean p) - mean H(p))         (Salimans 2016).

    "inception score" with Inception's classes, "classifier score" with the data's own: from 1 (all
    alike) to the number of classes (each sure, all equally frequent). A score of n images is too
    small by about (K - 1) / 2n, which the jackknife over groups takes out.
    """
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
    return intervals.jackknife(whole, np.array(without), int(counts.sum()), corrected=True)


def _score(count: Tensor, entropy: Tensor, classes: Tensor) -> float:
    p = classes / count
    marginal = -(p * p.clamp(min=1e-12).log()).sum()
    return float(torch.exp(marginal - entropy / count))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """better: the direction of better samples.  fresh: the floor where it is known beforehand."""

    title: str
    better: str
    of: Callable[[MetricInput], Interval]
    scale: float = 1.0
    fresh: float | None = None


METRICS = {
    "fid": Metric(title="FID of n images", better="lower", of=lambda c: c.fids[0]),
    "fid_infinity": Metric(title="FID, n → ∞", better="lower", of=lambda c: c.fids[1]),
    "kid": Metric(title="KID x 1000", better="lower", of=MetricInput.kid, scale=1000.0),
    "precision": Metric(title="precision", better="higher", of=lambda c: c.manifold.precision),
    "recall": Metric(title="recall", better="higher", of=lambda c: c.manifold.recall),
    "density": Metric(title="density", better="higher", of=lambda c: c.manifold.density),
    "coverage": Metric(title="coverage", better="higher", of=lambda c: c.manifold.coverage),
    "class_score": Metric(title="class score", better="higher", of=MetricInput.class_score),
    "class_accuracy": Metric(
        title="class accuracy", better="higher", of=MetricInput.class_accuracy
    ),
    "nearer": Metric(
        title="nearer than held out", better="to 0.5", of=MetricInput.nearer, fresh=0.5
    ),
    "copies": Metric(
        title="copies of training images",
        better="to 0.01",
        of=MetricInput.copies,
        fresh=manifold.COPY_SHARE,
    ),
}


def evaluate(
    images: Images,
    reference: Reference,
    metrics: Iterable[str] = METRICS,
    *,
    nearest: tuple[Numbers, Numbers] | None = None,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """{name: Interval} of images against a reference, and {name: reason} of those left out.

    All workers of the reference call this; each takes its share, and all have all the numbers.
    """
    extractor = reference.extractor
    statistics = collect_together(
        extractor,
        images.batches,
        random_groups(images.count, images.labels if images.in_turn else None),
        reference.workers,
        labels=images.labels if extractor.knows_labels else None,
    )
    comparison = MetricInput(statistics=statistics, reference=reference, nearest=nearest)
    found: dict[str, Interval] = {}
    reasons: dict[str, str] = {}
    for name in metrics:
        try:
            found[name] = METRICS[name].of(comparison)
        except Unmeasured as reason:
            reasons[name] = str(reason)
    return found, reasons


def real_images(
    metrics: Iterable[str], count: int, real: RealData, split: str, reference: Reference
) -> tuple[dict[str, Interval], int]:
    """The numbers of at most `count` images of the other split, and how many they are; none of too
    few.
    """
    others = real.ids("validation" if split == "train" else "train")
    ids = others[subset(len(others), count)]
    if len(ids) < LEAST:
        return {}, 0
    images = Images(
        count=len(ids),
        batches=lambda places: real.batches(ids[places.start : places.stop]),
        labels=real.labels(ids),
    )
    found, _ = evaluate(images, reference, metrics)
    return found, len(ids)
