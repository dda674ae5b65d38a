"""Whether samples are copies: distances in pixels to the nearest training image (Meehan 2020).

    nearer   P(a sample is nearer to the training images than a held-out image is)      fresh: 1/2
    copies   share of samples nearer than all but 1 % of held-out images are            fresh: 1 %

Held-out images say how near an image comes that was never seen. A network that remembers shows
in both numbers; one that blurs shows in the first alone, since blurred images are near everything.

Squared distances of grey values are whole numbers and are computed exactly: they do not depend on
how the training images are shared out among workers.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import estimates
from ddpm.estimates import Estimate

# Samples looked up; every one is compared with every training image.
MOST_LOOKED_UP = 2000
COPY_SHARE = 0.01
HELD_OUT_LEAST = int(1 / COPY_SHARE)
_EXACT = 1024  # pixels of one product in float32

Pixels = NDArray[np.uint8]


def nearest_distances(
    images: Pixels, training: Iterable[Pixels], device: torch.device
) -> NDArray[np.float64]:
    """Root mean square difference in grey values of each image from the nearest training image.

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


def nearer(samples: NDArray[np.float64], held_out: NDArray[np.float64]) -> Estimate:
    """P(a sample is nearer to the training images than a held-out one), from their distances."""
    return estimates.order(samples, held_out)


def copies(samples: NDArray[np.float64], held_out: NDArray[np.float64]) -> Estimate:
    """The share of samples nearer than all but 1 % of the held-out images, of 100 or more.

    Where that 1 % lies is uncertain too: m held-out images place it between two of their order,
    by Wilson's interval of 0.01 m in m. What this does to the share is added in squares to what
    the number of samples does, on each side (Zou & Donner 2008).
    """
    own = estimates.share(_nearer_than(samples, bound(held_out)), len(samples))
    place = estimates.share(max(1, round(COPY_SHARE * len(held_out))), len(held_out))
    least, most = (
        _nearer_than(samples, _ordered(held_out, level)) / len(samples)
        for level in (place.low, place.high)
    )
    return Estimate(
        value=own.value,
        low=max(0.0, own.value - np.hypot(own.value - own.low, own.value - least)),
        high=min(1.0, own.value + np.hypot(own.high - own.value, most - own.value)),
        n=own.n,
    )


def bound(held_out: NDArray[np.float64]) -> float:
    """The distance that 1 % of the held-out images are below."""
    return float(np.quantile(held_out, COPY_SHARE, method="lower"))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """x y^T, exactly: sums of 1,024 products of whole numbers up to 128 are below 2^24."""
    found = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
    for own, other in zip(x.split(_EXACT, dim=1), y.split(_EXACT, dim=1), strict=True):
        found += own @ other.mT
    return found


def _ordered(held_out: NDArray[np.float64], level: float) -> float:
    """The distance at a level of the held-out images, in [0, 1); at less than one image none."""
    place = int(level * len(held_out))
    return float(np.sort(held_out)[place - 1]) if place else -np.inf


def _nearer_than(samples: NDArray[np.float64], distance: float) -> int:
    return int((samples < distance).sum())


def _flat(images: Pixels, device: torch.device) -> Tensor:
    """(n, D), whole numbers from -128 to 127."""
    return torch.from_numpy(images).to(device, torch.float32).sub_(128).flatten(1)
