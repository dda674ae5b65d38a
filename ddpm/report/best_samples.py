"""Quality of samples over sampling steps: what a network call an image buys, cell by cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from ddpm.metrics import QUALITY_MEASURES, Interval, LeftOut, QualityPoint, interval
from ddpm.report import charts as ticks
from ddpm.report.charts import (
    Frame,
    LineSeries,
    chosen,
    facets,
    first_each,
    in_order,
    legend,
    line_chart,
    table,
)
from ddpm.report.costs import front
from ddpm.report.ranking import (
    Axes,
    Cell,
    Ranking,
    Standing,
    aligned,
    cell_label,
    common_digits,
    listed,
)
from ddpm.report.reading import SweepResults, TrialResult
from ddpm.report.strips import method, over_steps

TITLES = {"fid": "FID", "kid": "KID", "accuracy": "accuracy"}
LEFT_OUT = ("cell", "left out, and why")
_HIGHER_IS_BETTER = ("accuracy",)


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


def sampling_section(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """Charts, fronts, a table and the pictures; "" where no trial was measured so."""
    spots = spots_of(sweep, axes)
    pictures = over_steps(sweep, ranking, axes)
    if not spots:
        return _left_out(sweep, axes) + pictures
    names = [name for name in QUALITY_MEASURES if any(name in spot.qualities for spot in spots)]
    if not names:
        return pictures
    first, *others = [_sampling_charts(spots, name, ranking, axes) for name in names]
    charts = first + "".join(
        f"<details><summary>Over network calls per image: {TITLES[name]}</summary>{one}</details>"
        for name, one in zip(names[1:], others, strict=True)
    )
    drawn = [
        [_sampling_series(some[0], some, names[0], axes)] for some in _spot_lines(spots).values()
    ]
    return (
        f"<p class='note'>{_how(sweep)}</p>{_fronts(spots, names)}{legend(first_each(drawn))}"
        f"{charts}{_table(sweep, spots)}{_left_out(sweep, axes)}{pictures}"
    )


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


def _spot_lines(spots: Sequence[Spot]) -> dict[tuple[str, str], list[Spot]]:
    """The spots of one curve: of one cell and one method, by their cost."""
    found: dict[tuple[str, str], list[Spot]] = {}
    for spot in sorted(spots, key=lambda one: one.evaluations):
        found.setdefault((spot.label, spot.method), []).append(spot)
    return found


def _sampling_charts(spots: Sequence[Spot], name: str, ranking: Ranking, axes: Axes) -> str:
    spots = [spot for spot in spots if name in spot.qualities]
    methods = list(dict.fromkeys(spot.method for spot in spots))
    cells = list({id(spot.cell): spot.cell for spot in spots}.values())
    groups = chosen(cells, axes.facets, axes, ranking)
    frame = _frame(spots, name)
    charts = {}
    for title, group in groups.items():
        for way in methods:
            some = [s for s in spots if s.cell in group and s.method == way]
            series = [
                _sampling_series(one[0], one, name, axes) for one in _spot_lines(some).values()
            ]
            words = [word for word in (title, way if len(methods) > 1 else "") if word]
            heading = ", ".join([TITLES[name], *words])
            if series:
                label = f"{heading}, over network calls per image"
                charts[heading] = line_chart(in_order(series), frame, label)
    columns = len(charts) if len(charts) in (2, 4) else 3
    return facets(charts, columns, len(axes.grouped(cells, axes.facets)))


def _frame(spots: Sequence[Spot], name: str) -> Frame:
    found = [spot.qualities[name] for spot in spots]
    ends = [end for one in found for end in (one.low, one.value, one.high) if isfinite(end)]
    is_log = max(ends) > ticks.LOGARITHMIC * min(ends) > 0
    calls = [spot.evaluations for spot in spots if spot.evaluations > 0]
    return Frame(
        x_range=ticks.beside(calls),
        x_is_log=True,
        y_range=ticks.beside(ends) if is_log else ticks.around(ends),
        y_is_log=is_log,
        x_title="network calls per image",
        y_title=TITLES[name],
        height=240,
    )


def _sampling_series(first: Spot, spots: Sequence[Spot], name: str, axes: Axes) -> LineSeries:
    spots = [spot for spot in spots if name in spot.qualities]
    found = [spot.qualities[name] for spot in spots]
    return LineSeries(
        name=axes.series_name(first.cell),
        x=[spot.evaluations for spot in spots],
        y=[one.value for one in found],
        low=[one.low for one in found],
        high=[one.high for one in found],
        tips=[f"{s.label}\n{s.method}, {s.num_steps} steps: {TITLES[name]} {interval_text(q)}"
              for s, q in zip(spots, found, strict=True)],
        style=axes.style(first.cell),
    )  # fmt: skip


def interval_text(one: Interval) -> str:
    """`12.31 [11.90, 12.80]`, with as many decimals as the interval's width needs."""
    width = (one.high - one.low) / 2
    digits = common_digits([width])
    return "{} [{}, {}]".format(
        *(aligned(v, width, digits)[0] for v in (one.value, one.low, one.high))
    )


