"""The kernel distance between two sets of features (Binkowski et al. 2018): unbiased at any size.

    k(x, y) = (x.y / D + 1)^3,    KID = E k(x, x') + E k(y, y') - 2 E k(x, y)

Both sets are cut into K groups of random members; group a of both is one draw, whose difference of
mean features (in the kernel's space) is e_a:

    H(a, b) = k(x_a, x_b) + k(y_a, y_b) - k(x_a, y_b) - k(x_b, y_a)       means over members
            = e_a . e_b
    KID     = mean_{a != b} H(a, b)                                       a U-statistic of K draws

which uses all pairs but those inside a group. The interval is that of a squared distance
(ddpm/squared_distance.py). KID may be negative: it estimates 0 without bias. It is usually printed
times 1000. The means are taken by all workers (ddpm/kernel_means.py).
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ddpm.distributed import ALONE
from ddpm.estimates import Estimate
from ddpm.kernel_means import KernelReference, sizes_of
from ddpm.squared_distance import interval

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
    value = float(between[~np.eye(len(first), dtype=bool)].mean())
    low, high = interval(value, between)
    return Estimate(value=value, low=low, high=high, n=int(sizes.sum()))
