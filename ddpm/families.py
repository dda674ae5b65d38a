"""The families of noise schedules: alpha and sigma over continuous time, their inverses, and betas.

Notation and sources are in schedule.py, which chooses among them by name. Everything is float64.

Every family computes sigma by a formula of its own, never as sqrt(1 - abar): near time 0 the
difference is of the order of 1e-6, and float32 would keep two of its digits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

AlphaSigma = tuple[Tensor, Tensor]

_MIN_LOGSNR = -15.0
_MAX_BETA = 0.999


class Family(Protocol):
    """A schedule over continuous time, and its inverse."""

    def alpha_sigma(self, time: Tensor) -> AlphaSigma: ...

    def time(self, logsnr: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class VariancePreserving:
    """abar = exp(-(beta_0 time + (beta_1 - beta_0) time^2 / 2)), the integral of a linear beta."""

    beta_0: float = 0.1
    beta_1: float = 20.0

    def alpha_sigma(self, time: Tensor) -> AlphaSigma:
        log_abar = -time * (self.beta_0 + 0.5 * (self.beta_1 - self.beta_0) * time)
        return torch.exp(0.5 * log_abar), torch.sqrt(-torch.expm1(log_abar))

    def time(self, logsnr: Tensor) -> Tensor:
        log_abar = logsigmoid(logsnr)
        root = torch.sqrt(self.beta_0**2 - 2 * (self.beta_1 - self.beta_0) * log_abar)
        return -2 * log_abar / (self.beta_0 + root)  # the form of the root that does not cancel


@dataclass(frozen=True)
class CosPower:
    """abar = cos(end_angle time)^power, power even."""

    power: int
    end_angle: float  # radians

    def alpha_sigma(self, time: Tensor) -> AlphaSigma:
        cosine, sine = torch.cos(self.end_angle * time), torch.sin(self.end_angle * time)
        # 1 - c^(2n) = (1 - c^2) (1 + c^2 + ... + c^(2n-2))
        geometric = torch.ones_like(cosine)
        for k in range(1, self.power // 2):
            geometric = geometric + cosine ** (2 * k)
        return cosine ** (self.power // 2), sine * geometric.sqrt()

    def time(self, logsnr: Tensor) -> Tensor:
        log_cosine_squared = 2 / self.power * logsigmoid(logsnr)
        sine = torch.sqrt(-torch.expm1(log_cosine_squared))
        return torch.atan2(sine, torch.exp(0.5 * log_cosine_squared)) / self.end_angle


@dataclass(frozen=True)
class Laplace:
    """logsnr = -scale sgn(1/2 - u) ln(1 - 2 |u - 1/2|), with time ending where it is -15, not -inf.

    (Hang et al. 2024, with the sign for which logsnr falls.)
    """

    scale: float

    @property
    def _cut(self) -> float:
        return 0.5 * math.exp(_MIN_LOGSNR / self.scale)

    def alpha_sigma(self, time: Tensor) -> AlphaSigma:
        u = (1 - self._cut) * time
        rest = (1 - time) + self._cut * time  # 1 - u, without cancellation at the end
        return pair_from_logsnr(
            torch.where(u < 0.5, -torch.log(2 * u), torch.log(2 * rest)) * self.scale
        )

    def time(self, logsnr: Tensor) -> Tensor:
        tail = 0.5 * torch.exp(-logsnr.abs() / self.scale)
        return torch.where(logsnr > 0, tail, 1 - tail) / (1 - self._cut)


@dataclass(frozen=True)
class Shifted:
    """Another family with `shift` added to its logsnr."""

    family: Family
    shift: float

    def alpha_sigma(self, time: Tensor) -> AlphaSigma:
        return shifted(self.family.alpha_sigma(time), self.shift)

    def time(self, logsnr: Tensor) -> Tensor:
        return self.family.time(logsnr - self.shift)


@dataclass(frozen=True)
class Interpolated:
    """logsnr linear between the entries of a table.

    Where an end of the table is infinite the quantity that goes to zero there is linear instead:
    sigma / alpha before the first timestep, alpha / sigma after the last but one.
    """

    logsnr: Tensor  # (T + 1,), falling from +inf

    def alpha_sigma(self, time: Tensor) -> AlphaSigma:
        table = self.logsnr.to(time.device)
        position = time * (len(table) - 1)
        index = position.long().clamp(max=len(table) - 2)
        fraction = position - index
        before, after = table[index], table[index + 1]
        inside = before + fraction * (after - before)
        inside = torch.where(before == math.inf, after - 2 * torch.log(fraction), inside)
        inside = torch.where(after == -math.inf, before + 2 * torch.log1p(-fraction), inside)
        return pair_from_logsnr(inside)

    def time(self, logsnr: Tensor) -> Tensor:
        table = self.logsnr.to(logsnr.device)
        index = torch.searchsorted(-table, -logsnr.contiguous()).sub(1).clamp(0, len(table) - 2)
        before, after = table[index], table[index + 1]
        fraction = (logsnr - before) / (after - before)
        fraction = torch.where(before == math.inf, torch.exp(0.5 * (after - logsnr)), fraction)
        fraction = torch.where(after == -math.inf, -torch.expm1(0.5 * (logsnr - before)), fraction)
        return (index + fraction) / (len(table) - 1)


def times_of(num_timesteps: int) -> Tensor:
    """The T + 1 times t / T."""
    return torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps


def pair_from_logsnr(logsnr: Tensor) -> AlphaSigma:
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def logsnr_of(pair: AlphaSigma) -> Tensor:
    return 2 * (torch.log(pair[0]) - torch.log(pair[1]))


def pair_from_betas(betas: Tensor) -> AlphaSigma:
    """The table of abar_t = prod (1 - beta_i), with abar_0 = 1."""
    log_abar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
    return torch.exp(0.5 * log_abar), torch.sqrt(-torch.expm1(log_abar))


def shifted(pair: AlphaSigma, shift: float) -> AlphaSigma:
    """logsnr + shift: sigma / alpha is multiplied by exp(-shift / 2)."""
    return _on_circle(pair[0], pair[1] * math.exp(-0.5 * shift))


def with_zero_terminal_snr(pair: AlphaSigma) -> AlphaSigma:
    """alpha_t' = alpha_1 (alpha_t - alpha_T) / (alpha_1 - alpha_T) for t >= 1    (Lin et al. 2023).

    sigma' comes from 1 - alpha_t', which is formed from 1 - alpha = sigma^2 / (1 + alpha).
    """
    alpha, sigma = pair[0][1:], pair[1][1:]
    scale = alpha[0] / (alpha[0] - alpha[-1])
    deficit = sigma**2 / (1 + alpha)
    deficit = deficit[0] + (deficit - deficit[0]) * scale
    one, zero = alpha.new_ones(1), alpha.new_zeros(1)
    return _on_circle(
        torch.cat([one, (alpha - alpha[-1]) * scale]),
        torch.cat([zero, (deficit * (2 - deficit)).sqrt()]),
    )


def _on_circle(alpha: Tensor, sigma: Tensor) -> AlphaSigma:
    norm = torch.hypot(alpha, sigma)
    return alpha / norm, sigma / norm


def _iddpm_linear_betas(num_timesteps: int) -> Tensor:
    scale = 1000 / num_timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)


def _iddpm_cosine_betas(num_timesteps: int) -> Tensor:
    angle = (times_of(num_timesteps) + 0.008) / 1.008 * (math.pi / 2)
    return _betas_of(torch.cos(angle) ** 2)


def _sigmoid_betas(num_timesteps: int, start: float = -3.0, end: float = 3.0) -> Tensor:
    abar = torch.sigmoid(torch.tensor(end, dtype=torch.float64)) - torch.sigmoid(
        times_of(num_timesteps) * (end - start) + start
    )
    return _betas_of(abar)


def _betas_of(abar: Tensor) -> Tensor:
    return (1 - abar[1:] / abar[:-1]).clamp(max=_MAX_BETA)


CONTINUOUS: dict[str, Family] = {
    "linear": VariancePreserving(),
    "cosine": CosPower(2, math.radians(89)),
    "cos6": CosPower(6, math.radians(80)),
    "cos6_85": CosPower(6, math.radians(85)),
    "laplace": Laplace(scale=0.5),
    # The paper's angle starts at atan(exp(-7.5)); ours at 0, so that time 0 is clean data.
    "shifted_cosine": Shifted(CosPower(2, math.atan(math.exp(-_MIN_LOGSNR / 2))), -2 * math.log(2)),
}
BETAS: dict[str, Callable[[int], Tensor]] = {
    "iddpm_linear": _iddpm_linear_betas,
    "iddpm_cosine": _iddpm_cosine_betas,
    "sigmoid": _sigmoid_betas,
}
