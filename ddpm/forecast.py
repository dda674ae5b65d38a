"""What is known before training: the samplers' own error, terminal-SNR bias, a schedule's shift.

The data's mean and covariance are fitted, and the ideal denoiser of that Gaussian is walked by the
project's own samplers (gaussian_walk.py): what is left is what steps and schedule cost, whatever
the network. A trained network's error comes on top; what of the data is not Gaussian is not seen.

Errors are 2-Wasserstein distances between what is drawn and the data's Gaussian, as the root mean
square over the values of an image, in grey levels of 255.

The shift: the best linear estimator resolves the share

    F(logsnr) = sum_i c_i sigmoid(logsnr + ln c_i) / sum_i c_i        of the data's variance,

direction i at logsnr = -ln c_i, where its own SNR is 1. The band from 5 to 95 % is where there is
something to learn and to decide; the suggested shift puts the schedule's middle, logsnr(1/2), at
the band's centre. Images of twice the side have eigenvalues 4 times as large, and so a shift lower
by 2 ln 2: the rule of Hoogeboom et al. 2023, section 3.1, with the data's own offset.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.gaussian_walk import WITHOUT_MEMORY, Drawn, GaussianFit, drawn, flow_limit
from ddpm.schedule import SCHEDULES, NoiseSchedule
from ddpm.spacing import SPACINGS, levels

GREY = 127.5  # grey levels of 255 in a unit of [-1, 1]
STEPS = (5, 10, 20, 50, 100)
SAMPLERS = (("ddim", 0.0), ("ddpm", 0.0), ("heun", 0.0))
BAND = (0.05, 0.95)
# A covariance of D x D is made up to this D; beyond it, of so many images.
_MOST_VALUES, _FEW_IMAGES, _MOST_IMAGES = 4096, 2048, 10_000
_SHIFTS = tuple(0.5 * k for k in range(-16, 17))


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One way to draw, and its error in grey levels.  eta: of ddim."""

    schedule: str
    spacing: str
    sampler: str
    eta: float
    num_steps: int
    error: float = math.nan

    @property
    def calls(self) -> int:
        """Of the network, an image: heun asks twice a step, but for the last."""
        return 2 * self.num_steps - 1 if self.sampler == "heun" else self.num_steps

    @property
    def method(self) -> str:
        """Sampler and spacing in words."""
        eta = f" eta {self.eta:g}" if self.eta else ""
        return f"{self.sampler}{eta}, {self.spacing}"


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What a schedule leaves of the signal at t = T, and what that does in the limit of many steps.

    signal: sqrt(abar_T).  brightness: shift of the mean pixel, error: of the whole, grey levels.
    middle: logsnr(1/2).  suggested: what should be added to its logsnr.
    """

    schedule: str
    signal: float
    brightness: float
    error: float
    middle: float
    suggested: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Everything that is printed.

    chosen: the configuration's own walk; None where its sampler has no closed form.  band: logsnr
    of 5 %, 50 % and 95 % resolved.  shifts: error of `by_shift`'s walk at each added shift.
    """

    data: str
    num_images: int
    num_values: int
    schedule: NoiseSchedule
    chosen: Walk | None
    walks: tuple[Walk, ...]
    terminals: tuple[Terminal, ...]
    band: tuple[float, float, float]
    by_shift: Walk
    shifts: tuple[tuple[float, float], ...]

    @property
    def own(self) -> Terminal:
        """The configuration's own schedule."""
        return next(one for one in self.terminals if one.schedule == self.schedule.name)

    def facts(self) -> dict[str, object]:
        """All of it as JSON."""
        return {
            "format": 1,
            "data": self.data,
            "images_fitted": self.num_images,
            "values_of_an_image": self.num_values,
            "schedule": self.schedule.name,
            "timesteps": self.schedule.num_timesteps,
            "logsnr_band": dict(zip(("5%", "50%", "95%"), self.band, strict=True)),
            "chosen": self.chosen and asdict(self.chosen),
            "walks": [asdict(walk) for walk in self.walks],
            "terminals": [asdict(one) for one in self.terminals],
            "shifts": {"of": asdict(self.by_shift), "error": [list(pair) for pair in self.shifts]},
        }


