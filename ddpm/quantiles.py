"""Quantiles for many comparisons at once, in standard errors of one difference.

    Tukey     all pairs of k means; so also those against the best, which the data have picked
    Dunnett   k - 1 means against one chosen beforehand

Both are probabilities that every comparison covers its truth, integrals over the common standard
normal z and over s, the estimated spread as a share of the true one (s^2 dof is chi-square):

    range     P(q) = E_s k int phi(z) [Phi(z) - Phi(z - q s)]^(k - 1) dz                (Tukey 1953)
    Dunnett   P(d) = E_s int phi(z) prod_i [Phi((l_i z + d s) / r_i) - Phi((l_i z - d s) / r_i)] dz
              with correlations l_i l_j of the comparisons, r_i^2 = 1 - l_i^2         (Dunnett 1955)

scipy.special only, which loads faster than scipy.stats.
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from math import exp, floor, log, pi, sqrt

import numpy as np
from scipy import special

_NODES = 128


def rounded(dof: float) -> float:
    """Degrees of freedom rounded down to a half, above 20 to a whole: few quantiles serve many."""
    return max(floor(dof) if dof > 20 else floor(2 * dof) / 2, 0.5)


def f_survival(f: float, dof: float, error_dof: float) -> float:
    """P(F > f) of Fisher's F distribution: the p-value of a ratio of mean squares."""
    return float(special.fdtrc(dof, error_dof, f))


@lru_cache(maxsize=512)
def tukey_quantile(confidence: float, means: int, dof: float) -> float:
    """Half-width of simultaneous intervals for all differences of `means` means.

    In standard errors of a difference: the quantile of the studentized range over sqrt 2. For two
    means it is Student's t. Exact for equal numbers, conservative for unequal ones (Hayter 1984).
    """
    _check(confidence, means, dof)
    shares, weights = _shares_of_spread(dof)
    z, density = _normal()

    def probability(width: float) -> float:
        ends = sqrt(2) * width * shares[:, None]
        inside = (special.ndtr(z) - special.ndtr(z - ends)) ** (means - 1)
        return float(weights @ (means * (inside @ density)))

    return _invert(probability, confidence)


@lru_cache(maxsize=512)
def dunnett_quantile(confidence: float, loads: tuple[float, ...], dof: float) -> float:
    """Half-width of simultaneous two-sided intervals against one mean chosen beforehand.

    loads: one for each comparison, whose correlations are their products. Means of n_i values
    against one of n_0 have sqrt(n_i / (n_i + n_0)): 0.71 for equal numbers. Zeros give Sidak's
    quantile, which is conservative whatever the correlations.
    """
    _check(confidence, len(loads) + 1, dof)
    shares, weights = _shares_of_spread(dof)
    z, density = _normal()
    counts = Counter(loads)

    def probability(width: float) -> float:
        inside = np.ones((len(shares), len(z)))
        for load, count in counts.items():
            rest = sqrt(1 - load * load)
            ends = width * shares[:, None]
            high, low = (load * z + ends) / rest, (load * z - ends) / rest
            inside *= (special.ndtr(high) - special.ndtr(low)) ** count
        return float(weights @ (inside @ density))

    return _invert(probability, confidence)


def _check(confidence: float, means: int, dof: float) -> None:
    if not 0 < confidence < 1 or means < 2 or not dof > 0:
        raise ValueError(
            f"confidence {confidence} must lie in (0, 1), degrees of freedom {dof} be above 0 and "
            f"means {means} at least 2"
        )


def _shares_of_spread(dof: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of s, estimated over true spread, and their probabilities; s = 1 for endless dof."""
    if not np.isfinite(dof):
        return np.ones(1), np.ones(1)
    nodes, weights = _legendre()
    survival = (1 - nodes) / 2
    return np.sqrt(special.chdtri(dof, survival) / dof), weights / 2


def _normal() -> tuple[np.ndarray, np.ndarray]:
    """Values of a standard normal variable and their probabilities."""
    nodes, weights = _legendre()
    z = 8.5 * nodes
    return z, 8.5 * weights * np.exp(-z * z / 2) / sqrt(2 * pi)


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)


def _invert(probability: Callable[[float], float], confidence: float) -> float:
    """The width of this probability: false position (Illinois), on scales that straighten it."""
    wanted = special.ndtri(confidence)

    def above(place: float) -> float:
        return float(special.ndtri(min(probability(exp(place)), 1 - 1e-15)) - wanted)

    low, high = log(0.5), log(4.0)
    at_low, at_high = above(low), above(high)
    while at_high < 0 and high < 20:
        low, at_low, high = high, at_high, high + 1
        at_high = above(high)
    while at_low > 0:
        high, at_high, low = low, at_low, low - 2
        at_low = above(low)
    for _ in range(60):
        middle = high - at_high * (high - low) / (at_high - at_low)
        value = above(middle)
        if abs(value) < 1e-9:
            break
        if value * at_high < 0:
            low, at_low = high, at_high
        else:
            at_low /= 2
        high, at_high = middle, value
    return exp(middle)
