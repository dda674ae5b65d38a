"""The kernel distance between two sets of features (Binkowski et al. 2018): unbiased at any size.

    k(x, y) = (x.y / D + 1)^3,    KID = E k(x, x') + E k(y, y') - 2 E k(x, y)

Both sets are cut into K groups of random members; group a of both is one draw, z_a. Then

    H(a, b) = k(x_a, x_b) + k(y_a, y_b) - k(x_a, y_b) - k(x_b, y_a)       means over members
    KID     = mean_{a != b} H(a, b)                                       a U-statistic of K draws
    var     = KID^2 - mean of H(a, b) H(c, d) over different a, b, c, d   unbiased

which uses all pairs but those inside a group. Where both sets are alike only the variance of H
alone is left, var H / (K (K - 1) / 2), the least there can be; the estimate above varies, and half
of that least bounds it from below. KID may be negative: it estimates 0 without bias. It is usually
printed times 1000. The means are taken by all workers (ddpm/kernel_means.py).
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm.distributed import ALONE
from ddpm.estimates import CONFIDENCE, Estimate
from ddpm.kernel_means import KernelReference, sizes_of
from ddpm.measures import t_quantile

BLOCK_LEAST = 4


def kid(first: Sequence[Tensor], second: Sequence[Tensor]) -> Estimate:
    """KID of two sets, each cut into as many groups (m, D), four at least, as the other.

    Raises ValueError for a group of fewer than four vectors.
    """
    return kid_against(first, KernelReference.of(second, ALONE))


def kid_against(first: Sequence[Tensor], reference: KernelReference) -> Estimate:
    """The same by all workers of the reference, each with its part of the groups of `first`."""
    sizes = sizes_of(first, reference.workers)
    least = int(min(*sizes, *reference.sizes))
    if least < BLOCK_LEAST:
        raise ValueError(f"a group has {least} vectors; KID needs {BLOCK_LEAST}")
    within, cross = reference.means(first, sizes)
    between = within + reference.within - cross - cross.T
    count = len(first)
    value = float(between[~np.eye(count, dtype=bool)].mean())
    # The unbiased variance varies more than that of K numbers: in simulations like that of 2 K / 3.
    half = t_quantile(CONFIDENCE, 2 * (count - 1) // 3) * sqrt(_variance(between))
    return Estimate(value=value, low=value - half, high=value + half, n=int(sizes.sum()))


def _variance(between: NDArray[np.float64]) -> float:
    """Of the mean of H(a, b) over a != b; the diagonal of `between` does not count."""
    count = len(between)
    h = between * ~np.eye(count, dtype=bool)
    total, rows, squares = h.sum(), h.sum(axis=1), np.square(h).sum()
    apart = total**2 - 4 * np.square(rows).sum() + 2 * squares
    pairs = count * (count - 1)
    unbiased = (total / pairs) ** 2 - apart / (pairs * (count - 2) * (count - 3))
    least = 2 * (squares / pairs - (total / pairs) ** 2) / pairs
    return float(max(unbiased, least / 2))
