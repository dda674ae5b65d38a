"""Fidelity and diversity apart: precision, recall, density and coverage of features.

Each set is a union of balls, one a vector, that reach to its k-th nearest neighbour in the set.

    precision  share of samples inside the balls of the reference          Kynkaanniemi 2019, k = 3
    recall     share of the reference inside the balls of the samples
    density    how many balls of the reference a sample lies in, over k    Naeem 2020, k = 5
    coverage   share of the reference's balls that hold a sample

All depend on the number of images: balls shrink as their set grows. So they compare only at equal
numbers of samples and of reference images. Precision and density are means over the samples, for
this reference; recall is a mean over the reference, for these samples; coverage varies with the
samples, by the jackknife over groups of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm import estimates
from ddpm.estimates import Estimate

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """The four numbers."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold(samples: Tensor, groups: Tensor, reference: Tensor) -> Manifold:
    """The four numbers of samples (n, D), in K groups (n,), against reference (m, D)."""
    x, y = samples.to(torch.float64), reference.to(torch.float64)
    narrow, wide = _radii(y, (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
    (own,) = _radii(x, (PRECISION_NEIGHBOURS,))
    count = int(groups.max()) + 1
    member = torch.nn.functional.one_hot(groups, count).to(torch.float32)  # (n, K)
    inside, balls = np.zeros(len(x), bool), np.zeros(len(x))
    recalled, held = 0, []
    for rows, squared in _squared_distances(y, x):  # a part of the reference, all samples
        inside |= (squared <= narrow[rows, None]).any(dim=0).numpy()
        is_held = squared <= wide[rows, None]
        balls += is_held.sum(dim=0).numpy()
        recalled += int((squared <= own).any(dim=1).sum())
        held.append(is_held.to(torch.float32) @ member)  # samples of each group in each ball
    return Manifold(
        precision=estimates.share(int(inside.sum()), len(x)),
        recall=estimates.share(recalled, len(y), images=len(x), unbiased=False),
        density=estimates.mean(balls / DENSITY_NEIGHBOURS, len(x)),
        coverage=_coverage(torch.cat(held), len(x)),
    )


def _coverage(held: Tensor, n: int) -> Estimate:
    """held: (m, K), how many samples of each group lie in each ball."""
    total = held.sum(dim=1, keepdim=True)
    without = ((total - held) > 0).to(torch.float64).mean(dim=0).numpy()
    whole = float((total > 0).to(torch.float64).mean())
    estimate = estimates.jackknife(whole, without, n, corrected=False)
    return Estimate(
        value=whole,
        low=max(0.0, estimate.low),
        high=min(1.0, estimate.high),
        n=n,
        unbiased=False,
    )


def _radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """Squared distances (n,) from each vector to its k-th nearest other, one tensor for each k."""
    found = []
    for rows, squared in _squared_distances(x, x):
        # a vector is no neighbour of its own, whatever rounding makes of its distance from itself
        squared[torch.arange(len(squared)), torch.arange(rows.start, rows.stop)] = torch.inf
        found.append(squared.topk(max(neighbours), dim=1, largest=False).values)
    nearest = torch.cat(found)
    return [nearest[:, k - 1].contiguous() for k in neighbours]


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows of x, their squared distances (rows, n) from all of y), in float64."""
    centre = y.mean(dim=0)  # distances do not change, rounding errors do
    x, y = x - centre, y - centre
    lengths = y.square().sum(dim=1)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, min(start + _ROWS, len(x)))
        part = x[rows]
        squared = part.square().sum(dim=1)[:, None] + lengths - 2.0 * (part @ y.mT)
        yield rows, squared.clamp_(min=0.0)
