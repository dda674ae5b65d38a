"""The steps of the reverse process: pure functions from a noise level t to a lower one s.

With x0_hat and noise_hat the estimate at t, rho = snr_t / snr_s, h = (logsnr_s - logsnr_t) / 2:

    ddim   x_s = alpha_s x0_hat + sqrt(sigma_s^2 - step_std^2) noise_hat + step_std z
           step_std = eta sigma_s sqrt(1 - rho)                     Song et al. 2021, Eq. 12 and 16
    ddpm   ddim with eta 1: q_posterior() for any pair                             Ho et al. 2020
    heun   ddim with eta 0, and half the change of noise_hat over that step: the trapezoid for
           d(x / alpha) / d(sigma / alpha) = noise_hat             Karras et al. 2022, Algorithm 1
    dpmpp_2m      ddim with eta 0, and alpha_s (1 - exp(-h)) of half the change of x0_hat that its
                  last one, over h_before, promises for h          Lu et al. 2022b, Algorithm 2
    dpmpp_2m_sde  the same upon ddpm, with 1 - rho for 1 - exp(-h)  Lu et al. 2022b, section 5
    analytic      ddpm with the variance sigma_s^2 (1 - rho) + (alpha_s (1 - rho))^2 Var(x0 | x_t)
                                                                   Bao et al. 2022, Theorem 1

All are ddim plus a correction that vanishes where it is not defined, so at s = 0 every one returns
x0_hat, with no noise; a step out of zero SNR, or next to it, and the first of a walk are of first
order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import per_sample
from ddpm.estimate import Estimate
from ddpm.spacing import Level

X0Variance = Callable[[float], float]

# heun multiplies a network's error in noise_hat by the weight of its correction. Over 20 steps even
# in log SNR that is below 1, over 20 even timesteps of iddpm_cosine, next to zero SNR at T, 789.
_HEUN_GAIN = 30.0


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step, and what a sampler may use for it.

    estimate: at `now`, from the state x_t = alpha x0_hat + sigma noise_hat.
    before: level and estimate of the step that led to x_t; None for the first.
    ask: the estimate in another state at another level; calls the network.
    draw: z, standard normal.  eta: of ddim.  x0_variance: Var(x0 | x_t) at a logsnr, of analytic.
    """

    estimate: Estimate
    now: Level
    then: Level
    draw: Callable[[], Tensor]
    ask: Callable[[Tensor, Level], Estimate]
    before: tuple[Level, Estimate] | None = None
    eta: float = 0.0
    x0_variance: X0Variance | None = None

    @property
    def log_rho(self) -> Tensor:
        """ln(snr_t / snr_s), negative."""
        return self.now.logsnr - self.then.logsnr


def ddim(move: Move) -> Tensor:
    """eta from 0, without noise, to 1, the ancestral sampler."""
    noise = None if move.eta == 0 or move.then.is_clean else move.draw()
    return ddim_move(move.estimate, move.now, move.then, move.eta, noise)


def ddpm(move: Move) -> Tensor:
    """The ancestral sampler."""
    noise = None if move.then.is_clean else move.draw()
    return ddim_move(move.estimate, move.now, move.then, 1.0, noise)


def heun(move: Move) -> Tensor:
    """Of second order, with two calls of the network; one where it is a step of ddim."""
    now, then = move.now, move.then
    x_s = ddim_move(move.estimate, now, then, 0.0, None)
    half = 0.5 * (then.sigma - then.alpha * now.sigma / now.alpha)  # -inf out of zero SNR
    if then.is_clean or half < -_HEUN_GAIN:
        return x_s
    change = move.ask(x_s, then).noise_hat - move.estimate.noise_hat
    return x_s + per_sample(half, x_s) * change


def dpmpp_2m(move: Move) -> Tensor:
    """Of second order by the estimate before, with one call of the network."""
    x_s = ddim_move(move.estimate, move.now, move.then, 0.0, None)
    return _extrapolated(move, x_s, -move.then.alpha * torch.expm1(0.5 * move.log_rho))


def dpmpp_2m_sde(move: Move) -> Tensor:
    """dpmpp_2m with the noise of the ancestral sampler."""
    return _extrapolated(move, ddpm(move), -move.then.alpha * torch.expm1(move.log_rho))


def analytic(move: Move) -> Tensor:
    """The ancestral sampler with the variance that is optimal for any length of step."""
    if move.then.is_clean:
        return ddpm(move)
    if move.x0_variance is None:
        raise ValueError("the analytic sampler needs x0_variance; none was given")
    unknown = min(1.0, max(0.0, move.x0_variance(float(move.now.logsnr))))
    share = -torch.expm1(move.log_rho)
    variance = move.then.sigma**2 * share + (move.then.alpha * share) ** 2 * unknown
    mean = ddim_move(move.estimate, move.now, move.then, 1.0, None)
    return mean + per_sample(variance.sqrt(), mean) * move.draw()


SAMPLERS: dict[str, Callable[[Move], Tensor]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "analytic": analytic,
}


def ddim_move(
    estimate: Estimate, now: Level, then: Level, eta: float, noise: Tensor | None
) -> Tensor:
    """ddim with z = noise, or without its term: then the mean.  Levels may be (N,).

    The direction is in the form that does not cancel.
    """
    x0_hat, noise_hat = estimate.x0_hat, estimate.noise_hat
    log_rho = now.logsnr - then.logsnr
    # sigma_s^2 - step_std^2 = sigma_s^2 (1 - eta^2 + eta^2 rho)
    direction = then.sigma * torch.sqrt(1.0 - eta**2 + eta**2 * torch.exp(log_rho))
    x_s = per_sample(then.alpha, x0_hat) * x0_hat + per_sample(direction, x0_hat) * noise_hat
    if eta > 0 and noise is not None:
        step_std = eta * then.sigma * torch.sqrt(-torch.expm1(log_rho))
        x_s = x_s + per_sample(step_std, x0_hat) * noise
    return x_s


def renoised(x_s: Tensor, then: Level, now: Level, noise: Tensor) -> Tensor:
    """From s back up to t, by the forward process: a draw from q(x_t | x_s).

    x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z
    """
    std = now.sigma * torch.sqrt(-torch.expm1(now.logsnr - then.logsnr))
    return per_sample(now.alpha / then.alpha, x_s) * x_s + per_sample(std, x_s) * noise


def _extrapolated(move: Move, x_s: Tensor, weight: Tensor) -> Tensor:
    """x_s with half the change of x0_hat that the last step promises for this one."""
    if move.before is None or move.then.is_clean:
        return x_s
    level, estimate = move.before
    # h / h_before: 0 after a step out of zero SNR
    ratio = move.log_rho / (level.logsnr - move.now.logsnr)
    change = move.estimate.x0_hat - estimate.x0_hat
    return x_s + per_sample(0.5 * weight * ratio, x_s) * change
