"""The variational bound on bits/dim, term by term, over any walk of timesteps down to the data.

    L_T        KL(q(x_T | x_0) || N(0, 1))
    L_{t -> s} KL(q(x_s | x_t, x_0) || q(x_s | x_t, x0_hat)) = 1/2 (snr_s - snr_t) (x0_hat - x_0)^2
    L_0        -log of the mass that N(x0_hat, std) gives the grey value of x_0
                                                              (Ho et al. 2020, Eq. 5, 8 and 13)

Both distributions of a step have the posterior's own variance, Ho's smaller choice. The posterior
at t -> 0 has none, so the decoder has that of the step before it, as Nichol & Dhariwal clip theirs.
A walk of fewer timesteps is a bound too, of a coarser model: looser, as a rule.

The bound is no measure to rank schedules or numbers of timesteps by: where the noise of t = 1 is
far below a grey value, the bound pays for noise that nobody sees. One ideal denoiser of Gaussian
data whose true entropy is 8.04 bits has 8.80 with linear and 10.44 with cosine at T = 1000. Data
that are not bytes have no bound. All of it is float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm.data import Batch
from ddpm.diffusion import NoiseSchedule, Stream, diffuse, network_input, philox, x0_from_pred
from ddpm.metrics.intervals import standard_error
from ddpm.sampling import Level, Network, whole_levels

# One network call a step and image.
BOUND_STEPS = 64
NOT_BYTES = "the images are not bytes: their bits depend on how finely they would be rounded"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Grey values, evenly spaced; the lowest and the highest stand for all that lies beyond."""

    lowest: float = -1.0
    highest: float = 1.0
    quantum: float = 2 / 255

    def holds(self, images: Tensor) -> bool:
        """True of images of grey values alone, to a thousandth of the distance of two."""
        places = (images.double() - max(self.lowest, -1.0)) / self.quantum
        is_even = (places - places.round()).abs() < 1e-3
        is_inside = (images >= self.lowest - 1e-6) & (images <= self.highest + 1e-6)
        return bool((is_even & is_inside).all())


BYTES = Grid()


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Bits per dimension by term and image.

    timesteps: of the walk, from T to 0.  bits: (steps + 1, N): L_T, then a row a step, the last
    of them, from the first timestep to the data, L_0.  ids: (N,).
    """

    timesteps: tuple[int, ...]
    bits: np.ndarray
    ids: np.ndarray

    @property
    def total(self) -> float:
        """The bound, mean over images."""
        return float(self.bits.sum(axis=0).mean())

    @property
    def evaluation_error(self) -> float:
        """Standard error of the bound over images (and their noise); NaN for a single one."""
        return float(standard_error(self.bits.sum(axis=0)))

    @property
    def terms(self) -> np.ndarray:
        """Each term, mean over images: (steps + 1,)."""
        return np.asarray(self.bits.mean(axis=1))

    @property
    def term_errors(self) -> np.ndarray:
        """Their standard errors over images."""
        return standard_error(self.bits)

    def facts(self) -> dict[str, object]:
        """Its part of evaluation.json."""
        return {
            "value": self.total,
            "evaluation_error": self.evaluation_error,
            "num_images": len(self.ids),
            "timesteps": list(self.timesteps),
            "terms": self.terms.tolist(),
            "term_errors": self.term_errors.tolist(),
        }


def bound_timesteps(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """At most num_steps + 1 timesteps from T over t = 1 to 0, as even in logsnr as whole ones are.

    A step costs 1/2 (snr_s - snr_t) mse_t, with mse_t about 1 / snr_t where there is little noise,
    so equal ratios of snr share the loss of a coarse walk out evenly.  All timesteps where there
    are no more of them.  Raises ValueError for fewer than 1 step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; give at least 1")
    last = schedule.num_timesteps
    if num_steps >= last:
        return list(range(last, -1, -1))
    if num_steps <= 2:
        return [last, 1, 0] if num_steps == 2 else [last, 0]
    # no place on an even grid for zero SNR: the timestep after it begins the grid
    first = last if math.isfinite(schedule.logsnr_range[0]) else last - 1
    logsnr = schedule.logsnr_at(torch.arange(1, first + 1)).numpy()[::-1]  # ascending
    count = num_steps - (first < last)
    wanted = np.linspace(logsnr[0], logsnr[-1], count)
    places = np.abs(logsnr[None, :] - wanted[:, None]).argmin(axis=1)
    chosen = {first - int(place) for place in places} | {last, 1}
    return [*sorted(chosen, reverse=True), 0]


