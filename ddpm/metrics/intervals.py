"""Interval: a number and its 95 % interval, the one type in which every metric of samples comes.

    jackknife   a statistic of moments, from its values without each of K groups of images
                theta_J = K theta - (K - 1) mean_k theta_-k     takes out a bias of order 1/n
                se^2    = (K - 1) / K  sum_k (theta_-k - mean)^2        (Quenouille, Tukey 1958)
                Where two sets are alike all is of second order in the images, which this
                counts twice (Efron & Stein 1981): there the interval is too wide, never narrow
    mean        of independent numbers, with Student's t
    share       of images that are something, with Wilson's interval, which stays inside [0, 1]
    order       P(a < b) of two sets of numbers, by their placements in each other (DeLong 1988)
    product     a squared distance that K draws estimate: at zero, near it and far away

The percentile bootstrap is not used: the bias of a squared distance moves all its resamples to one
side, and the interval misses the truth every time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
_NORMAL = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
LEAST_DEGREES = 3
_STEPS = 40  # of a bisection: to 1e-12 of its first step

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number, its 95 % interval, and the number of images it is of (0: not recorded).

    unbiased: whether value estimates what infinitely many images would give; else what `n` give.
    """

    value: float
    low: float
    high: float
    n: int = 0
    unbiased: bool = True

    def __post_init__(self) -> None:
        if not all(isfinite(number) for number in (self.value, self.low, self.high)):
            raise ValueError(f"{self.value} ({self.low} to {self.high}) is not finite")

    def covers(self, value: float) -> bool:
        """True where `value` lies inside."""
        return self.low <= value <= self.high


