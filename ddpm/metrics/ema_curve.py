"""How good a run's network is, by the length of the average its weights are: measured afterwards.

Every length is reconstructed from the run's snapshots at its last checkpoint and measured on the
same (validation image, noise) pairs at the same log-SNR levels, the two numbers of measures.py.
Beside them stand the weights that training kept anyway: unaveraged, and of every decay. A length is
chosen on the images it is measured on, so the best of many is a little too good.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from ddpm.diffusion import fit, gamma_of, name_of
from ddpm.distributed import device_of
from ddpm.errors import InputError
from ddpm.metrics.x0_error import (
    USUAL_LEVELS,
    X0Summary,
    common_levels,
    levels_of,
    measure_x0_error,
    summary,
)
from ddpm.runs import LARGEST_ERROR, RunDirectory, checkpoint, load_run, snapshots, storage
from ddpm.sampling import RAW, Ema, PowerEma, load_network, locate, open_data

PICTURE, NUMBERS = "ema_curve.png", "ema_curve.json"


@dataclass(frozen=True, kw_only=True)
class EmaPoint:
    """The weights of one average, measured.

    name: "power-0.07", "ema-0.999" or "model".  sigma_rel: its length, None unless it is of the
    power function.  is_tracked: training kept it.  fit_error: what of its profile is missing.
    """

    name: str
    sigma_rel: float | None
    is_tracked: bool
    fit_error: float
    measured: X0Summary


@dataclass(frozen=True, kw_only=True)
class EmaCurve:
    """points: ascending in length, then the others.  left_out: lengths that cannot be made."""

    run: Path
    step: int
    points: tuple[EmaPoint, ...]
    left_out: tuple[float, ...]

    @property
    def best(self) -> EmaPoint:
        """The lowest mean log10 error."""
        return min(self.points, key=lambda point: point.measured.mean_log10_mse)

    def facts(self) -> dict[str, object]:
        """What ema_curve.json holds."""
        return {
            "format": 1,
            "step": self.step,
            "levels": list(self.points[0].measured.levels),
            "pairs": self.points[0].measured.num_pairs,
            "left_out": list(self.left_out),
            "points": [
                {
                    "weights": point.name,
                    "sigma_rel": point.sigma_rel,
                    "is_tracked": point.is_tracked,
                    "fit_error": point.fit_error,
                    **{
                        name: value if math.isfinite(value) else None
                        for name, value in _numbers(point.measured).items()
                    },
                }
                for point in self.points
            ],
        }


def spaced(shortest: float, longest: float, num: int) -> tuple[float, ...]:
    """So many lengths, even in the logarithm.  InputError for impossible ones."""
    problems = []
    for name, value in (("--shortest", shortest), ("--longest", longest)):
        try:
            gamma_of(value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if num < 1:
        problems.append(f"--num is {num}; give at least 1")
    if not problems and shortest > longest:
        problems.append(f"--shortest is {shortest:g} but --longest is {longest:g}; swap them")
    if problems:
        raise InputError(problems)
    return tuple(sorted({float(f"{s:.3g}") for s in np.geomspace(shortest, longest, num)}))


def fit_errors(run: Path, lengths: Sequence[float]) -> dict[float, float]:
    """How much of its profile each length misses at the run's last checkpoint, those tracked too.

    Ascending in length; nothing is loaded.  Raises InputError for a run without snapshots.
    """
    folder, own = locate(run)
    config = load_run(folder)
    steps = checkpoint.steps(folder / "checkpoints")
    problems = [f"{run} is a checkpoint; name its run, {folder}"] if own else []
    if not config.TRAINING.EMA_POWER:
        problems.append(
            f"{run} was trained without TRAINING.EMA_POWER, so it has no snapshots; train it with "
            "TRAINING.EMA_POWER=[0.05,0.1]"
        )
    if not steps:
        problems.append(f"{run} has no checkpoint yet; train it first")
    if problems:
        raise InputError(problems)
    there = snapshots(folder, config, steps[-1])
    wanted = sorted({*lengths, *config.TRAINING.EMA_POWER})
    return {length: fit(there, length, steps[-1]).error for length in wanted}


def measure(
    run: Path, lengths: Sequence[float], *, on_point: Callable[[EmaPoint], None] | None = None
) -> EmaCurve:
    """The curve over these lengths and those tracked.

    Raises InputError without snapshots, checkpoint or validation images.
    """
    directory, errors = RunDirectory(run), fit_errors(run, lengths)
    model = load_network(run, 0.0)
    config = model.config
    data = open_data(config, Path(directory.provenance["data_dir"]))
    if not data.num_validation:
        raise InputError(f"{run} has no validation images; DATASET.VALIDATION_FRACTION is 0")
    torch.set_num_threads(directory.threads)
    device = device_of(model.network)
    batch = data.validation(config.EVALUATION.NUM).to(device)
    levels = common_levels([USUAL_LEVELS, levels_of(model.schedule)]) or levels_of(model.schedule)

    def measured(ema: Ema) -> X0Summary:
        error = measure_x0_error(
            load_network(model.folder, ema, device=device).network,
            model.schedule,
            batch,
            pred_type=model.pred_type,
            levels=levels,
            seed=config.EVALUATION.SEED,
            labels=config.TRAINING.NETWORK.NUM_CLASSES is not None,
        )
        return summary(error, levels)

    tracked = config.TRAINING.EMA_POWER
    points = []
    for point in _points(tracked, config.TRAINING.EMA_DECAYS, errors, measured):
        points.append(point)
        if on_point is not None:
            on_point(point)
    return EmaCurve(
        run=run,
        step=model.step,
        points=tuple(points),
        left_out=tuple(s for s, error in errors.items() if error > LARGEST_ERROR),
    )


def _points(
    tracked: Sequence[float],
    decays: Sequence[float],
    errors: dict[float, float],
    measured: Callable[[Ema], X0Summary],
) -> Iterator[EmaPoint]:
    for length, error in errors.items():
        if error <= LARGEST_ERROR:
            yield EmaPoint(
                name=name_of(length),
                sigma_rel=length,
                is_tracked=length in tracked,
                fit_error=error,
                measured=measured(PowerEma(length)),
            )
    others: list[tuple[str, Ema]] = [(f"ema-{decay:g}", decay) for decay in decays if decay != 0]
    for name, ema in [*others, (RAW, 0.0)]:
        yield EmaPoint(
            name=name, sigma_rel=None, is_tracked=True, fit_error=0.0, measured=measured(ema)
        )


def save(curve: EmaCurve) -> tuple[Path, Path]:
    """ema_curve.json and ema_curve.png in the run directory."""
    numbers, picture = curve.run / NUMBERS, curve.run / PICTURE
    storage.write_json(numbers, curve.facts())
    storage.write_bytes(picture, _picture(curve))
    return numbers, picture


def table(curve: EmaCurve) -> Table:
    """The points as lines, the best one marked."""
    levels = curve.points[0].measured.levels
    made = Table(
        "weights", "mean log10 error", "SNR-weighted error", "misses", title=str(curve.run.name)
    )
    for point in curve.points:
        numbers = point.measured
        name = point.name + (" (tracked)" if point.is_tracked and point.sigma_rel else "")
        made.add_row(
            name + (" *" if point is curve.best else ""),
            f"{numbers.mean_log10_mse:.4f} ± {numbers.mean_log10_mse_evaluation_error:.4f}",
            f"{numbers.snr_weighted_mse:.4f} ± {numbers.snr_weighted_mse_evaluation_error:.4f}",
            f"{point.fit_error:.1%}" if point.sigma_rel else "",
        )
    gone = ", ".join(f"{length:g}" for length in curve.left_out)
    made.caption = (
        f"step {curve.step}; log SNR {levels[0]} to {levels[-1]}, {numbers.num_pairs} pairs, ± "
        "evaluation error; * lowest"
        + (f"; {gone} cannot be made from these snapshots" if gone else "")
    )
    return made


def _picture(curve: EmaCurve) -> bytes:
    """PNG: the mean log10 error over length, +- evaluation error; the others as level lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = [point for point in curve.points if point.sigma_rel is not None]
    lengths = [point.sigma_rel or 0.0 for point in points]
    values = [point.measured.mean_log10_mse for point in points]
    spread = [point.measured.mean_log10_mse_evaluation_error for point in points]
    axes.errorbar(lengths, values, spread, marker="o", ms=4, capsize=2, label="made afterwards")
    kept = [k for k, point in enumerate(points) if point.is_tracked]
    axes.plot(
        [lengths[k] for k in kept], [values[k] for k in kept], "s", color="black", label="tracked"
    )
    others = [point for point in curve.points if point.sigma_rel is None]
    for k, point in enumerate(others):
        label = "unaveraged" if point.name == RAW else point.name
        axes.axhline(point.measured.mean_log10_mse, color=f"C{k + 1}", ls="--", lw=1, label=label)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2) if lengths[0] <= tick <= lengths[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("length of the average, standard deviation over training (sigma_rel)")
    axes.set_ylabel("mean log10 MSE of x0, lower is better")
    axes.set_title(f"step {curve.step}, {curve.points[0].measured.num_pairs} validation pairs")
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _numbers(measured: X0Summary) -> dict[str, float]:
    return {
        "mean_log10_mse": measured.mean_log10_mse,
        "mean_log10_mse_evaluation_error": measured.mean_log10_mse_evaluation_error,
        "snr_weighted_mse": measured.snr_weighted_mse,
        "snr_weighted_mse_evaluation_error": measured.snr_weighted_mse_evaluation_error,
    }
