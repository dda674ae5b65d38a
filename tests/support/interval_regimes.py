"""Regimes in which intervals are tried: features whose distribution is known, drawn many times.

A regime draws a sample, makes an estimate of it and knows the truth. A line of the table says how
often 95 % intervals held it and on which side it was when not, with the simulation's own error.
"""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.metrics.distances import Frechet, KernelReference
from ddpm.metrics.features import Moments
from ddpm.metrics.intervals import Interval

GROUPS = 16
REFERENCE = 10**6  # the seed of a reference; trials have smaller ones
KINDS = ("normal", "mixture", "skewed", "positive", "t9", "t5")
CENTRES = 10  # of the mixture
# Shift in standard deviations of each feature, and scale.
DISTANCES = {"alike": (0.0, 1.0), "near": (0.03, 1.02), "apart": (0.1, 1.05), "far": (0.3, 1.2)}

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Vectors of D dimensions, independent parts of one kind mixed by a fixed matrix.

    normal; mixture of ten clusters; skewed (exponential); positive (a normal cut off at -1/2, as a
    network's); t9 and t5: heavy tails, all parts of a vector large together. Variances of the
    principal directions fall as k^-1/2.
    """

    kind: str
    dimension: int

    def draw(self, n: int, seed: int, distance: str = "alike") -> Numbers:
        """n vectors, moved and stretched by a distance."""
        rng, (shift, scale) = np.random.default_rng(seed), DISTANCES[distance]
        return (self._parts(n, rng) @ self._mix) * scale + shift * self._deviations

    def moments(self, distance: str = "alike") -> Moments:
        """Of infinitely many."""
        shift, scale = DISTANCES[distance]
        mean, covariance = self._exact
        count = 10**6
        return Moments(
            count=count,
            mean=torch.from_numpy(mean * scale + shift * self._deviations),
            scatter=torch.from_numpy(covariance * (scale**2 * (count - 1))),
        )

    def _parts(self, n: int, rng: np.random.Generator) -> Numbers:
        if self.kind == "skewed":
            return rng.exponential(size=(n, self.dimension)) - 1.0
        parts = rng.normal(size=(n, self.dimension))
        if self.kind == "mixture":
            return 0.7 * parts + self._centres[rng.integers(0, CENTRES, n)]
        if self.kind == "positive":
            return np.maximum(parts + 0.5, 0.0)
        if self.kind in ("t9", "t5"):
            freedom = int(self.kind[1:])
            parts /= np.sqrt(rng.chisquare(freedom, size=(n, 1)) / (freedom - 2))
        return parts

    @cached_property
    def _centres(self) -> Numbers:
        return np.random.default_rng(3).normal(size=(CENTRES, self.dimension))

    @cached_property
    def _mix(self) -> Numbers:
        turn = np.random.default_rng(5).normal(size=(self.dimension, self.dimension))
        scales = np.arange(1, self.dimension + 1) ** -0.25
        return scales[:, None] * np.linalg.qr(turn)[0]

    @cached_property
    def _exact(self) -> tuple[Numbers, Numbers]:
        """Mean and covariance."""
        mean, covariance = np.zeros(self.dimension), np.eye(self.dimension)
        if self.kind == "mixture":
            mean = self._centres.mean(axis=0)
            covariance = 0.49 * covariance + np.cov(self._centres.T, bias=True)
        if self.kind == "positive":  # of max(z + 1/2, 0): density and distribution at 1/2
            density, share = 0.3520653267642995, 0.6914624612740131
            one = density + share / 2
            mean, covariance = mean + one, covariance * (share * 1.25 + density / 2 - one**2)
        return mean @ self._mix, self._mix.T @ covariance @ self._mix

    @cached_property
    def _deviations(self) -> Numbers:
        return np.sqrt(np.diag(self._exact[1]))


@dataclass(frozen=True, kw_only=True)
class FidRegime:
    """FID at infinity. images: of the reference; 0 where its distribution is known."""

    features: Features
    n: int
    distance: str
    images: int = 0

    def __str__(self) -> str:
        reference = f"{self.images:,} images" if self.images else "known"
        return (
            f"FID, {self.features.dimension} {self.features.kind}, n = {self.n:,}, reference "
            f"{reference}, {self.distance}"
        )

    @cached_property
    def reference(self) -> Moments:
        if not self.images:
            return self.features.moments()
        return Moments.of(torch.from_numpy(self.features.draw(self.images, REFERENCE)))

    def truth(self, found: list[Interval]) -> float:
        if self.distance == "alike" and not self.images:
            return 0.0  # not what rounding makes of it
        return Frechet(self.reference).distance(self.features.moments(self.distance))

    def trial(self, seed: int) -> Interval:
        x = torch.from_numpy(self.features.draw(self.n, seed, self.distance))
        return Frechet(self.reference).fid([Moments.of(x[k::GROUPS]) for k in range(GROUPS)])[1]


@dataclass(frozen=True, kw_only=True)
class KidRegime:
    """KID of two sets drawn anew. images: of the second; as many as of the first where 0."""

    features: Features
    n: int
    distance: str
    images: int = 0

    def __str__(self) -> str:
        return (
            f"KID, {self.features.dimension} {self.features.kind}, n = {self.n:,} and "
            f"{self.images or self.n:,}, {self.distance}"
        )

    def truth(self, found: list[Interval]) -> float:
        """Zero, or the mean of all trials: the estimate has no bias."""
        return 0.0 if self.distance == "alike" else float(np.mean([one.value for one in found]))

    def trial(self, seed: int) -> Interval:
        x = self.features.draw(self.n, seed, self.distance)
        y = self.features.draw(self.images or self.n, REFERENCE + 1 + seed)
        return KernelReference(blocks(y)).kid(blocks(x))


Regime = FidRegime | KidRegime


def blocks(x: Numbers) -> list[Tensor]:
    """A set in 16 groups."""
    vectors = torch.from_numpy(x)
    return [vectors[k::GROUPS] for k in range(GROUPS)]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Share of intervals that held the truth, and its side where they did not."""

    what: str
    trials: int
    above: float
    below: float

    @property
    def inside(self) -> float:
        return 1.0 - self.above - self.below

    def __str__(self) -> str:
        error = sqrt(self.inside * (1.0 - self.inside) / self.trials)
        return (
            f"| {self.what} | {100 * self.inside:.1f} ± {100 * error:.1f} | "
            f"{100 * self.above:.1f} / {100 * self.below:.1f} |"
        )


def counted(what: str, found: list[Interval], truth: float) -> Line:
    """The line of a table for estimates of one truth."""
    above = float(np.mean([truth > one.high for one in found]))
    below = float(np.mean([truth < one.low for one in found]))
    return Line(what=what, trials=len(found), above=above, below=below)


def tried(regime: Regime, trials: int, first: int = 0) -> Line:
    """Trials of a regime, with seeds from `first`."""
    found = [regime.trial(seed) for seed in range(first, first + trials)]
    return counted(str(regime), found, regime.truth(found))
