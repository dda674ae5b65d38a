"""The interval of a squared distance that K draws estimate: at zero, near it and far away.

A draw a gives a vector e_a = mu + noise of covariance S, in a space where only inner products are
known, and theta = |mu|^2 is wanted. With e the mean of K draws,

    U = |e|^2 - tr S / K     has no bias
    Q = K |e|^2              has mean  tr S + K theta  and variance  2 tr S^2 + 4 K mu'S mu

Near zero the first term of the variance is all there is, far away the second. An interval made with
the variance at U fails in between, where both vary together. So, as Wilson's interval of a share,
this one holds each theta under which the U found is not rare, with the variance theta would give:

    Q / (tr S + K theta)    like F(f, g), f = 2 mean^2 / variance of Q, g the same of K - 1 lengths
                            |noise|^2 (Patnaik 1949), and normal after a cube root (Paulson 1942)
    mu'S mu at theta < U    in proportion to theta
               theta > U    growing as where e is moved the likeliest way there, along S e:
                            by e'S^2 e / e'S e for each of theta
               theta = U    what is found; by that growth where U is not above its error

Student's t stands for the normal, since the variances are estimates. In simulations with normal
noise the interval holds theta in 93 to 97 %. It holds it more often (to 99 %) where mu is at right
angles to most of the noise, and less (91 %, 88 % at worst) where one direction has most of mu'S mu,
a thousand others have most of tr S, and U is two to five times its error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ddpm.measures import t_quantile

CONFIDENCE = 0.95
LEAST_DEGREES = 3
_STEPS = 40  # of a bisection: to 1e-12 of its first step

Numbers = NDArray[np.float64]


def interval(
    value: float, products: Numbers, *, has_remainder: bool = False
) -> tuple[float, float]:
    """The 95 % interval of theta, around `value`, which is U. It may reach below 0 as U may.

    products: (K, K) inner products of the draws, of which all may lack the same constant.
    has_remainder: U has no bias to second order only. The bias taken out, (mean |noise|^2) / K,
    then counts with its own error: where that is large, U is no sum of products.
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
    """What is known of the noise: tr S, tr S^2, mu'S mu, and its growth with theta.

    found: mu'S mu as the draws have it, with what their own noise adds.
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

        An analysis of variance: a product is a constant, what each of its two draws has along mu,
        and a rest, which has variance tr S^2 and no correlation between pairs.
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
        """How far U is above what theta lets expect; beyond -1 and 1 is rare.

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
    """The end of what is inside, from `start` in the direction of `step`."""
    inside = start
    while is_inside(start + step):
        inside, step = start + step, 2 * step
    outside = start + step
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside
