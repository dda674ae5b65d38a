"""The noise levels that the reverse process walks, from time 1 to 0: any number, by five spacings.

    trailing   t = T i / n, i = n ... 0, rounded half up                 Lin et al. 2023, Table 2
    linspace   evenly from T to 1, rounded half up, then 0                                  likewise
    logsnr     evenly in logsnr from time 1 to time 1 / T, then 0                Lu et al. 2022
    karras     evenly in (sigma / alpha)^(1 / 7) between the same ends, then 0   Karras et al. 2022
    flow       evenly in sigma / (alpha + sigma), the time of the straight path from noise to image,
               down to 0, or to that of time 1 / T and then 0 where it comes first   Liu et al. 2022

By the last, ddim with eta 0 is Euler's method for the flow of PRED_TYPE flow.

The first two walk whole timesteps, whose coefficients are the schedule's table, and so no more than
T of them. The others walk any times, as many as asked for. Where the schedule ends at zero SNR they
start there all the same, and their grid begins at the timestep after it. They may also walk between
two given levels of logsnr, which are then the same for every schedule that reaches them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm.diffusion import NoiseSchedule, check_choice

SPACINGS: tuple[str, ...] = ("trailing", "linspace", "logsnr", "karras", "flow")
WHOLE: tuple[str, ...] = ("trailing", "linspace")
_RHO = 7
# Keys of draws have 24 bits: 20 for the level, 4 for how often it has been visited.
_LEVEL_BITS = 20
MAX_KEY, MAX_VISITS = 2**_LEVEL_BITS - 1, 2 ** (24 - _LEVEL_BITS)


@dataclass(frozen=True, kw_only=True)
class Level:
    """A noise level of a walk.

    time: in [0, 1].  t: T time, an int where it is a whole timestep.
    alpha, sigma, logsnr: float64, of no dimension (or (N,), a level for each of a batch).
    network_time: what the network sees of the level, as NoiseSchedule.network_time().
    key: of the noise drawn on the way here: t on whole timesteps, else the number of steps left;
        at the k-th return, k << 20 more.
    """

    time: float
    t: float
    alpha: Tensor
    sigma: Tensor
    logsnr: Tensor
    network_time: float
    key: int

    @property
    def is_clean(self) -> bool:
        """True at time 0, where images are."""
        return self.time == 0.0

    def again(self, visit: int) -> "Level":
        """The level at its visit-th return, with noise of its own."""
        return replace(self, key=self.key + (visit << _LEVEL_BITS))


def reverse_timesteps(num_timesteps: int, stride: int) -> list[int]:
    """[T, T - stride, ..., 0]: the timesteps to walk, starting at T whatever the stride.

    Raises ValueError unless 1 <= stride <= T.
    """
    if not 1 <= stride <= num_timesteps:
        raise ValueError(f"stride is {stride}; give one from 1 to {num_timesteps}, the timesteps")
    return [*range(num_timesteps, 0, -stride), 0]


def trailing_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """num_steps + 1 timesteps from T to 0, as even as whole numbers are (Lin et al. 2023, Table 2).

    T i / num_steps, rounded half up.  Raises ValueError unless 1 <= num_steps <= T.
    """
    _check_whole(num_timesteps, num_steps)
    return [
        (2 * num_timesteps * i + num_steps) // (2 * num_steps) for i in range(num_steps, -1, -1)
    ]


def linspace_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """num_steps timesteps from T to 1, both included, and then 0 (Lin et al. 2023, Table 2).

    1 + (T - 1) i / (num_steps - 1), rounded half up; one step goes from T to 0.
    Raises ValueError unless 1 <= num_steps <= T.
    """
    _check_whole(num_timesteps, num_steps)
    if num_steps == 1:
        return [num_timesteps, 0]
    span, parts = num_timesteps - 1, num_steps - 1
    return [1 + (2 * span * i + parts) // (2 * parts) for i in range(parts, -1, -1)] + [0]


def walk_levels(
    schedule: NoiseSchedule,
    *,
    spacing: str = "trailing",
    num_steps: int | None = None,
    reverse_stride: int = 1,
    between: tuple[float, float] | None = None,
) -> list[Level]:
    """The levels of a walk, num_steps + 1 of them; num_steps null: every reverse_stride timesteps.

    between: logsnr of the first level and of the last before clean data, for logsnr, karras, flow;
        None: those of the schedule, which differ from one to the next.
    Raises ValueError for an unknown spacing, for a number of steps that it cannot take and for
    levels that the schedule does not reach.
    """
    check_choice("spacing", spacing, SPACINGS)
    if num_steps is not None and reverse_stride != 1:
        raise ValueError("both num_steps and reverse_stride are given; give one of them")
    if num_steps is None and spacing != "trailing":
        raise ValueError(f"spacing is {spacing}; give num_steps with it, not a stride")
    if between is not None and spacing in WHOLE:
        raise ValueError(f"spacing is {spacing}, of whole timesteps; give logsnr with between")
    if num_steps is None:
        return whole_levels(schedule, reverse_timesteps(schedule.num_timesteps, reverse_stride))
    if spacing in WHOLE:
        timesteps = trailing_timesteps if spacing == "trailing" else linspace_timesteps
        return whole_levels(schedule, timesteps(schedule.num_timesteps, num_steps))
    if between is not None:
        return _levels_between(schedule, spacing, num_steps, *between)
    return _continuous_levels(schedule, spacing, num_steps)


def whole_levels(schedule: NoiseSchedule, timesteps: Sequence[int]) -> list[Level]:
    """Timesteps as levels, with the coefficients of the schedule's table."""
    return [_whole(schedule, t, key=t) for t in timesteps]


def below(walk: Sequence[Level], time: float) -> list[Level]:
    """The part of a walk at or below `time`.  Raises ValueError where no step is left of it."""
    rest = [level for level in walk if level.time <= time + 1e-9]
    if not 0.0 < time <= 1.0 or len(rest) < 2:
        raise ValueError(
            f"the start is at time {time}; give one from {walk[-2].time:.4g} to 1, the times of "
            "the steps"
        )
    return rest


def _continuous_levels(schedule: NoiseSchedule, spacing: str, num_steps: int) -> list[Level]:
    num_timesteps = schedule.num_timesteps
    if not 1 <= num_steps <= MAX_KEY:
        raise ValueError(f"num_steps is {num_steps}; give one from 1 to {MAX_KEY}")
    low, high = schedule.logsnr_range
    # Zero SNR has no finite place on the grid: it is a step of its own.
    has_own_step = low == -math.inf
    first = num_timesteps - 1 if has_own_step else num_timesteps
    count = num_steps - has_own_step
    last = high
    low = float(schedule.logsnr_at(torch.tensor(first)))
    if count > 1 and not low < high:
        raise ValueError(
            f"spacing is {spacing} but {num_timesteps} timesteps have a single level to space; "
            f"give num_steps {1 + has_own_step}, or trailing"
        )
    if spacing == "flow" and count > 1:
        last = min(high, _logsnr_of_flow(_flow_of(low) / count))
    inside = [
        _between(schedule, logsnr, key=count - i)
        for i, logsnr in enumerate(_grid(spacing, low, last, count)[1:-1], start=1)
    ]
    start = [_whole(schedule, num_timesteps, key=num_steps)] if has_own_step else []
    if count > 0:
        start.append(_whole(schedule, first, key=count))
    end = [_whole(schedule, 1, key=1) if last == high else _between(schedule, last, key=1)]
    end = end if count > 1 else []
    return [*start, *inside, *end, _whole(schedule, 0, key=0)]


def _levels_between(
    schedule: NoiseSchedule, spacing: str, num_steps: int, low: float, high: float
) -> list[Level]:
    """num_steps levels from logsnr low to high, then clean data; one step starts at low."""
    if not low < high or not 1 <= num_steps <= MAX_KEY:
        raise ValueError(
            f"{num_steps} steps between logsnr {low} and {high}; give at least 1 step, and the "
            "lower logsnr first"
        )
    grid = _grid(spacing, low, high, num_steps)
    walked = [_between(schedule, logsnr, key=num_steps - i) for i, logsnr in enumerate(grid)]
    return [*walked, _whole(schedule, 0, key=0)]


def _grid(spacing: str, low: float, high: float, count: int) -> list[float]:
    """count log-SNRs from low to high, both included."""
    if count < 2:
        return [low] * count
    if spacing == "logsnr":
        return torch.linspace(low, high, count, dtype=torch.float64).tolist()
    if spacing == "flow":
        even = torch.linspace(_flow_of(low), _flow_of(high), count, dtype=torch.float64)
        return [_logsnr_of_flow(time) for time in even.tolist()]
    # sigma / alpha = exp(-logsnr / 2)
    first, last = (math.exp(-0.5 * end / _RHO) for end in (low, high))
    even = torch.linspace(first, last, count, dtype=torch.float64)
    return (-2.0 * _RHO * torch.log(even)).tolist()


def _flow_of(logsnr: float) -> float:
    """sigma / (alpha + sigma), where snr = ((1 - time) / time)^2."""
    return 1 / (1 + math.exp(0.5 * logsnr))


def _logsnr_of_flow(time: float) -> float:
    return 2 * (math.log1p(-time) - math.log(time))


def _whole(schedule: NoiseSchedule, t: int, key: int) -> Level:
    alpha, sigma = schedule.alpha_sigma_at(torch.tensor(t))
    time, logsnr = t / schedule.num_timesteps, schedule.logsnr_at(torch.tensor(t))
    return Level(
        time=time,
        t=t,
        alpha=alpha,
        sigma=sigma,
        logsnr=logsnr,
        network_time=float(schedule.network_time(time, logsnr)),
        key=key,
    )


def _between(schedule: NoiseSchedule, logsnr: float, key: int) -> Level:
    time, alpha, sigma = schedule.at_logsnr(logsnr)
    reached = 2 * (torch.log(alpha) - torch.log(sigma))
    return Level(
        time=float(time),
        t=float(time) * schedule.num_timesteps,
        alpha=alpha,
        sigma=sigma,
        logsnr=reached,
        network_time=float(schedule.network_time(time, reached)),
        key=key,
    )


def _check_whole(num_timesteps: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"num_steps is {num_steps}; give one from 1 to {num_timesteps}, the timesteps"
        )