def _how(sweep: SweepResults) -> str:
    measured = [trial.quality for trial in sweep.trials if trial.quality is not None]
    counts = listed(sorted({f"{one.num:,}" for one in measured}))
    features = listed(sorted({one.features or "features that are not named" for one in measured}))
    protocols = listed(sorted({one.protocol for one in measured if one.protocol})[:3] or ["none"])
    several = any(count > 1 for count in _seeds(sweep))
    bars = (
        "95 % intervals over training seeds" if several else "the interval of one trained network"
    )
    return escape(
        f"{counts} images a point, measured with {features} (protocol: {protocols}). Lower is "
        f"better for FID and KID, higher for accuracy. Bars: {bars}."
    )


def _seeds(sweep: SweepResults) -> list[int]:
    keys = [trial.key for trial in sweep.trials if trial.quality is not None]
    return [keys.count(key) for key in set(keys)]


def _fronts(spots: Sequence[Spot], names: Sequence[str]) -> str:
    """The best cell at each number of network calls; a dash where fewer calls do as well."""
    best = {name: _front(spots, name) for name in names}
    calls = sorted({spot.evaluations for some in best.values() for spot in some})
    rows = [
        (f"{count:g}", *(_best_text(best[name], name, count) for name in names)) for count in calls
    ]
    note = (
        "<p class='note'>Pareto front: the best cell at each number of network calls; a dash where "
        "fewer calls do as well. Cells whose intervals overlap may swap places.</p>"
    )
    head = ["calls per image", *(f"best {TITLES[name]} [interval]" for name in names)]
    return table(head, rows, wrap=range(1, len(head))) + note


def _front(spots: Sequence[Spot], name: str) -> list[Spot]:
    some = [spot for spot in spots if name in spot.qualities]
    sign = -1 if name in _HIGHER_IS_BETTER else 1
    values = [sign * spot.qualities[name].value for spot in some]
    return [some[place] for place in front([spot.evaluations for spot in some], values)]


def _best_text(best: Sequence[Spot], name: str, calls: float) -> str:
    found = [spot for spot in best if spot.evaluations == calls]
    return f"{found[0].label}: {interval_text(found[0].qualities[name])}" if found else "\u2013"


def _table(sweep: SweepResults, spots: Sequence[Spot]) -> str:
    units = dict.fromkeys(trial.quality.unit for trial in sweep.trials if trial.quality)
    names = [name for name in QUALITY_MEASURES if any(name in spot.qualities for spot in spots)]
    rows = [
        (
            spot.label,
            str(spot.num_seeds),
            spot.method,
            str(spot.num_steps),
            f"{spot.evaluations:g}",
            f"{spot.seconds:,.1f}" if isfinite(spot.seconds) else "\u2013",
            *(interval_text(spot.qualities[n]) if n in spot.qualities else "\u2013" for n in names),
        )
        for spot in spots
    ]
    head = ["cell", "seeds", "sampler", "steps", "calls per image", " / ".join(units)]
    head += [f"{TITLES[name]} [interval]" for name in names]
    return table(
        head, rows, numbers=(1, *range(3, len(head))), fold=f"The numbers of {len(rows)} points"
    )


def left_out(sweep: SweepResults, axes: Axes) -> list[tuple[str, str]]:
    """Cell, and what was asked for and could not be drawn, with the reason."""
    rows = dict.fromkeys(
        (cell_label(trial.cell, tuple(axes.values)), _reason(left))
        for trial in sweep.trials
        if trial.quality is not None
        for left in trial.quality.left_out
    )
    return list(rows)


def _left_out(sweep: SweepResults, axes: Axes) -> str:
    rows = left_out(sweep, axes)
    fold = f"Points left out: {len(rows)}"
    return table(LEFT_OUT, rows, wrap=(1,), fold=fold) if rows else ""


def _reason(left: LeftOut) -> str:
    return f"{left.num_steps} steps, \u03b7={left.eta:g}: {left.reason}"


# --------
# Whose samples are best, in a sentence: what the first screen says besides the x0-error.


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
