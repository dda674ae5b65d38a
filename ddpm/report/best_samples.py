"""Quality of samples over sampling steps: what a network call an image buys, cell by cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm.metrics import QUALITY_MEASURES, Interval, QualityPoint, interval
from ddpm.report.costs import front
from ddpm.report.labels import Axes, Cell, cell_label, interval_text
from ddpm.report.ranking import Ranking, Standing
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


def best_samples(ranking: Ranking) -> str:
    """The lowest FID in the most network calls at which every cell was sampled, and how many cells
    have an interval that overlaps with its own; "" where the cells were not all measured alike.
    """
    cells = {standing.label: _fids(standing) for standing in ranking.standings}
    ways = set.intersection(*map(set, cells.values())) if len(cells) > 1 else set()
    if not ways or len(_protocols(ranking)) > 1:
        return ""
    most = max(calls for calls, _ in ways)
    found = {
        (name, way): over_seeds(fids[calls, way])
        for name, fids in cells.items()
        for calls, way in sorted(ways)
        if calls == most
    }
    label, way = min(found, key=lambda key: found[key].value)
    best = found.pop((label, way))
    level = sum(one.low <= best.high for (_, other), one in found.items() if other == way)
    over = "over seeds" if _has_seeds(ranking) else "over samples of one training"
    return (
        f"Samples in {most:g} network calls ({way}): {label} has the lowest FID, "
        f"{interval_text(best)}; the intervals of {level} of {len(cells) - 1} other cells overlap "
        f"with it (95 %, {over})."
    )


def _fids(standing: Standing) -> dict[tuple[float, str], list[Interval]]:
    """FID by calls and method, one of each seed; points that not all seeds have are left out."""
    found: dict[tuple[float, str], list[Interval]] = {}
    for trial in standing.trials.values():
        for point in () if trial.quality is None else trial.quality.points:
            if (fid := point.interval("fid")) is not None:
                found.setdefault((point.evaluations, method(point)), []).append(fid)
    return {key: fids for key, fids in found.items() if len(fids) == len(standing.trials)}


def _protocols(ranking: Ranking) -> set[tuple[str, int]]:
    trials = [trial for standing in ranking.standings for trial in standing.trials.values()]
    return {(t.quality.protocol, t.quality.num) for t in trials if t.quality is not None}


def _has_seeds(ranking: Ranking) -> bool:
    return all(len(standing.trials) > 1 for standing in ranking.standings)
