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

examples:
  python -m experiments forecast configs/digits.yaml
  python -m experiments forecast configs/digits.yaml TRAINING.NETWORK.SCHEDULER=linear --dry-run

Writes forecast.json and forecast.png into OUTPUT_DIR/forecasts/NAME OF THE FILE/.
"""

import argparse
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.data import Dataset, packing
from ddpm.diffusion import SCHEDULES, NoiseSchedule
from ddpm.errors import InputError
from ddpm.runs import storage
from ddpm.sampling import SPACINGS, levels, open_data
from experiments.gaussian_walk import WITHOUT_MEMORY, GaussianDraws, GaussianFit, drawn, flow_limit

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


def _grey(fit: GaussianFit, found: GaussianDraws) -> float:
    """The distance from the data as the root mean square over an image's values, grey levels."""
    return GREY * found.distance(fit) / math.sqrt(len(fit.pixel_mean))


NUMBERS, PICTURE = "forecast.json", "forecast.png"


def main(argv: list[str]) -> int:
    """Reads the data, prints, writes; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments forecast",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=value", help="changed keys")
    parser.add_argument("--dry-run", action="store_true", help="check, and say what is written")
    args = parser.parse_intermixed_args(argv)
    config = configuration.load(args.config, args.overrides)
    if problems := packing.source_problems(config):
        raise InputError(problems)
    folder = Path(config.TRAINING.OUTPUT_DIR) / "forecasts" / args.config.stem
    if args.dry_run:
        print(f"would write {folder / NUMBERS} and {PICTURE}")
        return 0
    found = forecast(config, open_data(config, packing.prepare(config).folder))
    console = Console()
    show(found, console)
    storage.make_folder(folder)
    storage.write_json(folder / NUMBERS, found.facts())
    storage.write_bytes(folder / PICTURE, picture(found))
    console.print(f"written: {folder / NUMBERS}, {PICTURE}", soft_wrap=True, highlight=False)
    return 0


def show(found: Forecast, console: Console) -> None:
    """Both tables, and what they say."""
    console.print(_walks_table(found))
    console.print(_schedules_table(found))
    for sentence in sentences(found):
        console.print(sentence, markup=False, highlight=False)


def sentences(found: Forecast) -> list[str]:
    """What the numbers say, no more."""
    own, name = found.own, found.schedule.name
    low, middle, high = found.band
    lines = [_of_choice(found)] if found.chosen else []
    affordable = [walk for walk in found.walks if walk.calls <= 50]
    best = min(affordable, key=lambda walk: walk.error)
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
            f"levels, whatever the number of steps. TRAINING.NETWORK.ZERO_TERMINAL_SNR=true "
            "removes it."
        )
    lines.append(
        f"From log SNR {low:.1f} to {high:.1f} the data's variance is resolved (5 to 95 %, half of "
        f"it at {middle:.1f}); the middle of {name} is at {own.middle:.1f}. Its centre there would "
        f"be TRAINING.NETWORK.LOGSNR_SHIFT={found.schedule.logsnr_shift + own.suggested:.1f}, a "
        f"change of {own.suggested:+.1f}: {_of_shift(found)}."
    )
    lines.append(
        f"All this is of the Gaussian fitted to {found.num_images:,} training images of "
        f"{found.data}, and of its ideal denoiser: the least that steps and schedule cost. A "
        "network's own error comes on top; what of the data is not Gaussian is not seen."
    )
    return lines


def _of_choice(found: Forecast) -> str:
    walk = found.chosen
    assert walk is not None
    enough = [
        one.num_steps
        for one in found.walks
        if (one.schedule, one.sampler, one.spacing) == (walk.schedule, walk.sampler, walk.spacing)
        and one.eta == walk.eta
        and one.error < 1
    ]
    reach = f"{min(enough)} steps bring it" if enough else f"not even {STEPS[-1]} steps bring it"
    return (
        f"As configured ({walk.schedule}, {walk.method}, {walk.num_steps} steps) samples miss the "
        f"data's Gaussian by {walk.error:.2f} grey levels; {reach} below 1."
    )


def _of_shift(found: Forecast) -> str:
    """What the suggested shift and the best one do to the error of one walk."""
    by_shift, suggested = dict(found.shifts), found.own.suggested
    best = min(by_shift, key=lambda shift: by_shift[shift])
    walk = found.by_shift
    return (
        f"with it {walk.num_steps} steps of {walk.method} miss by {by_shift[suggested]:.2f} grey "
        f"levels instead of {by_shift[0.0]:.2f}; least, {by_shift[best]:.2f}, is a change of "
        f"{best:+.1f}"
    )


def _walks_table(found: Forecast) -> Table:
    table = _table(
        f"{found.schedule.name}: error of the sampler, grey levels (rms), by number of steps",
        "sampler",
        "spacing",
        *(str(steps) for steps in STEPS),
    )
    own = {
        (walk.sampler, walk.spacing, walk.num_steps): walk
        for walk in found.walks
        if walk.schedule == found.schedule.name
    }
    for sampler, _ in SAMPLERS:
        for spacing in SPACINGS:
            row = [own.get((sampler, spacing, steps)) for steps in STEPS]
            table.add_row(sampler, spacing, *(f"{one.error:.2f}" if one else "–" for one in row))
    table.caption = "a step of heun calls the network twice"
    return table


def _schedules_table(found: Forecast) -> Table:
    walk = found.by_shift
    table = _table(
        f"every schedule: its end, its middle, the error of {walk.method}, by number of steps",
        *("schedule", "signal %", "bright", "middle", "shift"),
        *(str(steps) for steps in STEPS[1:]),
    )
    for one in found.terminals:
        errors = {
            other.num_steps: other.error
            for other in found.walks
            if other.schedule == one.schedule
            and (other.sampler, other.spacing) == (walk.sampler, walk.spacing)
        }
        table.add_row(
            one.schedule,
            f"{100 * one.signal:.2g}",
            f"{one.brightness:+.2f}",
            f"{one.middle:.1f}",
            f"{one.suggested:+.1f}",
            *(f"{errors[steps]:.2f}" if steps in errors else "–" for steps in STEPS[1:]),
        )
    table.caption = (
        "signal: left at t = T; bright: what that adds to the brightness of samples, grey levels; "
        "middle: log SNR at time 1/2; shift: what to add to it"
    )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in headings:
        is_word = heading in ("schedule", "sampler", "spacing")
        table.add_column(heading, justify="left" if is_word else "right", no_wrap=True)
    return table


def picture(found: Forecast) -> bytes:
    """PNG: error over network calls of the configured schedule; band and schedules over log SNR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    own = [walk for walk in found.walks if walk.schedule == found.schedule.name]
    for colour, (sampler, _) in enumerate(SAMPLERS):
        for style, spacing in zip(("-", "--", ":", "-."), SPACINGS, strict=True):
            line = [walk for walk in own if (walk.sampler, walk.spacing) == (sampler, spacing)]
            left.loglog(*_curve(line), style, color=f"C{colour}", label=f"{sampler}, {spacing}")
    left.set(xlabel="network calls an image", ylabel="error, grey levels (rms)")
    left.set_title(f"{found.data}, {found.schedule.name}: what the sampler costs")
    left.legend(fontsize=6, ncols=2)
    right.axvspan(found.band[0], found.band[2], color="0.9", label="variance is resolved, 5-95 %")
    time = torch.linspace(0.002, 1, 500, dtype=torch.float64)
    pairs = [(found.schedule, "as configured"), (shifted(found.schedule, found.own.suggested), "")]
    for schedule, told in pairs:
        label = f"{schedule.name} {told or f'shifted by {found.own.suggested:+.1f}'}"
        right.plot(_finite(schedule, time), time, label=label)
    right.axhline(0.5, color="0.6", lw=0.5)
    right.set(xlabel="log SNR", ylabel="time", xlim=(-16, 16))
    right.set_title("where the schedule is, and where the data are")
    right.legend(fontsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _curve(walks: Sequence[Walk]) -> tuple[list[int], list[float]]:
    return [walk.calls for walk in walks], [walk.error for walk in walks]


def _finite(schedule: NoiseSchedule, time: torch.Tensor) -> list[float]:
    """The schedule's log SNR over time, inside the picture."""
    return schedule.logsnr(time).clamp(-30, 30).tolist()
