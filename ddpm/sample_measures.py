"""The measures of samples, each with what it needs: a table of numbers, or of reasons for none.

A measure is a function of one `View` of images: the samples, and in the same way real images that
were held out, whose number is the floor: what samples as good as real ones would get. A number that
depends on how many images it is of has a floor at equal numbers only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm import class_measures, memorisation
from ddpm.distributed import ALONE, Group
from ddpm.estimates import Estimate
from ddpm.features import Extractor
from ddpm.fid import IMAGES_PER_DIMENSION, fid
from ddpm.kernel_means import KernelReference
from ddpm.kid import BLOCK_LEAST, kid_against
from ddpm.manifold import Manifold, manifold
from ddpm.reference_statistics import Reference
from ddpm.sample_statistics import GROUPS, Judged, Statistics

# Each of the 16 groups needs a block for KID: fewer images give no distance at all.
LEAST = GROUPS * BLOCK_LEAST


class Unmeasured(Exception):
    """Why a number would mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Images as the measures see them.

    distances: of samples to the nearest training image; held_out: the same of held-out images.
    workers: all measure this view together; each keeps the features of its own images.
    """

    statistics: Statistics
    reference: Reference
    extractor: Extractor
    distances: NDArray[np.float64] | None = None
    held_out: NDArray[np.float64] | None = None
    workers: Group = ALONE

    @cached_property
    def fids(self) -> tuple[Estimate, Estimate]:
        """At the number of images, and at infinity."""
        least = IMAGES_PER_DIMENSION * self.extractor.dimension
        for count, what in (
            (self.statistics.count, "images"),
            (self.reference.moments.count, "reference images"),
        ):
            if count < least:
                raise Unmeasured(
                    f"needs {least} {what} for {self.extractor.dimension} features, there are "
                    f"{count}"
                )
        return fid(self.statistics.groups, self.reference.moments, self.workers)

    @cached_property
    def manifold(self) -> Manifold:
        """Precision, recall, density, coverage."""
        self._require_pairs()
        statistics = self.statistics
        return manifold(statistics.kept, statistics.kept_groups, self.reference.kept, self.workers)

    def kid(self) -> Estimate:
        """The kernel distance of the kept features."""
        self._require_pairs()
        reference = KernelReference.of(self.reference.blocks(), self.workers)
        return kid_against(self.statistics.blocks(), reference)

    def judged(self) -> Judged:
        """What the extractor's classes say."""
        if self.statistics.judged is None:
            raise Unmeasured(f"{self.extractor.name} features tell no classes")
        return self.statistics.judged

    def accuracy(self) -> Estimate:
        """Of samples that have a class."""
        judged = self.judged()
        if not self.extractor.knows_labels:
            raise Unmeasured(f"the classes of {self.extractor.name} are not those of the data")
        if judged.hits is None:
            raise Unmeasured("the images come without labels")
        return class_measures.accuracy(judged)

    def nearer(self) -> Estimate:
        """How often a sample is nearer to the training images than a held-out one."""
        return memorisation.nearer(*self._distances())

    def copies(self) -> Estimate:
        """The share of samples that are nearer than nearly every held-out image."""
        distances, held_out = self._distances()
        if len(held_out) < memorisation.HELD_OUT_LEAST:
            raise Unmeasured(
                f"needs {memorisation.HELD_OUT_LEAST} held-out images, there are {len(held_out)}"
            )
        if memorisation.bound(held_out) == 0:
            raise Unmeasured("1 % of the held-out images are themselves in the training set")
        return memorisation.copies(distances, held_out)

    def _distances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.distances is None or self.held_out is None or len(self.held_out) < LEAST:
            raise Unmeasured(f"needs {LEAST} held-out images, which training never saw")
        return self.distances, self.held_out

    def _require_pairs(self) -> None:
        for counts, what in (
            (self.statistics.kept_counts, "images"),
            (self.reference.kept_counts, "reference images"),
        ):
            if len(counts) < GROUPS or counts.min() < BLOCK_LEAST:
                raise Unmeasured(f"needs {LEAST} {what}, there are {counts.sum()}")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row. better: where better samples go.  fresh: the floor where it is known beforehand."""

    key: str
    title: str
    better: str
    of: Callable[[View], Estimate]
    scale: float = 1.0
    fresh: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a measure: a number, or the reason for none; and its floor or none."""

    measure: Measure
    estimate: Estimate | None
    reason: str | None
    floor: Estimate | None

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        if self.estimate is None:
            return {"value": None, "reason": self.reason}
        floor = vars(self.floor) if self.floor else self.measure.fresh
        return {**vars(self.estimate), "better": self.measure.better, "floor": floor}

    @classmethod
    def of(cls, measure: Measure, told: Mapping[str, Any]) -> "Row":
        """From what told() gave."""
        floor = told.get("floor")
        return cls(
            measure=measure,
            estimate=None if told["value"] is None else _estimate(told),
            reason=told.get("reason"),
            floor=_estimate(floor) if isinstance(floor, Mapping) else None,
        )


def _estimate(told: Mapping[str, Any]) -> Estimate:
    names = ("value", "low", "high", "n", "unbiased")
    return Estimate(**{name: told[name] for name in names})


MEASURES = (
    Measure(key="fid", title="FID of n images", better="lower", of=lambda view: view.fids[0]),
    Measure(key="fid_infinity", title="FID, n → ∞", better="lower", of=lambda view: view.fids[1]),
    Measure(key="kid", title="KID x 1000", better="lower", of=View.kid, scale=1000.0),
    Measure(
        key="precision", title="precision", better="higher", of=lambda view: view.manifold.precision
    ),
    Measure(key="recall", title="recall", better="higher", of=lambda view: view.manifold.recall),
    Measure(key="density", title="density", better="higher", of=lambda view: view.manifold.density),
    Measure(
        key="coverage", title="coverage", better="higher", of=lambda view: view.manifold.coverage
    ),
    Measure(
        key="class_score",
        title="class score",
        better="higher",
        of=lambda view: class_measures.score(view.judged()),
    ),
    Measure(key="class_accuracy", title="class accuracy", better="higher", of=View.accuracy),
    Measure(key="nearer", title="nearer than held out", better="to 0.5", of=View.nearer, fresh=0.5),
    Measure(
        key="copies",
        title="copies of training images",
        better="to 0.01",
        of=View.copies,
        fresh=memorisation.COPY_SHARE,
    ),
)


def rows(view: View, floor: View | None) -> list[Row]:
    """Every measure of `view`, with the floor that held-out images give where they are enough."""
    found = []
    for measure in MEASURES:
        estimate, reason = _of(measure, view)
        below = None
        if floor is not None and estimate is not None and measure.fresh is None:
            below, _ = _of(measure, floor)
            if below is not None and not estimate.unbiased and below.n != estimate.n:
                below = None
        found.append(Row(measure=measure, estimate=estimate, reason=reason, floor=below))
    return found


def _of(measure: Measure, view: View) -> tuple[Estimate | None, str | None]:
    try:
        return measure.of(view), None
    except Unmeasured as reason:
        return None, str(reason)
