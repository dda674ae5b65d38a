"""Samplers on Gaussian data, exactly: with its ideal denoiser every sampler is affine.

So the mean and the variance of what is drawn follow from where x_T = 0, x_T = 1 and each unit of
noise alone are carried to, without sampling anything.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddpm.diffusion.process import per_sample
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.denoise import Denoised
from ddpm.sampling.samplers import SAMPLERS, Move
from ddpm.sampling.spacing import Level

MEAN, VARIANCE = 0.5, 0.25

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def level_of(alpha: Tensor, sigma: Tensor) -> Level:
    """A level where samplers need no time; of a batch where alpha and sigma are (N,)."""
    logsnr = 2 * torch.log(alpha / sigma)
    return Level(time=0.5, t=0, alpha=alpha, sigma=sigma, logsnr=logsnr, network_time=0.5, key=0)


def believe(x_t: Tensor, level: Level) -> Denoised:
    """E[x0 | x_t] of data N(MEAN, VARIANCE), and the noise that goes with it."""
    alpha, sigma = per_sample(level.alpha, x_t), per_sample(level.sigma, x_t)
    marginal = alpha**2 * VARIANCE + sigma**2
    return Denoised(
        x0_hat=(alpha * VARIANCE * x_t + sigma**2 * MEAN) / marginal,
        noise_hat=sigma * (x_t - alpha * MEAN) / marginal,
    )


def carried(
    sampler: str,
    path: Sequence[Level],
    x_t: Tensor,
    noise: Callable[[int], Tensor],
    eta: float = 0.0,
) -> Tensor:
    """States carried along a path, in float64; noise(k) is that of step k."""
    before = None
    for k, (now, then) in enumerate(pairwise(path)):
        estimate = believe(x_t, now)
        move = Move(
            estimate=estimate,
            now=now,
            then=then,
            draw=lambda k=k: noise(k),
            denoise=believe,
            before=before,
            eta=eta,
        )
        x_t, before = SAMPLERS[sampler].step(move), (now, estimate)
    return x_t


def moments(sampler: str, path: Sequence[Level], eta: float = 0.0) -> tuple[float, float]:
    """Mean and variance of what a sampler reaches from x_T ~ N(0, 1)."""
    steps = len(path) - 1
    x_T = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x_T[1] = 1.0

    def noise(k: int) -> Tensor:
        unit = torch.zeros_like(x_T)
        unit[k + 2] = 1.0
        return unit

    out = carried(sampler, path, x_T, noise, eta)[:, 0]
    return float(out[0]), float((out[1:] - out[0]).square().sum())


def flowed(x_t: Tensor, now: Level, then: Level) -> Tensor:
    """x_t carried by the probability flow, which keeps the number of standard deviations."""
    stds = [(level.alpha**2 * VARIANCE + level.sigma**2).sqrt() for level in (now, then)]
    alpha, then_alpha, ratio = (
        per_sample(factor, x_t) for factor in (now.alpha, then.alpha, stds[1] / stds[0])
    )
    return then_alpha * MEAN + ratio * (x_t - alpha * MEAN)


def marginal(level: Level) -> tuple[float, float]:
    """Mean and variance of x_t under the forward process."""
    return float(level.alpha * MEAN), float(level.alpha**2 * VARIANCE + level.sigma**2)


def zero_terminal(name: str, num_timesteps: int) -> NoiseSchedule:
    return NoiseSchedule(name, num_timesteps, zero_terminal_snr=True)
