"""The interval of a squared distance that K draws estimate: at zero, near it and far away.

A draw a gives a vector e_a = mu + noise of covariance S, in a space where only inner products are
known, and theta = |mu|^2 is wanted. With e the mean of K draws, and hats for what they estimate,

    U = |e|^2 - tr S^ / K          is unbiased
    Q = K |e|^2                    has mean  tr S + K theta,  variance  2 tr S^2 + 4 K mu'S mu

Near zero the first term of the variance is all there is, far away the second. An interval of U that
is made with the variance at U itself fails in between, where both vary together. So, as Wilson's
for a share, this one holds each theta under which the U found is not rare, each with the variance
that theta would give:

    Q / (tr S^ + K theta)  is like  F(f, g),  f = 2 mean^2 / variance of Q,  g of tr S^
                                              (Patnaik 1949; normal after Paulson 1942)
    mu'S mu at theta       below U in proportion to theta; above U it grows as where e is moved the
                           likeliest way, along S e: by e'S^2 e / e'S e
    at U                   (e'S e - tr S^2 / K) U, and where U is no larger than its error the latter
                           growth instead: U / (U^2 + error^2) takes the place of 1 / U

Student's t takes the place of the normal for variances that 16 draws estimate. For normal noise in
many spectra the interval holds theta in 92 to 98 %: fewer only where one direction has most of
the noise and of mu as well and U is 2 to 5 times its error (91 %; 88 % where the rest of the noise
is spread over thousands of others); more where mu is at right angles to the noise (99 %).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ddpm.measures import t_quantile

CONFIDENCE = 0.95
_STEPS = 60  # of a bisection: to the last digits of a number

Numbers = NDArray[np.float64]


def interval(
    value: float, products: Numbers, *, has_remainder: bool = False
) -> tuple[float, float]:
    """The 95 % interval of theta, around `value`, which is U. It may reach below 0 as U may.

    products: (K, K) inner products of the draws; a constant, or one for each row and column, may
    be missing from those of different draws, as U is given.
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
    """What is known of the noise: tr S, tr S^2, mu'S mu, and its growth along S e."""

    value: float
    count: int
    trace: float
    square: float
    along: float
    growth: float

    @classmethod
    def of(cls, value: float, products: Numbers, has_remainder: bool) -> "_Noise":
        """From products of different draws (of one with itself for the trace): without bias.

        A product is a constant, what each of its draws has along e, and a rest, in which pairs are
        uncorrelated and have variance tr S^2: an analysis of variance.
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
        return cls(
            value=value,
            count=count,
            trace=trace,
            square=square,
            along=max(length / (count - 1) - square / (count - 2), 0.0),
            # What it estimates is no less than the noise on average and no more than the largest.
            growth=min(max(growth, square / max(trace, sqrt(square))), sqrt(square)),
        )

    @property
    def error(self) -> float:
        """The standard error of U at theta = 0."""
        return sqrt(2 * self.square) / self.count

    def _variation(self, theta: float) -> float:
        """mu'S mu at theta >= 0."""
        value = max(self.value, 0.0)
        squared = self.error**2
        slope = (self.along * value + self.growth * squared) / (value**2 + squared)
        return min(theta, value) * slope + max(theta - value, 0.0) * max(self.growth, slope)

    def surprise(self, theta: float) -> float:
        """How far U is above what theta lets expect; beyond -1 and 1 is rare.

        Below 0 theta moves U alone.
        """
        count, dof, positive = self.count, self.count - 1, max(theta, 0.0)
        found = max(count * (self.value - min(theta, 0.0)) + self.trace, 0.0)
        mean = self.trace + count * positive
        far = 2 * count * self._variation(positive)
        top, bottom = (2 / 9 * part / mean**2 for part in (self.square + far, self.square / dof))
        root = np.cbrt(found / mean)
        normal = ((1 - bottom) * root - (1 - top)) / sqrt(top + bottom * root**2)
        total = (self.square + far) ** 2 / (
            far**2 / dof + 2 * self.square**2 / (count * (count - 3))
        )
        return float(normal) / t_quantile(CONFIDENCE, round(total))


def _last(start: float, step: float, is_inside: Callable[[float], bool]) -> float:
    """The end of what is inside, from `start` in the direction of `step`."""
    inside = start
    while is_inside(start + step):
        inside, step = start + step, 2 * step
    outside = start + step
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside
