"""Fidelity, diversity and copies: samples among the neighbours of real images.

Each set of features is a union of balls, one a vector, that reach to its k-th nearest neighbour.

    precision  share of samples inside the balls of the reference          Kynkaanniemi 2019, k = 3
    recall     share of the reference inside the balls of the samples
    density    number of reference balls a sample lies in, over k          Naeem 2020, k = 5
    coverage   share of the reference's balls that contain a sample

All depend on the number of images: balls shrink as their set grows. So they compare only at equal
numbers of samples and of reference images. Precision and density are means over the samples, for
this reference; recall is a mean over the reference, for these samples; coverage varies with the
samples, by the jackknife over groups of them. A distance that differs from a radius by rounding
alone, as that of a copy does, counts as inside: which workers computed it makes no difference.

Whether samples are copies shows in distances in pixels to the nearest training image (Meehan 2020),
beside those of held-out images, which say how near an image comes that was never seen.

    nearer     P(a sample is nearer to the training images than a held-out image is)   fresh: 1/2
    copies     share of samples nearer than all but 1 % of held-out images are         fresh: 1 %

A network that remembers shows in both; one that blurs in the first alone, since blurred images are
near everything.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.distributed import ALONE, Group
from ddpm.metrics import intervals
from ddpm.metrics.intervals import Interval, Numbers

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
_ROWS = 1024
# Of the mean squared distance from the centre: far more than rounding, far less than chance.
_TOUCHING = 1e-10
# Samples looked up; every one is compared with every training image.
MOST_LOOKED_UP = 2000
COPY_SHARE = 0.01
HELD_OUT_LEAST = int(1 / COPY_SHARE)
_EXACT = 1024  # pixels of one product in float32

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """The four numbers."""

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval


def measure_manifold(
    samples: Tensor, groups: Tensor, reference: Tensor, workers: Group = ALONE
) -> Manifold:
    """The four numbers of samples (n, D), in K groups (n,), against reference (m, D).

    workers: all call this, each with its part of the samples and with all of the reference. The
    parts pass by one at a time; a bit and a count of each image are put together.
    """
    count = workers.largest(int(groups.max()) + 1 if len(groups) else 0)
    y = reference.to(torch.float64)
    centre = y.mean(dim=0)  # distances do not change, rounding errors do
    x, y = samples.to(torch.float64) - centre, y - centre
    touching = _TOUCHING * y.square().sum(dim=1).mean()
    narrow, wide = _radii_of_whole(y, (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS), workers)
    own = _radii_of_parts(x, PRECISION_NEIGHBOURS, workers) + touching
    member = nn.functional.one_hot(groups, count).to(torch.float32)  # (n, K)
    is_inside = torch.zeros(len(x), dtype=torch.bool)  # (n,), in a narrow ball of the reference
    around = torch.zeros(len(x), dtype=torch.float64)  # (n,), wide balls around each sample
    recalled_by, held_by = [], []  # (m,), how often in a ball of the samples; (m, K), samples held
    for rows, squared in _squared_distances(y, x):  # a part of the reference, all samples
        is_inside |= (squared <= narrow[rows, None] + touching).any(dim=0)
        is_held = squared <= wide[rows, None] + touching
        around += is_held.sum(dim=0)
        recalled_by.append((squared <= own).sum(dim=1))
        held_by.append(is_held.to(torch.float32) @ member)
    inside, balls = (torch.cat(list(workers.passing(part))).numpy() for part in (is_inside, around))
    recalled, held = (
        workers.sum_(torch.cat(parts).to(workers.device)).cpu() for parts in (recalled_by, held_by)
    )
    return Manifold(
        precision=intervals.proportion(int(inside.sum()), len(inside)),
        recall=intervals.proportion(
            int((recalled > 0).sum()), len(y), images=len(inside), unbiased=False
        ),
        density=intervals.mean(balls / DENSITY_NEIGHBOURS, len(inside)),
        coverage=_coverage(held, len(inside)),
    )


def _coverage(held: Tensor, n: int) -> Interval:
    """held: (m, K), number of samples of each group in each ball."""
    total = held.sum(dim=1, keepdim=True)
    without = ((total - held) > 0).to(torch.float64).mean(dim=0).numpy()
    whole = float((total > 0).to(torch.float64).mean())
    estimate = intervals.jackknife(whole, without, n, corrected=False)
    return Interval(
        value=whole,
        low=max(0.0, estimate.low),
        high=min(1.0, estimate.high),
        n=n,
        unbiased=False,
    )


def _radii_of_whole(y: Tensor, neighbours: tuple[int, ...], workers: Group) -> list[Tensor]:
    """Squared distances (m,) from each vector to its k-th nearest other, one tensor for each k.

    Every worker has all vectors, looks up its share and shares the result.
    """
    first, last = (len(y) * rank // workers.size for rank in (workers.rank, workers.rank + 1))
    nearest = _nearest(y[first:last], y, max(neighbours), own_from=first)
    whole = torch.cat(list(workers.passing(nearest)))
    return [whole[:, k - 1].contiguous() for k in neighbours]


def _radii_of_parts(x: Tensor, neighbour: int, workers: Group) -> Tensor:
    """Squared distances (n,) from each vector of this worker to its k-th nearest other of all."""
    nearest = x.new_empty(len(x), 0)
    for rank, others in enumerate(workers.passing(x)):
        found = _nearest(x, others, neighbour, own_from=0 if rank == workers.rank else None)
        nearest = _least(torch.cat([nearest, found], dim=1), neighbour)
    return nearest[:, neighbour - 1].contiguous()


def _nearest(x: Tensor, y: Tensor, most: int, *, own_from: int | None) -> Tensor:
    """(n, k) squared distances from each vector of x to the `most` nearest of y, ascending.

    own_from: where in y the vectors of x begin; None: they are not there.
    """
    found = [x.new_empty(0, min(most, len(y)))]
    for rows, squared in _squared_distances(x, y):
        if own_from is not None:
            # a vector is no neighbour of its own, whatever rounding makes of that distance
            own = torch.arange(own_from + rows.start, own_from + rows.stop)
            squared[torch.arange(len(squared)), own] = torch.inf
        found.append(_least(squared, most))
    return torch.cat(found)


def _least(values: Tensor, most: int) -> Tensor:
    return values.topk(min(most, values.shape[1]), dim=1, largest=False).values


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows of x, their squared distances (rows, n) from all of y)."""
    lengths = y.square().sum(dim=1)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, min(start + _ROWS, len(x)))
        part = x[rows]
        squared = part.square().sum(dim=1)[:, None] + lengths - 2.0 * (part @ y.mT)
        yield rows, squared.clamp_(min=0.0)


def nearest_distances(images: Pixels, training: Iterable[Pixels], device: torch.device) -> Numbers:
    """Root mean square difference in grey values of each image from the nearest training image.

    Squared distances of grey values are whole numbers and exact: they do not depend on the
    training images' places among workers.

    images: (n, H, W, C).  training: batches of the same size; without any, all is infinitely far.
    """
    x = _flat(images, device)
    lengths = x.square().sum(dim=1, dtype=torch.float64)
    best = torch.full_like(lengths, torch.inf)
    for batch in training:
        y = _flat(batch, device)
        squared = lengths[:, None] + y.square().sum(dim=1, dtype=torch.float64) - 2 * _dot(x, y)
        torch.minimum(best, squared.min(dim=1).values, out=best)
    return np.sqrt(best.cpu().numpy() / x.shape[1])


def copies(samples: Numbers, held_out: Numbers) -> Interval:
    """The share of samples nearer than all but 1 % of the held-out images, of 100 or more.

    The place of that 1 % is uncertain too: m held-out images put it between two of their order, by
    Wilson's interval of 0.01 m in m. Its effect on the share is added in squares to that of the
    number of samples, on each side (Zou & Donner 2008).
    """
    own = intervals.proportion(_nearer_than(samples, bound(held_out)), len(samples))
    place = intervals.proportion(max(1, round(COPY_SHARE * len(held_out))), len(held_out))
    least, most = (
        _nearer_than(samples, _ordered(held_out, level)) / len(samples)
        for level in (place.low, place.high)
    )
    return Interval(
        value=own.value,
        low=max(0.0, own.value - np.hypot(own.value - own.low, own.value - least)),
        high=min(1.0, own.value + np.hypot(own.high - own.value, most - own.value)),
        n=own.n,
    )


def bound(held_out: Numbers) -> float:
    """The distance that 1 % of the held-out images are below."""
    return float(np.quantile(held_out, COPY_SHARE, method="lower"))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """x y^T, exactly: sums of 1,024 products of whole numbers up to 128 are below 2^24."""
    found = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
    for own, other in zip(x.split(_EXACT, dim=1), y.split(_EXACT, dim=1), strict=True):
        found += own @ other.mT
    return found


def _ordered(held_out: Numbers, level: float) -> float:
    """The distance at a level of the held-out images, in [0, 1); at less than one image none."""
    place = int(level * len(held_out))
    return float(np.sort(held_out)[place - 1]) if place else -np.inf


def _nearer_than(samples: Numbers, distance: float) -> int:
    return int((samples < distance).sum())


def _flat(images: Pixels, device: torch.device) -> Tensor:
    """(n, D), whole numbers from -128 to 127."""
    return torch.from_numpy(images).to(device, torch.float32).sub_(128).flatten(1)
