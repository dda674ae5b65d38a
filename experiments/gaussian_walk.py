"""Distribution of a sampler's images for Gaussian data, exactly: no network, no samples.

For data N(mean, U diag(c) U^T) the ideal denoiser is linear and acts on each direction alone:

    x0_hat    = (alpha c x_t + sigma^2 mean) / (alpha^2 c + sigma^2)
    noise_hat = sigma (x_t - alpha mean) / (alpha^2 c + sigma^2)

Then a step of a sampler without memory is x_s = slope x_t + offset + std z, so what is drawn is
again Gaussian. slope, offset and std are read off the sampler's own code, in float64, by giving it
x_t = 0 and 1 and z = 0 and 1. In the limit of many steps without noise the flow gives, in each
direction (with alpha, sigma of t = T),

    mean_drawn - mean = -sqrt(c) alpha mean / sqrt(alpha^2 c + sigma^2)     terminal-SNR bias
    variance_drawn    = c / (alpha^2 c + sigma^2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.diffusion import NoiseSchedule
from ddpm.sampling import SAMPLERS, Denoised, Level, Move

# dpmpp_2m and its _sde remember the step before.
WITHOUT_MEMORY: tuple[str, ...] = ("ddim", "ddpm", "heun")


@dataclass(frozen=True, kw_only=True)
class GaussianFit:
    """A normal distribution by its eigen-directions.

    mean, variance: float64 (K,), along each direction.  basis: float64 (D, K), their unit vectors;
    K < D where fewer images than pixels were fitted: nothing varies in the other directions.
    pixel_mean: float64 (D,).
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor
    pixel_mean: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> "GaussianFit":
        """With the mean and the covariance of vectors (n, D)."""
        vectors = vectors.double()
        pixel_mean = vectors.mean(dim=0)
        if len(vectors) < vectors.shape[1]:
            variance, basis = _of_few(vectors - pixel_mean)
        else:
            variance, basis = torch.linalg.eigh(torch.cov(vectors.T, correction=0))
        return cls(
            mean=pixel_mean @ basis,
            variance=variance.clamp_min(0),
            basis=basis,
            pixel_mean=pixel_mean,
        )

    def ideal(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x_t], for states (..., K) along the directions."""
        seen = alpha * self.variance * x_t + sigma**2 * self.mean
        return seen / (alpha**2 * self.variance + sigma**2)

    def estimate(self, x_t: Tensor, level: Level) -> Denoised:
        """The ideal denoiser's, likewise; the noise without a difference that would cancel."""
        alpha, sigma = level.alpha, level.sigma
        noise_hat = sigma * (x_t - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)
        return Denoised(x0_hat=self.ideal(x_t, alpha, sigma), noise_hat=noise_hat)

    @property
    def brightness(self) -> Tensor:
        """The mean pixel of each direction's unit vector, (K,): shift @ brightness is a shift's."""
        return self.basis.mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class GaussianDraws:
    """The normal distribution that is drawn: mean and variance along each direction, (K,)."""

    mean: Tensor
    variance: Tensor

    def distance(self, data: GaussianFit) -> float:
        """The 2-Wasserstein distance from the data; its square is their Frechet distance.

        W^2 = sum (mean_drawn - mean)^2 + (sqrt(variance_drawn) - sqrt(c))^2
        """
        spread = self.variance.sqrt() - data.variance.sqrt()
        return float(((self.mean - data.mean).square() + spread.square()).sum().sqrt())


def drawn(
    data: GaussianFit,
    path: Sequence[Level],
    *,
    sampler: str = "ddim",
    eta: float = 0.0,
    begin: GaussianDraws | None = None,
) -> GaussianDraws:
    """Distribution of a walk over `path` with the ideal denoiser of `data`.

    sampler: one of WITHOUT_MEMORY (ValueError otherwise).  eta: of ddim.  begin: the distribution
    of the first state; None: N(0, 1).
    """
    if sampler not in WITHOUT_MEMORY:
        raise ValueError(f"sampler is {sampler!r}; give one of {', '.join(WITHOUT_MEMORY)}")
    zero = torch.zeros_like(data.mean)
    mean, variance = (zero, zero + 1) if begin is None else (begin.mean, begin.variance)
    x_t, z = torch.stack([zero, zero + 1, zero]), torch.stack([zero, zero, zero + 1])
    for now, then in pairwise(path):
        move = Move(
            estimate=data.estimate(x_t, now),
            now=now,
            then=then,
            draw=lambda: z,
            denoise=data.estimate,
            eta=eta,
        )
        offset, with_slope, with_noise = SAMPLERS[sampler].step(move)
        mean = (with_slope - offset) * mean + offset
        variance = (with_slope - offset).square() * variance + (with_noise - offset).square()
    return GaussianDraws(mean=mean, variance=variance)


def noised(data: GaussianFit, level: Level) -> GaussianDraws:
    """The data after the forward process up to a level: what a walk should begin in."""
    return GaussianDraws(
        mean=level.alpha * data.mean, variance=level.alpha**2 * data.variance + level.sigma**2
    )


def ideal_network(
    data: GaussianFit, schedule: NoiseSchedule
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The ideal denoiser as a network that predicts images; all of a batch at one time."""
    still = data.pixel_mean - data.basis @ data.mean  # of the directions in which nothing varies

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time[0])
        state = x_t.flatten(1).double() @ data.basis
        x0_hat = data.ideal(state, alpha, sigma) @ data.basis.T + still
        return x0_hat.to(x_t.dtype).view_as(x_t)

    return network


def flow_limit(data: GaussianFit, first: Level) -> GaussianDraws:
    """The limit of infinitely many steps without noise, begun in N(0, 1) at the level `first`."""
    total = first.alpha**2 * data.variance + first.sigma**2
    shrink = (data.variance / total).sqrt()
    return GaussianDraws(
        mean=data.mean - shrink * first.alpha * data.mean, variance=data.variance / total
    )


def _of_few(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances and directions of n < D vectors, from their n x n products; directions in which
    nothing varies are left out.
    """
    values, vectors = torch.linalg.eigh(centred @ centred.T / len(centred))
    kept = values > 1e-10 * values[-1].clamp_min(1e-300)
    basis = centred.T @ vectors[:, kept]
    return values[kept], basis / basis.norm(dim=0)