def forecast(config: Config, data: Dataset) -> Forecast:
    """Of a configuration on its data. Some seconds."""
    num_values = math.prod(data.image_shape)
    limit = _MOST_IMAGES if num_values <= _MOST_VALUES else _FEW_IMAGES
    ids = data.order(torch.arange(min(limit, data.num_train))).sort().values
    fit = GaussianFit.of(data.read(ids).images.flatten(1))
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    band = resolved_band(fit.variance)
    walks = [walk for other in _schedules(schedule) for walk in _walks(fit, other)]
    chosen = _chosen(config, fit, schedule)
    by_shift = chosen or max(
        (one for one in walks if one.schedule == schedule.name and one.num_steps <= 50),
        key=lambda one: (one.sampler == "ddim", one.spacing == "trailing", one.num_steps),
    )
    return Forecast(
        data=config.DATASET.NAME,
        num_images=len(ids),
        num_values=num_values,
        schedule=schedule,
        chosen=chosen,
        walks=tuple(walks),
        terminals=tuple(_terminal(fit, other, band) for other in _schedules(schedule)),
        band=band,
        by_shift=by_shift,
        shifts=tuple(
            (shift, _walk(fit, shifted(schedule, shift), by_shift).error)
            for shift in sorted({*_SHIFTS, suggested_shift(schedule, band)})
        ),
    )


def resolved_share(variance: Tensor, logsnr: Tensor) -> Tensor:
    """F: the share of the variance that the best linear estimator resolves, shape of logsnr."""
    seen = variance[variance > 0]
    return torch.sigmoid(logsnr[..., None] + seen.log()) @ seen / seen.sum()


def resolved_band(variance: Tensor) -> tuple[float, float, float]:
    """The logsnr where F is 5 %, 50 % and 95 %."""
    grid = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    share = resolved_share(variance, grid)
    low, middle, high = (
        float(grid[torch.searchsorted(share, torch.tensor(part, dtype=share.dtype))])
        for part in (BAND[0], 0.5, BAND[1])
    )
    return low, middle, high


def suggested_shift(schedule: NoiseSchedule, band: tuple[float, float, float]) -> float:
    """What added to the schedule's logsnr puts its middle at the centre of the band."""
    return (band[0] + band[2]) / 2 - float(schedule.logsnr(0.5))


def shifted(schedule: NoiseSchedule, shift: float) -> NoiseSchedule:
    """The schedule with `shift` more."""
    return replace(schedule, logsnr_shift=schedule.logsnr_shift + shift)


def _schedules(own: NoiseSchedule) -> Iterator[NoiseSchedule]:
    """Its own and the others with its timesteps, shift and end, where those are possible."""
    for name in (own.name, *(name for name in SCHEDULES if name != own.name)):
        try:
            yield replace(own, name=name)
        except ValueError:  # iddpm_linear has no 20 timesteps
            continue


def _walks(fit: GaussianFit, schedule: NoiseSchedule) -> Iterator[Walk]:
    """All that the schedule can be walked by."""
    for spacing, num_steps, (sampler, eta) in itertools.product(SPACINGS, STEPS, SAMPLERS):
        wanted = Walk(
            schedule=schedule.name, spacing=spacing, sampler=sampler, eta=eta, num_steps=num_steps
        )
        try:
            yield _walk(fit, schedule, wanted)
        except ValueError:  # more steps than timesteps, or too few timesteps to space
            continue


def _chosen(config: Config, fit: GaussianFit, schedule: NoiseSchedule) -> Walk | None:
    """The walk that IMAGE_GENERATION asks for, where it has a closed form."""
    options = config.IMAGE_GENERATION
    if options.SAMPLER not in WITHOUT_MEMORY:
        return None
    steps = configuration.sampling_steps(options, schedule.num_timesteps)
    stride = steps.get("reverse_stride", 1)
    wanted = Walk(
        schedule=schedule.name,
        spacing=options.SPACING,
        sampler=options.SAMPLER,
        eta=options.DDIM_ETA if options.SAMPLER == "ddim" else 0.0,
        num_steps=steps.get("num_steps", -(-schedule.num_timesteps // stride)),
    )
    return _walk(fit, schedule, wanted)


def _walk(fit: GaussianFit, schedule: NoiseSchedule, wanted: Walk) -> Walk:
    """The same walk on this schedule, its error filled in."""
    path = levels(schedule, spacing=wanted.spacing, num_steps=wanted.num_steps)
    return replace(
        wanted, error=_grey(fit, drawn(fit, path, sampler=wanted.sampler, eta=wanted.eta))
    )


def _terminal(
    fit: GaussianFit, schedule: NoiseSchedule, band: tuple[float, float, float]
) -> Terminal:
    first = levels(schedule, num_steps=1)[0]
    limit = flow_limit(fit, first)
    return Terminal(
        schedule=schedule.name,
        signal=float(first.alpha),
        brightness=GREY * float((limit.mean - fit.mean) @ fit.brightness),
        error=_grey(fit, limit),
        middle=float(schedule.logsnr(0.5)),
        suggested=suggested_shift(schedule, band),
    )


def _grey(fit: GaussianFit, found: Drawn) -> float:
    """The distance from the data as the root mean square over an image's values, grey levels."""
    return GREY * found.distance(fit) / math.sqrt(len(fit.pixel_mean))
