"""Noise schedules: abar as a function of continuous time, and its float64 table for T timesteps.

    x_t = alpha x_0 + sigma noise,   alpha^2 = abar,   sigma^2 = 1 - abar
    snr = alpha^2 / sigma^2,         logsnr = ln snr

time is in [0, 1], where 0 is clean data. A model with T timesteps reads the function at t / T for
t in {0, ..., T}; training draws t in {1, ..., T}. `alpha` and `sigma` occur only as this pair, with
alpha^2 + sigma^2 = 1; the cumulative product is called `alphas_cumprod` and written abar.

    linear          abar = exp(-(0.1 time + 9.95 time^2)), the VP-SDE     Song et al. 2021, Eq. 33
    cosine          abar = cos^2(89 degrees time)                         DDPM v3
    cos6            abar = cos^6(80 degrees time)                         DDPM v3
    cos6_85         abar = cos^6(85 degrees time)                         DDPM v3, later
    iddpm_linear    beta from 0.1 / T to 20 / T                           Ho et al. 2020, sec. 4
    iddpm_cosine    abar ~ cos^2(90 degrees (time + .008) / 1.008)        Nichol-Dhariwal, Eq. 17
    sigmoid         abar ~ sigmoid(3) - sigmoid(6 time - 3)               Jabri et al. 2022
    laplace         over time, logsnr is distributed as Laplace(0, 0.5)   Hang et al. 2024
    shifted_cosine  logsnr = -2 ln tan(time t_max) - 2 ln 2               Hoogeboom et al. 2023

iddpm_cosine and sigmoid clip beta at 0.999. laplace and shifted_cosine (before its shift) end at
logsnr = -15, as the latter's paper has it. The three with betas depend on T, and so does every
schedule rescaled to zero terminal SNR.

A new schedule is a function of its betas, or a Family with its inverse, a line in SCHEDULES and its
name in the configuration's schema (docs/extending.md).
Families compute sigma by a formula of their own, never as sqrt(1 - abar): near time 0 the
difference is of the order of 1e-6, and float32 would keep two of its digits.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

AlphaSigma = tuple[Tensor, Tensor]
T = TypeVar("T", float, Tensor)

TIME_INPUTS: tuple[str, ...] = ("time", "logsnr", "timestep", "flow")
LOGSNR_LIMIT = 20.0  # beyond it, alpha or sigma is below 5e-5
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
    """T + 1 times t / T."""
    return torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps


def pair_from_logsnr(logsnr: Tensor) -> AlphaSigma:
    """alpha, sigma."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def logsnr_of(pair: AlphaSigma) -> Tensor:
    return 2 * (torch.log(pair[0]) - torch.log(pair[1]))


def pair_from_betas(betas: Tensor) -> AlphaSigma:
    """Table of abar_t = prod (1 - beta_i), with abar_0 = 1."""
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


def _sigmoid_betas(num_timesteps: int) -> Tensor:
    end = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
    return _betas_of(end - torch.sigmoid(times_of(num_timesteps) * 6.0 - 3.0))


def _betas_of(abar: Tensor) -> Tensor:
    return (1 - abar[1:] / abar[:-1]).clamp(max=_MAX_BETA)


