"""Forecast before training: the samplers' own error, terminal-SNR bias, a schedule's shift.

The data's mean and covariance are fitted, and the ideal denoiser of that Gaussian is sampled by the
project's own samplers (gaussian_walk.py): what is left is the cost of steps and schedule, whatever
the network. A trained network's error comes on top; what of the data is not Gaussian is not seen.

Errors are 2-Wasserstein distances between the samples' Gaussian and the data's, as the root mean
square over the values of an image, in grey levels of 255.

The shift: the best linear estimator resolves the share

    F(logsnr) = sum_i c_i sigmoid(logsnr + ln c_i) / sum_i c_i        of the data's variance,

direction i at logsnr = -ln c_i, where its own SNR is 1. The band from 5 to 95 % is where there is
something to learn and to decide; the suggested shift puts the schedule's middle, logsnr(1/2), at
the band's centre. Images of twice the side have eigenvalues 4 times as large, and so a shift lower
by 2 ln 2: the rule of Hoogeboom et al. 2023, section 3.1, with the data's own offset.

examples:
  python -m experiments forecast configs/digits.yaml
  python -m experiments forecast configs/digits.yaml TRAINING.NETWORK.SCHEDULER=linear --dry-run

Writes forecast.json and forecast.png into OUTPUT_DIR/forecasts/NAME OF THE FILE/.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.data import Dataset, open_data, preparing
from ddpm.diffusion import SCHEDULES, NoiseSchedule
from ddpm.errors import InputError
from ddpm.runs import storage
from ddpm.sampling import SAMPLERS, walk_levels
from experiments.claims import new_figure, png
from experiments.gaussian_walk import WITHOUT_MEMORY, GaussianDraws, GaussianFit, drawn, flow_limit

NUMBERS, PICTURE = "forecast.json", "forecast.png"
GREY = 127.5  # grey levels of 255 in a unit of [-1, 1]
STEPS, TRIED = (5, 10, 20, 50, 100), ("ddim", "ddpm", "heun")  # ddim with eta 0
SPACINGS = ("trailing", "linspace", "logsnr", "karras")
BAND = (0.05, 0.5, 0.95)
# A covariance of D x D is made up to this D; beyond it, of so many images.
_MOST_VALUES, _FEW_IMAGES, _MOST_IMAGES = 4096, 2048, 10_000
_SHIFTS = tuple(0.5 * k for k in range(-16, 17))

Band = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One way to sample, and its error in grey levels.  eta: of ddim."""

    schedule: str
    spacing: str
    sampler: str
    eta: float = 0.0
    num_steps: int
    error: float = math.nan

    @property
    def calls(self) -> int:
        """Network calls an image."""
        return 1 + (self.num_steps - 1) * SAMPLERS[self.sampler].calls

    @property
    def method(self) -> str:
        """Sampler and spacing in words."""
        eta = f" eta {self.eta:g}" if self.eta else ""
        return f"{self.sampler}{eta}, {self.spacing}"

    def differs_in_steps_alone(self, other: "Walk") -> bool:
        """True where both are the same but for the number of steps."""
        return replace(self, num_steps=1, error=0) == replace(other, num_steps=1, error=0)


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """The signal a schedule leaves at t = T, and its effect in the limit of many steps.

    signal: sqrt(abar_T).  brightness: shift of the mean pixel, error: of the whole, grey levels.
    middle: logsnr(1/2).  suggested: the shift to add to its logsnr.
    """

    schedule: str
    signal: float
    brightness: float
    error: float
    middle: float
    suggested: float


@dataclass(frozen=True, kw_only=True)
class SamplingForecast:
    """All that is printed.

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
    band: Band
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


def forecast(config: Config, data: Dataset) -> SamplingForecast:
    """The forecast of a configuration on its data. Some seconds."""
    num_values = math.prod(data.image_shape)
    limit = _MOST_IMAGES if num_values <= _MOST_VALUES else _FEW_IMAGES
    ids = data.order(torch.arange(min(limit, data.num_train))).sort().values
    fit = GaussianFit.of(data.read(ids).images.flatten(1))
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    band, schedules = resolved_band(fit.variance), list(_schedules(schedule))
    walks = [walk for other in schedules for walk in _walks(fit, other)]
    chosen = _chosen(config, fit, schedule)
    by_shift = chosen or max(
        (one for one in walks if one.schedule == schedule.name and one.num_steps <= 50),
        key=lambda one: (one.sampler == "ddim", one.spacing == "trailing", one.num_steps),
    )
    return SamplingForecast(
        data=config.DATASET.NAME,
        num_images=len(ids),
        num_values=num_values,
        schedule=schedule,
        chosen=chosen,
        walks=tuple(walks),
        terminals=tuple(_terminal(fit, other, band) for other in schedules),
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


def resolved_band(variance: Tensor) -> Band:
    """The logsnr where F is 5 %, 50 % and 95 %."""
    grid = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    places = torch.searchsorted(resolved_share(variance, grid), torch.tensor(BAND).double())
    low, middle, high = grid[places].tolist()
    return low, middle, high


def suggested_shift(schedule: NoiseSchedule, band: Band) -> float:
    """The shift that puts the middle of the schedule's logsnr at the centre of the band."""
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
    """All ways to sample with the schedule."""
    for spacing, steps, sampler in itertools.product(SPACINGS, STEPS, TRIED):
        wanted = Walk(schedule=schedule.name, spacing=spacing, sampler=sampler, num_steps=steps)
        try:
            yield _walk(fit, schedule, wanted)
        except ValueError:  # more steps than timesteps, or too few timesteps to space
            continue


