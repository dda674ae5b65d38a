"""Quality of samples over sampling steps: what a network call an image buys, cell by cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm.metrics import QUALITY_MEASURES, Interval, QualityPoint, interval
from ddpm.report.costs import front
from ddpm.report.labels import Axes, Cell, cell_label
from ddpm.report.reading import SweepResults, TrialResult

TITLES = {"fid": "FID", "kid": "KID", "accuracy": "accuracy"}


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One cell sampled in one way: mean over seeds, with the interval over them where it has two or
    more, else the interval of its one trial.
    """

    cell: Cell
    label: str
    method: str
    num_steps: int
    evaluations: float
    seconds: float
    num_seeds: int
    qualities: Mapping[str, Interval]


def method(point: QualityPoint) -> str:
    """The sampler without its steps: `ddim`, `ddim \u03b7=1`."""
    return point.sampler if point.eta == 0 else f"{point.sampler} \u03b7={point.eta:g}"


def spots_of(sweep: SweepResults, axes: Axes) -> list[Spot]:
    """Every cell at every point at which it was sampled, in the grid's order."""
    found: dict[tuple[str, str, int], list[tuple[TrialResult, QualityPoint]]] = {}
    for trial in sweep.trials:
        for point in trial.quality.points if trial.quality is not None else ():
            key = (trial.key, method(point), point.num_steps)
            found.setdefault(key, []).append((trial, point))
    return [_spot(some, sweep, axes) for some in found.values()]


def _spot(
    some: Sequence[tuple[TrialResult, QualityPoint]], sweep: SweepResults, axes: Axes
) -> Spot:
    trial, point = some[0]
    points = [one for _, one in some]
    found = {
        name: [one for point in points if (one := point.interval(name)) is not None]
        for name in QUALITY_MEASURES
    }
    return Spot(
        cell=trial.cell,
        label=cell_label(trial.cell, tuple(axes.values)) if sweep.is_sweep else "this run",
        method=method(point),
        num_steps=point.num_steps,
        evaluations=point.evaluations,
        seconds=sum(one.seconds for one in points) / len(points),
        num_seeds=len(points),
        qualities={name: over_seeds(seen) for name, seen in found.items() if seen},
    )


def over_seeds(found: Sequence[Interval]) -> Interval:
    """The mean with its 95 % interval over seeds; of a single seed its own."""
    if len(found) == 1:
        return found[0]
    mean, half = interval([one.value for one in found])
    return Interval(value=mean, low=mean - half, high=mean + half)


def best_front(spots: Sequence[Spot], name: str) -> list[Spot]:
    """The spots on the Pareto front of a quality over network calls, from the cheapest."""
    some = [spot for spot in spots if name in spot.qualities]
    sign = -1 if name == "accuracy" else 1  # of the others, lower is better
    values = [sign * spot.qualities[name].value for spot in some]
    return [some[place] for place in front([spot.evaluations for spot in some], values)]


def left_out(sweep: SweepResults, axes: Axes) -> list[tuple[str, str]]:
    """Cell, and what was asked for and could not be drawn, with the reason."""
    return list(
        dict.fromkeys(
            (
                cell_label(trial.cell, tuple(axes.values)),
                f"{left.num_steps} steps, \u03b7={left.eta:g}: {left.reason}",
            )
            for trial in sweep.trials
            if trial.quality is not None
            for left in trial.quality.left_out
        )
    )
