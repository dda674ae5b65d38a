"""The forecast of a configuration for people: tables, sentences, a picture; forecast.py's numbers.

Written to OUTPUT_DIR/forecasts/{name of the file}/: forecast.json and forecast.png.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ddpm import config as configuration
from ddpm import durable, shards
from ddpm.errors import InputError
from ddpm.forecast import SAMPLERS, STEPS, Forecast, Walk, forecast, shifted
from ddpm.schedule import NoiseSchedule
from ddpm.spacing import SPACINGS
from ddpm.starting import open_data

NUMBERS, PICTURE = "forecast.json", "forecast.png"


def predict(words: Sequence[str], *, dry_run: bool = False) -> int:
    """`--predict CONFIG [SECTION.KEY=value ...]`: reads the data, prints, writes; 0.

    dry_run: check, and say what would be written.
    """
    path, overrides = Path(words[0]), words[1:]
    config = configuration.load(path, overrides)
    if problems := shards.source_problems(config):
        raise InputError(problems)
    folder = Path(config.TRAINING.OUTPUT_DIR) / "forecasts" / path.stem
    if dry_run:
        print(f"would write {folder / NUMBERS} and {PICTURE}")
        return 0
    found = forecast(config, open_data(config, shards.prepare(config).folder))
    console = Console()
    show(found, console)
    durable.make_folder(folder)
    durable.write_json(folder / NUMBERS, found.facts())
    durable.write_bytes(folder / PICTURE, picture(found))
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