SCHEDULES: dict[str, Family | Callable[[int], Tensor]] = {
    "linear": VariancePreserving(),
    "cosine": CosPower(2, math.radians(89)),
    "cos6": CosPower(6, math.radians(80)),
    "cos6_85": CosPower(6, math.radians(85)),
    "iddpm_linear": _iddpm_linear_betas,
    "iddpm_cosine": _iddpm_cosine_betas,
    "sigmoid": _sigmoid_betas,
    "laplace": Laplace(scale=0.5),
    # The paper's angle starts at atan(exp(-7.5)); ours at 0, so that time 0 is clean data.
    "shifted_cosine": Shifted(CosPower(2, math.atan(math.exp(-_MIN_LOGSNR / 2))), -2 * math.log(2)),
}


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule read at num_timesteps + 1 places.

    name: one of SCHEDULES.  num_timesteps: T, at least 1.
    logsnr_shift: added to logsnr at every time. 2 ln(a / b) carries a schedule found for images of
        a pixels a side over to images of b pixels a side (Hoogeboom et al. 2023, section 3.1).
    zero_terminal_snr: move and scale alpha so that alpha_T is 0 and alpha_1 stays (Lin et al. 2023,
        Algorithm 1). Noise prediction is then undefined at t = T.
    time_input: what a network sees of the noise level, one of TIME_INPUTS; network_time().
    sigma_data: standard deviation of the data, which edm prediction takes (process.py); else None.
    given: logsnr at t = 1 .. T, of a schedule of your own; see from_betas and from_logsnr.

    alphas_cumprod: abar, float64 (T + 1,) on the CPU, falling from 1 at t = 0.
    Raises ValueError for an unknown name or impossible numbers.
    """

    name: str
    num_timesteps: int
    _: KW_ONLY
    logsnr_shift: float = 0.0
    zero_terminal_snr: bool = False
    time_input: str = "time"
    sigma_data: float | None = None
    given: tuple[float, ...] | None = field(default=None, repr=False)
    alphas_cumprod: Tensor = field(init=False, repr=False, compare=False)
    _family: Family = field(init=False, repr=False, compare=False)
    _table: AlphaSigma = field(init=False, repr=False, compare=False)
    _logsnr: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        family: Family | Callable[[int], Tensor]
        if self.given is not None:
            family = Interpolated(torch.tensor([math.inf, *self.given], dtype=torch.float64))
            table = pair_from_logsnr(family.logsnr)
        elif callable(family := SCHEDULES[self.name]):
            table = pair_from_betas(family(self.num_timesteps))
        else:
            table = family.alpha_sigma(times_of(self.num_timesteps))
            family = Shifted(family, self.logsnr_shift)
        table = shifted(table, self.logsnr_shift)
        if self.zero_terminal_snr:
            table = with_zero_terminal_snr(table)
        logsnr = logsnr_of(table)
        if self.is_beta_defined:
            family = Interpolated(logsnr)
        # The dataclass is frozen for its users; these are derived once, here.
        for name, value in (
            ("alphas_cumprod", table[0] ** 2),
            ("_family", family),
            ("_table", table),
            ("_logsnr", logsnr),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> "NoiseSchedule":
        """The schedule of beta_1 .. beta_T: abar_t = prod (1 - beta_i)     (Ho et al. 2020, Eq. 4).

        Raises ValueError for a beta outside (0, 1]; 1 may be the last alone.
        """
        beta = _as_row(betas, "betas")
        if not bool(((beta > 0) & (beta <= 1)).all()):
            raise ValueError(f"beta is {_offender(beta, (beta > 0) & (beta <= 1))}; give (0, 1]")
        return cls.from_logsnr(logsnr_of(pair_from_betas(beta))[1:])

    @classmethod
    def from_logsnr(cls, logsnr: Tensor | Sequence[float]) -> "NoiseSchedule":
        """The schedule with this log SNR at t = 1 .. T, falling; -inf may be the last.

        Between timesteps logsnr is linear. Raises ValueError where it does not fall.
        """
        values = _as_row(logsnr, "logsnr")
        falls = torch.cat([values.new_full((1,), math.inf), values]).diff() < 0
        if not bool(falls.all()):
            raise ValueError(
                f"logsnr {_offender(values, falls)} does not fall; give finite numbers, each below "
                "the one before"
            )
        return cls("given", len(values), given=tuple(values.tolist()))

    def _check(self) -> None:
        if self.given is not None and len(self.given) != self.num_timesteps:
            raise ValueError(
                f"num_timesteps is {self.num_timesteps}, but logsnr is given at {len(self.given)}"
            )
        if self.given is None:
            check_choice("schedule", self.name, SCHEDULES)
        check_choice("time_input", self.time_input, TIME_INPUTS)
        if self.num_timesteps < 1:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; give at least 1")
        if self.name == "iddpm_linear" and self.num_timesteps <= 20:
            raise ValueError(
                f"num_timesteps is {self.num_timesteps} but iddpm_linear ends with beta = 20 / T,"
                " which must be below 1; give at least 21 or another schedule"
            )
        if not math.isfinite(self.logsnr_shift):
            raise ValueError(f"logsnr_shift is {self.logsnr_shift}; give a finite number")
        if self.zero_terminal_snr and self.num_timesteps < 2:
            raise ValueError("zero_terminal_snr needs num_timesteps of at least 2, got 1")

    @property
    def is_beta_defined(self) -> bool:
        """True of a schedule that is its table: it depends on T, and time interpolates logsnr."""
        is_table = self.given is not None or callable(SCHEDULES[self.name])
        return is_table or self.zero_terminal_snr

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """logsnr at t = T and at t = 1: the noise levels a network is trained on."""
        return float(self._logsnr[-1]), float(self._logsnr[1])

    def alpha_bar(self, time: Tensor | float) -> Tensor:
        """abar at time in [0, 1]: float64, shape of time.  Raises ValueError outside [0, 1]."""
        return self.alpha_sigma(time)[0] ** 2

    def logsnr(self, time: Tensor | float) -> Tensor:
        """ln(abar / (1 - abar)) at time, +inf at 0: float64, shape of time.  Raises likewise."""
        return logsnr_of(self.alpha_sigma(time))

    def alpha_sigma(self, time: Tensor | float) -> AlphaSigma:
        """sqrt(abar), sqrt(1 - abar) at time: float64, shape of time.  Raises likewise."""
        time = torch.as_tensor(time, dtype=torch.float64)
        if time.device.type == "cpu" and not bool(((time >= 0) & (time <= 1)).all()):
            raise ValueError(f"time is {_offender(time, (time >= 0) & (time <= 1))}; give [0, 1]")
        return self._family.alpha_sigma(time)

    def alpha_sigma_at(self, t: Tensor) -> AlphaSigma:
        """The pair at timesteps t, int64 in [0, T]: float64, shape and device of t.

        Raises ValueError for another dtype, and on the CPU for a t outside the table.
        """
        self._check_timesteps(t)
        alpha, sigma, _ = _table_on(t.device, self)
        return alpha[t], sigma[t]

    def logsnr_at(self, t: Tensor) -> Tensor:
        """logsnr at timesteps t, as alpha_sigma_at(); +inf at t = 0."""
        self._check_timesteps(t)
        return _table_on(t.device, self)[2][t]

    def time_from_logsnr(self, logsnr: Tensor | float) -> Tensor:
        """The time with this logsnr: float64, shape of logsnr.

        Raises ValueError outside logsnr_range, where a network would not have been trained.
        """
        logsnr = torch.as_tensor(logsnr, dtype=torch.float64)
        low, high = self.logsnr_range
        is_inside = (logsnr >= low - 1e-9) & (logsnr <= high + 1e-9)
        if not bool(is_inside.all()):
            raise ValueError(
                f"logsnr is {_offender(logsnr, is_inside)}, but {self.name} with"
                f" {self.num_timesteps} timesteps goes from {low:.4f} to {high:.4f}"
            )
        return self._family.time(logsnr).clamp(0.0, 1.0)

    def at_logsnr(self, logsnr: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Time, alpha and sigma at this logsnr: float64, shape of logsnr.

        Where the network sees logsnr or flow, alpha and sigma are functions of logsnr alone, of
        the same bits under every schedule. Raises ValueError as time_from_logsnr().
        """
        time = self.time_from_logsnr(logsnr)
        if self.time_input in ("logsnr", "flow"):
            return time, *pair_from_logsnr(torch.as_tensor(logsnr, dtype=torch.float64))
        return time, *self.alpha_sigma(time)

    def network_time(self, time: T, logsnr: Tensor) -> T | Tensor:
        """The network's input for the noise level, 0 at clean data and at most 1.

            time_input time      the time itself
            time_input logsnr    (20 - logsnr) / 40, cut off at 0 and 1
            time_input timestep  t / 1000, so that its sinusoids are those of t, as in DDPM v3
            time_input flow      sigma / (alpha + sigma), the time of the straight path

        The second and the last do not depend on the schedule; the third is over 1 where T is over
        1000.  time, logsnr: of one level, or one a sample.
        """
        if self.time_input == "time":
            return time
        if self.time_input == "timestep":
            return time * (self.num_timesteps / 1000)
        if self.time_input == "flow":
            return torch.sigmoid(-0.5 * logsnr)
        return ((LOGSNR_LIMIT - logsnr) / (2 * LOGSNR_LIMIT)).clamp(0.0, 1.0)

    def _check_timesteps(self, t: Tensor) -> None:
        if t.dtype != torch.int64:
            raise ValueError(f"t is {t.dtype}; give int64 timesteps")
        is_inside = (t >= 0) & (t <= self.num_timesteps)
        if t.device.type == "cpu" and not bool(is_inside.all()):
            raise ValueError(f"t is {_offender(t, is_inside)}; give [0, {self.num_timesteps}]")


@lru_cache(maxsize=16)
def _table_on(device: torch.device, schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and logsnr of all timesteps: copied once, as a step must not wait for a GPU."""
    alpha, sigma = schedule._table
    return alpha.to(device), sigma.to(device), schedule._logsnr.to(device)


def check_choice(what: str, value: str, choices: Collection[str]) -> None:
    """Raises ValueError, naming the choices, unless value is one of them."""
    if value not in choices:
        raise ValueError(f"{what} is {value!r}; give one of {', '.join(choices)}")


def _as_row(values: Tensor | Sequence[float], name: str) -> Tensor:
    """One number for each timestep, float64 (T,); ValueError for anything else."""
    try:
        row = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are no numbers ({error}); give one a timestep") from None
    if row.ndim != 1 or not len(row):
        raise ValueError(f"{name} have shape {tuple(row.shape)}; give one number a timestep")
    return row


def _offender(values: Tensor, is_valid: Tensor) -> float | int:
    """The first value that is not valid."""
    return values[~is_valid].flatten()[0].item()