def _chosen(config: Config, fit: GaussianFit, schedule: NoiseSchedule) -> Walk | None:
    """The walk of IMAGE_GENERATION, where it has a closed form."""
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
    path = walk_levels(schedule, spacing=wanted.spacing, num_steps=wanted.num_steps)
    found = drawn(fit, path, sampler=wanted.sampler, eta=wanted.eta)
    return replace(wanted, error=_grey(fit, found))


def _terminal(fit: GaussianFit, schedule: NoiseSchedule, band: Band) -> Terminal:
    first = walk_levels(schedule, num_steps=1)[0]
    limit = flow_limit(fit, first)
    return Terminal(
        schedule=schedule.name,
        signal=float(first.alpha),
        brightness=GREY * float((limit.mean - fit.mean) @ fit.brightness),
        error=_grey(fit, limit),
        middle=float(schedule.logsnr(0.5)),
        suggested=suggested_shift(schedule, band),
    )


def _grey(fit: GaussianFit, found: GaussianDraws) -> float:
    """The distance from the data as the root mean square over an image's values, grey levels."""
    return GREY * found.distance(fit) / math.sqrt(len(fit.pixel_mean))


def sentences(found: SamplingForecast) -> list[str]:
    """The numbers in words, no more than they say."""
    own, name, walk = found.own, found.schedule.name, found.chosen
    low, middle, high = found.band
    lines = []
    if walk is not None:
        alike = [one for one in found.walks if one.differs_in_steps_alone(walk)]
        enough = [one.num_steps for one in alike if one.error < 1]
        bring = f"{min(enough)} steps bring" if enough else f"not even {STEPS[-1]} steps bring"
        lines.append(
            f"As configured ({walk.schedule}, {walk.method}, {walk.num_steps} steps) samples miss "
            f"the data's Gaussian by {walk.error:.2f} grey levels; {bring} it below 1."
        )
    best = min((one for one in found.walks if one.calls <= 50), key=lambda one: one.error)
    lines.append(
        f"With at most 50 network calls an image the least error here is {best.error:.2f} grey "
        f"levels: {best.schedule}, {best.method}, {best.num_steps} steps."
    )
    if own.signal == 0:
        lines.append(f"{name} ends at zero SNR: nothing of the signal is left to bias the mean.")
    else:
        lines.append(
            f"{name} leaves {100 * own.signal:.3g} % of the signal at t = T, which samples begun "
            f"in pure noise lack: their mean brightness is off by {own.brightness:+.2f} grey "
            "levels, whatever the number of steps. TRAINING.NETWORK.ZERO_TERMINAL_SNR=true "
            "removes it."
        )
    errors, by_shift = dict(found.shifts), found.by_shift
    least = min(errors, key=lambda shift: errors[shift])
    lines.append(
        f"From log SNR {low:.1f} to {high:.1f} the data's variance is resolved (5 to 95 %, half of "
        f"it at {middle:.1f}); the middle of {name} is at {own.middle:.1f}. Its centre there would "
        f"be TRAINING.NETWORK.LOGSNR_SHIFT={found.schedule.logsnr_shift + own.suggested:.1f}, a "
        f"change of {own.suggested:+.1f}: with it {by_shift.num_steps} steps of {by_shift.method} "
        f"miss by {errors[own.suggested]:.2f} grey levels instead of {errors[0.0]:.2f}; least, "
        f"{errors[least]:.2f}, is a change of {least:+.1f}."
    )
    lines.append(
        f"All this is of the Gaussian fitted to {found.num_images:,} training images of "
        f"{found.data}, and of its ideal denoiser: the least that steps and schedule cost. A "
        "network's own error comes on top; what of the data is not Gaussian is not seen."
    )
    return lines