@torch.no_grad()
def variational_bound(
    network: Network,
    schedule: NoiseSchedule,
    batch: Batch,
    *,
    pred_type: str,
    timesteps: Sequence[int],
    seed: int,
    batch_size: int = 256,
    grid: Grid = BYTES,
) -> Bound:
    """The bound of a network on images, by term and image, with one noise for each image.

    batch.images: (N, C, H, W), grey values of `grid`, on the network's device.  timesteps: falling
    from T to 0.  The noise is keyed by (seed, EVAL, sample id), the same at every timestep, so each
    term is unbiased.  Raises ValueError for other timesteps and for images off the grid.
    """
    _check(schedule, timesteps, batch, grid)
    levels = whole_levels(schedule, timesteps)
    draws = philox.normal(seed, Stream.EVAL, batch.ids, tuple(batch.images.shape[1:]))
    columns = []
    for start in range(0, len(batch.ids), batch_size):
        part = slice(start, start + batch_size)
        x0, epsilon = batch.images[part].double(), draws[part].double()
        labels = None if batch.labels is None else batch.labels[part]
        rows = [_prior(x0, levels[0])]
        for now, then in zip(levels[:-1], levels[1:], strict=True):
            time = x0.new_full((len(x0),), now.network_time)
            x0_hat = denoised(
                network, schedule, pred_type, x0, epsilon, now.alpha, now.sigma, time, labels
            )
            if then.is_clean:
                before = levels[-3] if len(levels) > 2 else None
                rows.append(_decoder(x0, x0_hat, decoder_std(now, before), grid))
            else:
                rows.append(_step(x0, x0_hat, now, then))
        columns.append(torch.stack(rows))
    return Bound(
        timesteps=tuple(timesteps),
        bits=(torch.cat(columns, dim=1) / math.log(2)).cpu().numpy(),
        ids=batch.ids.cpu().numpy(),
    )


def denoised(
    network: Network,
    schedule: NoiseSchedule,
    pred_type: str,
    x0: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    time: Tensor,
    labels: Tensor | None,
) -> Tensor:
    """x0_hat of clean images diffused to one level, float64 (N, C, H, W); never under autocast.

    x0, noise: float64.  alpha, sigma: of no dimension, float64.  time: (N,), the network's.
    """
    alpha, sigma = (one.expand(len(x0)).to(x0.device) for one in (alpha, sigma))
    # The estimate is of what the network was given: x_t rounded to float32.
    x_t = diffuse(x0, noise, alpha, sigma).float()
    given = network_input(x_t, alpha, sigma, pred_type, schedule.sigma_data)
    pred = network(given, time.float(), labels)
    with torch.autocast(x0.device.type, enabled=False):
        return x0_from_pred(
            pred.double(), x_t.double(), alpha, sigma, pred_type, schedule.sigma_data
        )


def decoder_std(first: Level, before: Level | None) -> Tensor:
    """The decoder's standard deviation: that of q(x_first | x_before, x_0).

    before: the level above the first; None, in a walk of one step, is pure noise.
    """
    if before is None:
        return first.sigma
    return first.sigma * torch.sqrt(-torch.expm1(before.logsnr - first.logsnr))


def grid_log_mass(x0: Tensor, mean: Tensor, std: Tensor, grid: Grid = BYTES) -> Tensor:
    """log of the mass that N(mean, std^2) gives the grey values x0     (Ho et al. 2020, Eq. 13).

    From half a quantum below to half above; the grid's ends take the rest of their side.  Every
    tail is computed on its own side, so nothing cancels.  Shapes of x0, float64.
    """
    half = grid.quantum / 2
    lower = torch.where(x0 < grid.lowest + half, -math.inf, (x0 - half - mean) / std)
    upper = torch.where(x0 > grid.highest - half, math.inf, (x0 + half - mean) / std)
    # Mirrored where the interval lies above the mean: mass = Phi(far) - Phi(near), both small.
    is_above = lower + upper > 0
    near = torch.where(is_above, -upper, lower)
    far = torch.where(is_above, -lower, upper)
    top = torch.special.log_ndtr(far)
    rest = torch.special.log_ndtr(near) - top
    return top + torch.log(-torch.expm1(rest))


def _prior(x0: Tensor, level: Level) -> Tensor:
    """L_T, nats a dimension: (N,)."""
    alpha, sigma = level.alpha.to(x0.device), level.sigma.to(x0.device)
    # sigma^2 - 1 = -alpha^2, without cancelling
    kl = 0.5 * (alpha**2 * (x0**2 - 1)) - torch.log(sigma)
    return kl.flatten(1).mean(dim=1)


def _step(x0: Tensor, x0_hat: Tensor, now: Level, then: Level) -> Tensor:
    """L_{t -> s}, nats a dimension: (N,)."""
    difference = -torch.exp(then.logsnr) * torch.expm1(now.logsnr - then.logsnr)
    mse = (x0_hat - x0).square().flatten(1).mean(dim=1)
    return 0.5 * difference.to(x0.device) * mse


def _decoder(x0: Tensor, x0_hat: Tensor, std: Tensor, grid: Grid) -> Tensor:
    """L_0, nats a dimension: (N,)."""
    return -grid_log_mass(x0, x0_hat, std.to(x0.device), grid).flatten(1).mean(dim=1)


def _check(schedule: NoiseSchedule, timesteps: Sequence[int], batch: Batch, grid: Grid) -> None:
    last = schedule.num_timesteps
    falls = all(t > s for t, s in zip(timesteps, timesteps[1:], strict=False))
    if len(timesteps) < 2 or timesteps[0] != last or timesteps[-1] != 0 or not falls:
        raise ValueError(f"timesteps are {list(timesteps)}; give them falling from {last} to 0")
    if not grid.holds(batch.images):
        raise ValueError(NOT_BYTES)
