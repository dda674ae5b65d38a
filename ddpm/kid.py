"""The kernel distance between two sets of features (Binkowski et al. 2018): unbiased at any size.

    k(x, y) = (x.y / D + 1)^3,    KID = E k(x, x') + E k(y, y') - 2 E k(x, y)

Both sets are cut into K groups of random members; group a of both is one draw, whose difference of
mean features (in the kernel's space) is e_a:

    H(a, b) = k(x_a, x_b) + k(y_a, y_b) - k(x_a, y_b) - k(x_b, y_a)       means over members
            = e_a . e_b
    KID     = mean_{a != b} H(a, b)                                       a U-statistic of K draws

which uses all pairs but those inside a group. The interval is that of a squared distance
(ddpm/squared_distance.py). KID may be negative: it estimates 0 without bias. It is usually printed
times 1000.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.estimates import Estimate
from ddpm.squared_distance import interval

DEGREE = 3
BLOCK_LEAST = 4


def kid(first: Sequence[Tensor], second: Sequence[Tensor]) -> Estimate:
    """KID of two sets, each cut into as many groups (m, D), four at least, as the other.

    Raises ValueError for a group of fewer than four vectors.
    """
    least = min(len(block) for block in (*first, *second))
    if least < BLOCK_LEAST:
        raise ValueError(f"a group has {least} vectors; KID needs {BLOCK_LEAST}")
    cross = _means(first, second)
    between = _means(first, first) + _means(second, second) - cross - cross.T
    value = float(between[~np.eye(len(first), dtype=bool)].mean())
    low, high = interval(value, between)
    number = sum(len(block) for block in first)
    return Estimate(value=value, low=low, high=high, n=number)


def _means(first: Sequence[Tensor], second: Sequence[Tensor]) -> NDArray[np.float64]:
    """(K, K): the mean kernel between members of group a of one set and group b of the other."""
    group = torch.cat([torch.full((len(block),), k) for k, block in enumerate(second)])
    shares = torch.nn.functional.one_hot(group).to(torch.float64)  # (n, K)
    shares /= shares.sum(dim=0)
    y = torch.cat(list(second)).to(torch.float64)
    rows = [_kernel(block.to(torch.float64), y).mean(dim=0) @ shares for block in first]
    return torch.stack(rows).numpy()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).div_(x.shape[1]).add_(1.0).pow_(DEGREE)