def tables(found: SamplingForecast) -> tuple[Table, Table]:
    """Error by sampler, spacing and steps of the own schedule; every schedule beside it."""
    one = _table(
        f"{found.schedule.name}: error of the sampler, grey levels (rms), by number of steps",
        ("sampler", "spacing"),
        *map(str, STEPS),
    )
    for sampler, spacing in itertools.product(TRIED, SPACINGS):
        walk = Walk(schedule=found.schedule.name, spacing=spacing, sampler=sampler, num_steps=1)
        one.add_row(sampler, spacing, *_errors(found, walk, STEPS))
    one.caption = "a step of heun calls the network twice"
    every = _table(
        f"every schedule: its end, its middle, the error of {found.by_shift.method}, by number of "
        "steps",
        ("schedule",),
        *("signal %", "bright", "middle", "shift", *map(str, STEPS[1:])),
    )
    for end in found.terminals:
        walk = replace(found.by_shift, schedule=end.schedule, eta=0.0)
        every.add_row(
            end.schedule,
            f"{100 * end.signal:.2g}",
            f"{end.brightness:+.2f}",
            f"{end.middle:.1f}",
            f"{end.suggested:+.1f}",
            *_errors(found, walk, STEPS[1:]),
        )
    every.caption = (
        "signal: left at t = T; bright: what that adds to the brightness of samples, grey levels; "
        "middle: log SNR at time 1/2; shift: what to add to it"
    )
    return one, every


def _errors(found: SamplingForecast, walk: Walk, steps: tuple[int, ...]) -> list[str]:
    alike = (one for one in found.walks if one.differs_in_steps_alone(walk))
    errors = {one.num_steps: f"{one.error:.2f}" for one in alike}
    return [errors.get(count, "–") for count in steps]


def _table(title: str, words: tuple[str, ...], *numbers: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    for heading in (*words, *numbers):
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    return table


def picture(found: SamplingForecast) -> bytes:
    """PNG: error over network calls of the configured schedule; band and schedules over log SNR."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    own = [walk for walk in found.walks if walk.schedule == found.schedule.name]
    for colour, sampler in enumerate(TRIED):
        for style, spacing in zip(("-", "--", ":", "-."), SPACINGS, strict=True):
            line = [walk for walk in own if (walk.sampler, walk.spacing) == (sampler, spacing)]
            calls, errors = [walk.calls for walk in line], [walk.error for walk in line]
            left.loglog(calls, errors, style, color=f"C{colour}", label=f"{sampler}, {spacing}")
    left.set(xlabel="network calls an image", ylabel="error, grey levels (rms)")
    left.set_title(f"{found.data}, {found.schedule.name}: what the sampler costs")
    left.legend(fontsize=6, ncols=2)
    right.axvspan(found.band[0], found.band[2], color="0.9", label="variance is resolved, 5-95 %")
    time, suggested = torch.linspace(0.002, 1, 500, dtype=torch.float64), found.own.suggested
    for shift, words in ((0.0, "as configured"), (suggested, f"shifted by {suggested:+.1f}")):
        logsnr = shifted(found.schedule, shift).logsnr(time).clamp(-30, 30)
        right.plot(logsnr, time, label=f"{found.schedule.name} {words}")
    right.axhline(0.5, color="0.6", lw=0.5)
    right.set(xlabel="log SNR", ylabel="time", xlim=(-16, 16))
    right.set_title("where the schedule is, and where the data are")
    right.legend(fontsize=7)
    return png(figure)


def main(argv: list[str]) -> int:
    """Reads the data, prints, writes; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments forecast",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=value", help="changed keys")
    parser.add_argument("--dry-run", action="store_true", help="check, and say what is written")
    args = parser.parse_intermixed_args(argv)
    config = configuration.load(args.config, args.overrides)
    if problems := preparing.source_problems(config):
        raise InputError(problems)
    folder = Path(config.TRAINING.OUTPUT_DIR) / "forecasts" / args.config.stem
    if args.dry_run:
        print(f"would write {folder / NUMBERS} and {PICTURE}")
        return 0
    found = forecast(config, open_data(config, preparing.prepare(config).folder))
    console = Console()
    console.print(*tables(found), sep="\n")
    for sentence in sentences(found):
        console.print(sentence, markup=False, highlight=False)
    storage.make_folder(folder)
    storage.write_json(folder / NUMBERS, found.facts())
    storage.write_bytes(folder / PICTURE, picture(found))
    console.print(f"written: {folder / NUMBERS}, {PICTURE}", soft_wrap=True, highlight=False)
    return 0
