"""A number with its uncertainty: what every measure of samples returns, and how it is made.

    jackknife   a statistic of moments, from what it is without each of K groups of images
                theta_J = K theta - (K - 1) mean_k theta_-k     takes out a bias of order 1/n
                se^2    = (K - 1) / K  sum_k (theta_-k - mean)^2        (Quenouille, Tukey 1958)
                Where two sets are alike all is of second order in the images, which this
                counts twice (Efron & Stein 1981): there the interval is too wide, never narrow
    mean        of independent numbers, with Student's t
    share       of images that are something, with Wilson's interval, which stays inside [0, 1]
    order       P(a < b) of two sets of numbers, by their placements in each other (DeLong 1988)

All intervals are two-sided at 95 %. The percentile bootstrap is not used: the bias of a squared
distance moves all its resamples to one side, and the interval misses the truth every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from ddpm.measures import t_quantile

CONFIDENCE = 0.95
_NORMAL = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its 95 % interval, and the number of images it is of.

    unbiased: whether value estimates what infinitely many images would give; else what `n` give.
    """

    value: float
    low: float
    high: float
    n: int
    unbiased: bool = True

    def __post_init__(self) -> None:
        if not all(isfinite(number) for number in (self.value, self.low, self.high)):
            raise ValueError(f"{self.value} ({self.low} to {self.high}) is not finite")

    def covers(self, value: float) -> bool:
        """Whether the interval holds `value`."""
        return self.low <= value <= self.high


def jackknife(
    whole: float,
    without: Sequence[float] | Numbers,
    n: int,
    *,
    corrected: bool,
) -> Estimate:
    """The estimate of a statistic from its value on all images and without each of K groups.

    corrected: take the bias of order 1/n out of value and interval; else both are of n images.
    """
    left_out = np.asarray(without, dtype=np.float64)
    count = len(left_out)
    value = unbiased(whole, left_out) if corrected else whole
    variance = (count - 1) / count * np.square(left_out - left_out.mean()).sum()
    half = t_quantile(CONFIDENCE, count - 1) * sqrt(variance)
    return Estimate(
        value=float(value),
        low=float(value - half),
        high=float(value + half),
        n=n,
        unbiased=corrected,
    )


def unbiased(whole: float, without: Sequence[float] | Numbers) -> float:
    """A statistic without its bias of order 1/n, from it on all images and without each group."""
    count = len(without)
    return float(count * whole - (count - 1) * np.mean(without))


def mean(values: Sequence[float] | Numbers, n: int, *, unbiased: bool = True) -> Estimate:
    """The mean of independent numbers, made from n images."""
    numbers = np.asarray(values, dtype=np.float64)
    error = numbers.std(ddof=1) / sqrt(len(numbers))
    value, half = float(numbers.mean()), t_quantile(CONFIDENCE, len(numbers) - 1) * float(error)
    return Estimate(value=value, low=value - half, high=value + half, n=n, unbiased=unbiased)


def share(hits: int, n: int, *, images: int | None = None, unbiased: bool = True) -> Estimate:
    """hits of n, with Wilson's score interval.  images: n of the estimate where it is another."""
    p, z = hits / n, _NORMAL
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(
        value=p,
        low=max(0.0, min(p, centre - half)),
        high=min(1.0, max(p, centre + half)),
        n=n if images is None else images,
        unbiased=unbiased,
    )


def order(first: Numbers, second: Numbers) -> Estimate:
    """P(a < b) + P(a = b) / 2 for a of `first` and b of `second`; 1/2 when both are alike.

    The interval is made on the logit, so that it stays inside [0, 1].
    """
    above = _placements(first, second)  # the share of `second` above each of first
    below = 1.0 - _placements(second, first)  # the share of `first` below each of second
    value = float(above.mean())
    error = sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    # Without overlap the placements do not vary: one pair of each kind then bounds the error.
    floor = 1.0 / (2.0 * min(len(first), len(second)))
    inside = min(max(value, floor), 1.0 - floor)
    spread = _NORMAL * max(error, floor / 2.0) / (inside * (1.0 - inside))
    centre = np.log(inside / (1.0 - inside))
    low, high = (1.0 / (1.0 + np.exp(-(centre + sign * spread))) for sign in (-1.0, 1.0))
    return Estimate(
        value=value,
        low=float(min(low, value)),
        high=float(max(high, value)),
        n=len(first),
    )


def _placements(values: Numbers, others: Numbers) -> Numbers:
    """Of each value, the share of `others` above it, those equal to it counted half."""
    ascending = np.sort(others)
    below = np.searchsorted(ascending, values, side="left")
    up_to = np.searchsorted(ascending, values, side="right")
    return 1.0 - (below + up_to) / (2.0 * len(others))
