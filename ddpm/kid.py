"""The kernel distance between two sets of features (Binkowski et al. 2018): unbiased at any size.

    k(x, y) = (x.y / D + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Both sets are cut into K disjoint blocks of random members and MMD^2 is the mean over block pairs
(Zaremba et al. 2013). Blocks are independent, so Student's t covers the truth as often as it says,
also when both sets come from one distribution, where the deviation of one large MMD^2 is no longer
that of a mean. It may be negative: it estimates 0 without bias. Usual printings multiply by 1000.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddpm import estimates
from ddpm.estimates import Estimate

DEGREE = 3
BLOCK_LEAST = 4


def mmd2(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of MMD^2 between vectors (m, D) and (n, D), in float64."""
    x, y = first.to(torch.float64), second.to(torch.float64)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2.0 * float(_kernel(x, y).mean())


def kid(first: Sequence[Tensor], second: Sequence[Tensor]) -> Estimate:
    """KID of two sets, each cut into as many blocks (m, D) as the other.

    Raises ValueError for a block of fewer than four vectors.
    """
    least = min(len(block) for block in (*first, *second))
    if least < BLOCK_LEAST:
        raise ValueError(f"a block has {least} vectors; KID needs {BLOCK_LEAST}")
    values = np.array([mmd2(x, y) for x, y in zip(first, second, strict=True)])
    return estimates.mean(values, sum(len(block) for block in first))


def _mean_of_pairs(x: Tensor) -> float:
    """The mean kernel over pairs of different vectors."""
    kernel = _kernel(x, x)
    return float((kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).div_(x.shape[1]).add_(1.0).pow_(DEGREE)