def jackknife(
    whole: float, without: Sequence[float] | Numbers, n: int, *, corrected: bool
) -> Interval:
    """Interval of a statistic from its value on all images and without each of K groups.

    corrected: take the bias of order 1/n out of value and interval; else both are of n images.
    """
    left_out = np.asarray(without, dtype=np.float64)
    count = len(left_out)
    value = unbiased(whole, left_out) if corrected else whole
    variance = (count - 1) / count * np.square(left_out - left_out.mean()).sum()
    half = t_quantile(CONFIDENCE, count - 1) * sqrt(variance)
    return Interval(
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


def mean(values: Sequence[float] | Numbers, n: int) -> Interval:
    """The mean of independent numbers, made from n images."""
    numbers = np.asarray(values, dtype=np.float64)
    error = numbers.std(ddof=1) / sqrt(len(numbers))
    value, half = float(numbers.mean()), t_quantile(CONFIDENCE, len(numbers) - 1) * float(error)
    return Interval(value=value, low=value - half, high=value + half, n=n)


def proportion(hits: int, n: int, *, images: int | None = None, unbiased: bool = True) -> Interval:
    """hits of n, with Wilson's score interval.  images: n of the result where it is another."""
    p, z = hits / n, _NORMAL
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(
        value=p,
        low=max(0.0, min(p, centre - half)),
        high=min(1.0, max(p, centre + half)),
        n=n if images is None else images,
        unbiased=unbiased,
    )


def order(first: Numbers, second: Numbers) -> Interval:
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
    return Interval(
        value=value, low=float(min(low, value)), high=float(max(high, value)), n=len(first)
    )


def _placements(values: Numbers, others: Numbers) -> Numbers:
    """Of each value, the share of `others` above it, those equal to it counted half."""
    ascending = np.sort(others)
    below = np.searchsorted(ascending, values, side="left")
    up_to = np.searchsorted(ascending, values, side="right")
    return 1.0 - (below + up_to) / (2.0 * len(others))


def product_interval(
    value: float, products: Numbers, *, has_remainder: bool = False
) -> tuple[float, float]:
    """The 95 % interval of a squared distance theta around its estimate `value`; may reach below 0.

    A draw a gives a vector e_a = mu + noise of covariance S, in a space where only inner products
    are known, and theta = |mu|^2 is wanted. With e the mean of K draws,

        U = |e|^2 - tr S / K     has no bias
        Q = K |e|^2              has mean  tr S + K theta  and variance  2 tr S^2 + 4 K mu'S mu

    Near zero the first term of the variance is all there is, far away the second. An interval made
    with the variance at U fails in between, where both vary together. So, as Wilson's interval of
    a share, this one contains each theta under which the U found is not rare, with the variance
    theta would give:

        Q / (tr S + K theta)    like F(f, g), f = 2 mean^2 / variance of Q, g the same of K - 1
                                |noise|^2 (Patnaik 1949), normal after a cube root (Paulson 1942)
        mu'S mu at theta < U    in proportion to theta
                   theta > U    growing as where e is moved the likeliest way there, along S e:
                                by e'S^2 e / e'S e for each of theta
                   theta = U    as found; by that growth where U is not above its error

    Student's t stands for the normal, since the variances are estimates. In simulations with normal
    noise the interval contains theta in 93 to 97 %: more often (to 99 %) where mu is at right
    angles to most of the noise, and less (91 %, 88 % at worst) where one direction has most of
    mu'S mu, a thousand others have most of tr S, and U is two to five times its error.

    value: U.  products: (K, K) inner products of the draws, of which all may lack the same
    constant.  has_remainder: U has no bias to second order only. The bias taken out,
    (mean |noise|^2) / K, then counts with its own error: where that is large, U is no sum of
    products.
    """
    noise = _Noise.of(value, products, has_remainder)
    if noise.trace <= 0:
        return value, value
    step = max(noise.error, sqrt(4 * noise.along / noise.count))
    return (
        _last(value, -step, lambda theta: noise.surprise(theta) <= 1.0),
        _last(value, step, lambda theta: noise.surprise(theta) >= -1.0),
    )


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """The noise of K draws: tr S, tr S^2, mu'S mu, and its growth with theta.

    found: mu'S mu as the draws have it, with the part that their own noise adds.
    """

    value: float
    count: int
    trace: float
    square: float
    found: float
    along: float
    growth: float

    @classmethod
    def of(cls, value: float, products: Numbers, has_remainder: bool) -> "_Noise":
        """From the products of different draws, and of each with itself for the trace alone.

        An analysis of variance: a product is a constant, the part of each of its two draws along
        mu, and a rest, which has variance tr S^2 and no correlation between pairs.
        """
        count, pairs = len(products), ~np.eye(len(products), dtype=bool)
        constant = products[pairs].mean()
        along = (products.sum(axis=1, where=pairs) - (count - 1) * constant) / (count - 2)
        rest = (products - constant - along - along[:, None]) * pairs
        lengths = products.diagonal() - constant - 2 * along  # of the draws' noise, squared
        trace = float(lengths.mean())
        square = max(float(np.square(rest).sum()) / (count * (count - 3)), 1e-9 * trace**2)
        if has_remainder:
            square += float(lengths.var(ddof=1)) / (2 * count)
        length = float(along @ along)
        growth = float(along @ rest @ along) / ((count - 1) * length) if length > 0 else 0.0
        # It is no less than the noise of an average direction and no more than the largest.
        typical = square / trace if trace > 0 else 0.0
        return cls(
            value=value,
            count=count,
            trace=trace,
            square=square,
            found=length / (count - 1),
            along=max(length / (count - 1) - square / (count - 2), 0.0),
            growth=min(max(growth, typical), sqrt(square)),
        )

    @property
    def error(self) -> float:
        """The standard error of U at theta = 0."""
        return sqrt(2 * self.square) / self.count

    def _variation(self, theta: float, along: float) -> float:
        """mu'S mu at theta >= 0, if it is `along` at U."""
        value, squared = max(self.value, 0.0), self.error**2
        slopes = [
            (at * value + self.growth * squared) / (value**2 + squared)
            for at in (along, self.along)
        ]
        above = max(theta - value, 0.0) * max(self.growth, slopes[1])
        return min(theta, value) * slopes[0] + above

    def surprise(self, theta: float) -> float:
        """Distance of U above its expectation under theta; beyond -1 and 1 is rare.

        Below 0 theta moves U alone.
        """
        count, dof, positive = self.count, self.count - 1, max(theta, 0.0)
        length = max(count * (self.value - min(theta, 0.0)) + self.trace, 0.0)
        mean = self.trace + count * positive
        # Of the variance of Q, and of the part whose estimate has the noise of K - 1 numbers.
        far, noisy = (2 * count * self._variation(positive, at) for at in (self.along, self.found))
        top, bottom = (2 / 9 * part / mean**2 for part in (self.square + far, self.square / dof))
        root = np.cbrt(length / mean)
        normal = ((1 - bottom) * root - (1 - top)) / sqrt(top + bottom * root**2)
        doubt = noisy**2 / dof + 2 * self.square**2 / (count * (count - 3))
        degrees = max(round((self.square + far) ** 2 / doubt), LEAST_DEGREES)
        return float(normal) / t_quantile(CONFIDENCE, degrees)


def _last(start: float, step: float, is_inside: Callable[[float], bool]) -> float:
    """The end of the inside, from `start` in the direction of `step`."""
    inside = start
    while is_inside(start + step):
        inside, step = start + step, 2 * step
    outside = start + step
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside


def standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean along the last axis; NaN for a single value, which has none."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values.std(axis=-1, ddof=1) / np.sqrt(count))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Mean and half-width of its two-sided confidence interval; NaN half-width for one value."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan")
    error = float(standard_error(array))
    return float(array.mean()), t_quantile(confidence, array.size - 1) * error


@lru_cache(maxsize=1024)
def t_quantile(confidence: float, dof: int) -> float:
    """t with P(|X| <= t) = confidence: half-width of a two-sided interval in standard errors."""
    if not 0 < confidence < 1 or dof < 1:
        raise ValueError(
            f"confidence {confidence} must lie in (0, 1) and degrees of freedom {dof} >= 1"
        )
    return float(stdtrit(dof, (1 + confidence) / 2))
